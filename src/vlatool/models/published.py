"""Models in the layouts of published programs. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from vlatool.errors import DataError
from vlatool.jobs.files import is_intact, read_file_list

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlatool.config.base import ConfigModel
    from vlatool.events import Reporter
    from vlatool.models.trained import Trained


@dataclass(frozen=True)
class PublishedFiles:
    """Files of a model in its published layout, of any scheme."""

    weights: Path
    config: Path | None = None  # file with the configuration; None for a file of weights alone
    # `raw` or `ema` for raw or averaged `weights`; empty if unknown
    kind: Literal["", "raw", "ema"] = ""
    averaged: Path | None = None  # file with the averages of `weights`; None: there is none
    # section `model` of the run that they were exported from, whose base models are not read again;
    # None: unknown
    before: Any = None

    def checked(self, chosen: Path, local: Path) -> Path:
        """Returns `local` after a comparison of the files with the list of an export.

        `local`: local copy of it.

        Sizes are compared, and digests of local files. Other published files have no list. As in
        runs, users may edit YAML.
        """
        root = chosen.parent if self.config is None else self.config.parent
        for entry in read_file_list(root) or ():
            path = root / entry.path
            if path.suffix == ".yaml" or (path != chosen and path in (self.weights, self.averaged)):
                continue
            is_chosen = path == chosen
            compared = replace(entry, path=local.name) if is_chosen else entry
            if not is_intact(local.parent if is_chosen else root, compared):
                raise DataError.at(
                    path,
                    "is missing, or has changed since it was exported",
                    hint="export or copy it again; `vlatool verify` lists all changed files",
                    code="data.broken_export",
                )
        return local


@dataclass(frozen=True)
class PublishedModel:
    """Content of `PublishedFiles`."""

    config: Any  # section `model`
    parts: "Mapping[str, nn.Module]"  # networks with their weights on the CPU, by name
    assets: Any  # assets of the data kind
    data: Any = None  # section `data`, derived; None: the layout has none
    # local folder with the files of `save_assets`; None: the layout has none
    folder: Path | None = None
    notes: Sequence[str] = ()  # messages for the user, such as tensors that are not used


@dataclass(frozen=True)
class PublishedProgress:
    """State of training in a published layout, on the CPU."""

    step: int  # number of optimizer steps done
    # state dict of each part that checkpoints hold, by the name of the part
    weights: "Mapping[str, Mapping[str, Tensor]]"
    # averaged weights of each part; empty if there are none
    averages: "Mapping[str, Mapping[str, Tensor]]" = field(default_factory=dict)
    num_averaged: int = 0  # number of updates of the averages
    # state of AdamW (`step`, `exp_avg`, `exp_avg_sq`) by the name of an optimizer and
    # `PART.PARAMETER`
    moments: "Mapping[str, Mapping[str, Mapping[str, Tensor]]]" = field(default_factory=dict)
    notes: Sequence[str] = ()  # messages for the user


@dataclass(frozen=True)
class Exported:
    """Published layout of opened weights, ready to be written."""

    files: tuple[str, ...]  # names of the files that `write` may write
    weights: tuple[str, ...]  # names of those that hold weights
    parameters: int  # number of values in the file of weights
    summary: str  # text on the files
    # writes the files to a folder; returns further facts for the result, as JSON values
    write: Callable[[Path], Mapping[str, Any]]
    # names of files that are opened after they were written, to compare outputs; None: those of
    # `weights`
    compared: tuple[str, ...] | None = None


class PublishedLayout(Protocol):
    """Methods of a model type on its published layout; by default there is none."""

    name: ClassVar[str]

    def published_start(
        self, section: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Returns what published keys of a section say about the weights to start from.

        Returns keys of the run that they stand for, such as `init_from`, and keys of the section to
        reset.
        """
        del section
        return {}, {}

    def export(
        self, trained: "Trained", tree: Mapping[str, Any], reporter: "Reporter"
    ) -> Exported | None:
        """Prepares the published layout of a model; None if there is none. Writes nothing; `tree`:
        whole configuration of the run; empty for published files.
        """
        del trained, tree, reporter
        return None

    def export_problem(self, config: Any) -> str:
        """Returns the reason why runs cannot be exported; empty if they can."""
        del config
        if type(self).export is not PublishedLayout.export:
            return ""
        return f"model type {self.name!r} has no published layout"

    def find_published(self, location: Path) -> PublishedFiles | None:
        """Returns the files of a published model of this type; None for other locations."""
        del location
        return None

    def published_section(self, files: PublishedFiles) -> "ConfigModel | None":
        """Returns the section `model` of a published model; None if only its weights have it;
        `files`: result of `find_published`. Read the small files only.
        """
        del files
        return None

    def open_published(self, files: PublishedFiles, path: Path) -> PublishedModel:
        """Opens a published model; `path`: local copy of the weights."""
        del files, path
        raise AssertionError("a model type with find_published has open_published")

    def progress_files(self, files: PublishedFiles, *, averaged: bool) -> Sequence[Path]:
        """Returns the files that `open_progress` reads; they may be missing; returns the files;
        empty if the layout has no state of training.
        """
        del files, averaged
        return ()

    def open_progress(
        self, config: Any, modules: "Mapping[str, nn.Module]", paths: Sequence[Path]
    ) -> PublishedProgress:
        """Opens a published state of training."""
        del config, modules, paths
        raise AssertionError("a model type with progress_files has open_progress")
