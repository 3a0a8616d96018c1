"""Models in the layouts of published programs. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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


class Layout:
    """Published files of a model type: reading, writing, and their state of training.

    A layout has those of these methods that it overrides.
    """

    can_read: ClassVar[bool] = True  # False for a layout that is only written

    def keys_of_run(
        self, section: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Returns what published keys of the section `model` say about the weights to start from.

        These are keys of the run, such as `init_from`, and keys of the section to reset.
        """
        del section
        return {}, {}

    def recognize(self, location: Path) -> PublishedFiles | None:
        """Returns the files of a published model of this type; None for other locations."""
        del location
        return None

    def section(self, files: PublishedFiles) -> "ConfigModel | None":
        """Returns the section `model` from small files; None if only the weights have it."""
        del files
        return None

    def open(self, files: PublishedFiles, path: Path) -> PublishedModel:
        """Opens a published model; `path` is the local copy of the weights."""
        raise AssertionError("a layout with can_read has open")

    def problem(self, config: Any) -> str:
        """Returns the reason why runs of a section `model` cannot be written; empty if they can."""
        writes = type(self).write is not Layout.write
        return "" if writes else f"model type {config.type!r} has no published layout"

    def write(self, trained: "Trained", tree: Mapping[str, Any], reporter: "Reporter") -> Exported:
        """Prepares the files of opened weights; writes nothing yet.

        `tree` is the whole configuration of the run; empty for published files.
        """
        raise AssertionError("a layout without a problem has write")

    def progress_files(self, files: PublishedFiles, *, averaged: bool) -> Sequence[Path]:
        """Returns the files that `open_progress` reads, which may be missing.

        Empty if the layout has no state of training; with `averaged` also the averaged weights.
        """
        del files, averaged
        return ()

    def open_progress(
        self, config: Any, modules: "Mapping[str, nn.Module]", paths: Sequence[Path]
    ) -> PublishedProgress:
        """Opens a published state of training, from local copies of `progress_files`."""
        raise AssertionError("a layout with progress_files has open_progress")
