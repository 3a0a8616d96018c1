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
    """Files of a model in its published layout, of any scheme.

    Attributes:
        weights: File with the weights.
        config: File with the configuration; None for a file of weights alone.
        kind: `raw` or `ema` for raw or averaged `weights`; empty if unknown.
        averaged: File with the averages of `weights`; None: there is none.
        before: Section `model` of the run that they were exported from, whose base models are not
            read again; None: unknown.
    """

    weights: Path
    config: Path | None = None
    kind: Literal["", "raw", "ema"] = ""
    averaged: Path | None = None
    before: Any = None

    def checked(self, chosen: Path, local: Path) -> Path:
        """Returns `local` after a comparison of the files with the list of an export.

        Sizes are compared, and digests of local files. Other published files have no list. As in
        runs, users may edit YAML.

        Args:
            chosen: One of the files of weights; the other is not compared.
            local: Local copy of it.

        Raises:
            DataError: A file is missing or has changed.
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
    """Content of `PublishedFiles`.

    Attributes:
        config: Section `model`.
        parts: Networks with their weights on the CPU, by name.
        assets: Assets of the data kind.
        data: Section `data`, derived; None: the layout has none.
        folder: Local folder with the files of `save_assets`; None: the layout has none.
        notes: Messages for the user, such as tensors that are not used.
    """

    config: Any
    parts: "Mapping[str, nn.Module]"
    assets: Any
    data: Any = None
    folder: Path | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class PublishedProgress:
    """State of training in a published layout, on the CPU.

    Attributes:
        step: Number of optimizer steps done.
        weights: State dict of each part that checkpoints hold, by the name of the part.
        averages: Averaged weights of each part; empty if there are none.
        num_averaged: Number of updates of the averages.
        moments: State of AdamW (`step`, `exp_avg`, `exp_avg_sq`) by the name of an optimizer and
            `PART.PARAMETER`.
        notes: Messages for the user.
    """

    step: int
    weights: "Mapping[str, Mapping[str, Tensor]]"
    averages: "Mapping[str, Mapping[str, Tensor]]" = field(default_factory=dict)
    num_averaged: int = 0
    moments: "Mapping[str, Mapping[str, Mapping[str, Tensor]]]" = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Exported:
    """Published layout of opened weights, ready to be written.

    Attributes:
        files: Names of the files that `write` may write.
        weights: Names of those that hold weights.
        parameters: Number of values in the file of weights.
        summary: Text on the files.
        write: Writes the files to a folder; returns further facts for the result, as JSON values.
        compared: Names of files that are opened after they were written, to compare outputs; None:
            those of `weights`.
    """

    files: tuple[str, ...]
    weights: tuple[str, ...]
    parameters: int
    summary: str
    write: Callable[[Path], Mapping[str, Any]]
    compared: tuple[str, ...] | None = None


class PublishedLayout(Protocol):
    """Methods of a model type on its published layout; by default there is none."""

    name: ClassVar[str]

    def published_start(
        self, section: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Returns what published keys of a section say about the weights to start from.

        Args:
            section: Keys and values of the section `model`.

        Returns:
            Keys of the run that they stand for, such as `init_from`, and keys of the section to
            reset.
        """
        del section
        return {}, {}

    def export(
        self, trained: "Trained", tree: Mapping[str, Any], reporter: "Reporter"
    ) -> Exported | None:
        """Prepares the published layout of a model; None if there is none. Writes nothing.

        Args:
            trained: Opened weights: averaged ones if there are any.
            tree: Whole configuration of the run; empty for published files.
            reporter: Receives notes on what the published program would do differently.

        Raises:
            UsageError: The published program does not support this model.
        """
        del trained, tree, reporter
        return None

    def export_problem(self, config: Any) -> str:
        """Returns the reason why runs cannot be exported; empty if they can.

        Args:
            config: Section `model`.
        """
        del config
        if type(self).export is not PublishedLayout.export:
            return ""
        return f"model type {self.name!r} has no published layout"

    def find_published(self, location: Path) -> PublishedFiles | None:
        """Returns the files of a published model of this type; None for other locations.

        Args:
            location: Folder or file of any scheme, not of a run. Read little of it.
        """
        del location
        return None

    def published_section(self, files: PublishedFiles) -> "ConfigModel | None":
        """Returns the section `model` of a published model; None if only its weights have it.

        Args:
            files: Result of `find_published`. Read the small files only.

        Raises:
            DataError: A file is broken.
        """
        del files
        return None

    def open_published(self, files: PublishedFiles, path: Path) -> PublishedModel:
        """Opens a published model.

        Args:
            files: Result of `find_published`.
            path: Local copy of the weights.

        Raises:
            DataError: A file is broken, or the weights do not match the configuration.
        """
        del files, path
        raise AssertionError("a model type with find_published has open_published")

    def progress_files(self, files: PublishedFiles, *, averaged: bool) -> Sequence[Path]:
        """Returns the files that `open_progress` reads; they may be missing.

        Args:
            files: Result of `find_published`.
            averaged: True if the run averages its weights.

        Returns:
            The files; empty if the layout has no state of training.
        """
        del files, averaged
        return ()

    def open_progress(
        self, config: Any, modules: "Mapping[str, nn.Module]", paths: Sequence[Path]
    ) -> PublishedProgress:
        """Opens a published state of training.

        Args:
            config: Section `model`, derived.
            modules: Networks of all parts, by name.
            paths: Local copies of the result of `progress_files`.

        Raises:
            DataError: A file is broken, or does not match the networks.
        """
        del config, modules, paths
        raise AssertionError("a model type with progress_files has open_progress")
