"""Reads and writes models in the layouts of published programs. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlatool.checkpoints import locations
from vlatool.checkpoints.checkpoint import (
    EMA,
    MANIFEST,
    TRAINER,
    CheckpointManifest,
    is_checkpoint,
    part_weights,
)
from vlatool.checkpoints.layout import BEST_NAME, RunDir, is_run
from vlatool.errors import DataError, UsageError
from vlatool.jobs.files import is_intact, read_file_list
from vlatool.plugins import MODELS
from vlatool.storage.cache import local_copy
from vlatool.storage.uri import is_remote, pinned

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlatool.config.base import ConfigModel
    from vlatool.events import Reporter


@dataclass(frozen=True)
class PublishedFiles:
    """Files of a model in its published layout, local or remote."""

    weights: Path
    config: Path | None = None  # file with the configuration; None for a file of weights alone
    # `raw` or `ema` for raw or averaged `weights`; empty if unknown
    kind: Literal["", "raw", "ema"] = ""
    averaged: Path | None = None  # file with the averages of `weights`; None: there is none
    # section `model` of the run that they were exported from, whose base models are not read again;
    # None: unknown
    before: Any = None

    def checked(self, chosen: Path, local: Path) -> Path:
        """Returns `local`, after comparing the files with the list of an export.

        `local`: local copy of the weights.

        Compares sizes, and digests of local files. Files from elsewhere have no list. You may edit
        YAML files, as in runs.
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
                    hint="export or copy the model again; `vlatool verify` lists all changed files",
                    code="data.broken",
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


def registered_type(name: str) -> Any:
    try:
        return MODELS.get(name)()
    except UsageError as error:
        error.details["key"] = "model.type"
        raise


def published_at(location: Path) -> tuple[Any, PublishedFiles] | None:
    """The model type of a published folder or file, and its files; None for runs."""
    folder = location.parent if location.is_file() else location
    is_of_run = is_run(folder) or (is_checkpoint(folder) and is_run(folder.parent.parent))
    if is_of_run:
        return None
    for name in MODELS.names():
        model_type = MODELS.get(name)()
        files = model_type.layout.recognize(location)
        if files is not None:
            return model_type, files
    return None


_MODEL = "model"
_CHECKPOINTS = "checkpoints"


Weights = Literal["auto", "ema", "raw"]


@dataclass(frozen=True)
class WeightsOrigin:
    """Where trained weights come from; only small files of them are read."""

    text: str  # location as the user wrote it
    file: Path  # file with the weights of the part `model`, of any scheme
    run: RunDir | None = None  # run of a checkpoint; None for published folders and files
    checkpoint: Path | None = None  # checkpoint with the file; None as above
    weights: str = ""  # `ema` or `raw`; empty if unknown
    # local path of the file, once it is opened; a cached copy if it is remote
    opened: Path | None = None
    # model type and files of a published folder or file; None for a run
    published: tuple[Any, PublishedFiles] | None = None

    @classmethod
    def find(cls, text: str, weights: Weights = "auto") -> "WeightsOrigin":
        """Files of a run, a checkpoint, a published folder, or a file.

        For a run, takes the newest checkpoint. A file in a checkpoint gets the configuration of its
        run. `weights`: `ema`, `raw`, or `auto`: averaged weights if there are any.

        Raises:
            DataError: The location does not exist, or has no weights.
            UsageError: It has only other weights.
        """
        locations.require_weights(text)
        location = locations.with_run_above(pinned(text))
        published = published_at(location)
        if published is not None:
            return cls._of_files(text, published, weights)
        if location.is_file():
            folder = location.parent
            names = {part_weights(_MODEL, averaged=True): "ema", part_weights(_MODEL): "raw"}
            if location.name in names and is_checkpoint(folder):
                run = RunDir(folder.parent.parent)
                return cls(text, location, run, folder, names[location.name])
            return cls(text, location)
        run, checkpoint = locations.find_checkpoint(location)
        if checkpoint == location and not run.config.is_file():
            raise locations.without_run(run, checkpoint)
        stored = CheckpointManifest.read(checkpoint).files
        averaged = part_weights(_MODEL, averaged=True)
        if weights == "ema" and averaged not in stored:
            raise _no_weights(str(checkpoint), "averaged", "raw")
        kind = "ema" if averaged in stored and weights != "raw" else "raw"
        name = averaged if kind == "ema" else part_weights(_MODEL)
        if name not in stored:
            raise DataError.at(
                checkpoint,
                f"has no weights of the part {_MODEL!r}",
                hint="give a checkpoint of another run",
                code="data.missing",
            )
        return cls(text, checkpoint / name, run, checkpoint, kind)

    @classmethod
    def _of_files(
        cls, text: str, published: tuple[Any, PublishedFiles], weights: Weights
    ) -> "WeightsOrigin":
        files = published[1]
        if weights != "raw" and files.averaged is not None:
            return cls(text, files.averaged, weights="ema", published=published)
        if files.kind and weights not in ("auto", files.kind):
            missing = "averaged" if weights == "ema" else "raw"
            raise _no_weights(text, missing, files.kind)
        return cls(text, files.weights, weights=files.kind, published=published)

    @property
    def path(self) -> Path:
        """Local path of the file; a copy in the cache if it is remote."""
        if self.opened is not None or not is_remote(self.file):
            return self.opened or self.file
        name = self.file.name
        if self.checkpoint is not None:
            return _local(self.checkpoint, [name]) / name
        return local_copy(self.file.parent, [name]) / name

    @property
    def name(self) -> str:
        """Last name of the location; for a checkpoint, the name of its run."""
        path = Path(self.text.rstrip("/"))
        if self.checkpoint is not None and path.parent.name == _CHECKPOINTS:
            path = path.parent.parent
        elif self.run is not None and self.run.root.name != path.name == BEST_NAME:
            path = path.parent
        return path.resolve().name if path.name in ("", ".", "..") else path.name

    @property
    def section(self) -> dict[str, Any] | None:
        """Section `model` of the run; None without a run."""
        if self.run is None:
            return None
        section = self.run.config_tree().get(_MODEL)
        return section if isinstance(section, dict) else {}

    def check_type(self, name: str, code: str) -> None:
        section = self.section
        if section is not None and section.get("type") != name:
            raise DataError.at(
                self.text,
                f"the run has the model type {section.get('type')!r}, not {name}",
                hint=f"use a run of the model type {name}, or a published file",
                code=code,
            )

    def read(self, model_type: str = "") -> "dict[str, Tensor]":
        """Reads the tensors of the part `model` to the CPU, and checks the digest of the file.

        `model_type`: the type that a run must have; empty: any.
        """
        from vlatool.models.adapters import merged_weights
        from vlatool.models.weights import read_external_weights

        if model_type:
            self.check_type(model_type, "data.missing")
        path = self.path
        if self.checkpoint is not None:
            manifest = CheckpointManifest.read(self.checkpoint)
            manifest.check(self.checkpoint, [])  # the step
            manifest.check(path.parent, [self.file.name])
        elif self.published is not None:
            self.published[1].checked(self.file, path)
        weights = read_external_weights(path)
        lora = {} if self.run is None else self.run.config_tree().get("lora") or {}
        if not lora.get("rank"):
            return weights
        return merged_weights(weights, lora["rank"], lora.get("alpha") or lora["rank"])

    def check_progress(self, *, averaged: bool) -> None:
        """Raises DataError if a checkpoint lacks a file from which its training continues."""
        assert self.checkpoint is not None
        names = CheckpointManifest.read(self.checkpoint).files
        missing = [] if TRAINER in names else [TRAINER]
        if averaged and not any(name.endswith(EMA) for name in names):
            missing.append(EMA)
        if missing:
            raise DataError.at(
                self.checkpoint / missing[0],
                f"is missing, so the training of {self.text} cannot continue",
                hint="copy it from where the checkpoint was trained; to start a new run from the "
                "weights alone, set init_weights_only to true",
                code="data.missing",
            )

    def local_checkpoint(self) -> Path:
        """The checkpoint on the local disk; its files are compared with their digests."""
        assert self.checkpoint is not None
        manifest = CheckpointManifest.read(self.checkpoint)
        folder = _local(self.checkpoint, [MANIFEST, *manifest.files])
        manifest.check(folder)
        return folder


def _local(checkpoint: Path, names: Sequence[str]) -> Path:
    """Local copy of a checkpoint with some of its files."""
    above = checkpoint.parent  # frozen weights are beside the checkpoint
    paths = CheckpointManifest.read(checkpoint).paths(checkpoint, names)
    return local_copy(above, [str(path.relative_to(above)) for path in paths]) / checkpoint.name


def _no_weights(text: str, missing: str, stored: str) -> UsageError:
    return UsageError(
        f"{text}: has no {missing} weights",
        hint=f"use --weights {stored}",
        code="usage.unsupported",
    )


@dataclass(frozen=True)
class Trained:
    """Opened weights."""

    config: Any  # a `TrainedConfig`: sections `model` and `data`, derived
    parts: "Mapping[str, nn.Module]"  # networks with their weights, on their device, in eval mode
    assets: Any  # assets of the data kind
    origin: WeightsOrigin  # files of the weights
    # local folder with the assets of the model; None: a published layout has none
    folder: Path | None

    @property
    def model_type(self) -> Any:
        return registered_type(getattr(self.config.model, "type", ""))

    def policy(self) -> Any:
        model_type = self.model_type
        policy = model_type.policy(self.config.model, self.parts, self.assets, self.folder)
        if policy is None:
            raise DataError(
                f"{self.origin.text}: the model type {model_type.name!r} is not a policy",
                code="data.missing",
            )
        return policy


class Layout:
    """Reads and writes the published files of a model type, and their state of training.

    A layout overrides the methods that it supports.
    """

    can_read: ClassVar[bool] = True  # False for a layout that is only written
    # True if a run that starts from such files needs no `model.type`
    implies_type: ClassVar[bool] = False

    def keys_of_run(
        self, section: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Returns what published keys of the section `model` say about the initial weights.

        Returns keys of the run, such as `init_from`, and keys of the section to reset.
        """
        return {}, {}

    def recognize(self, location: Path) -> PublishedFiles | None:
        """Returns the files of a published model of this type; None for other locations."""
        return None

    def section(self, files: PublishedFiles) -> "ConfigModel | None":
        """Returns the section `model` from small files; None if only the weights tell it."""
        return None

    def open(self, files: PublishedFiles, path: Path) -> PublishedModel:
        """Opens a published model; `path` is the local copy of the weights."""
        raise AssertionError("a layout with can_read has open")

    def problem(self, config: Any) -> str:
        """Returns why runs with this section `model` cannot be exported; empty if they can."""
        writes = type(self).write is not Layout.write
        return "" if writes else f"the model type {config.type!r} has no published layout"

    def write(self, trained: Trained, tree: Mapping[str, Any], reporter: "Reporter") -> Exported:
        """Prepares the files of opened weights; writes nothing yet.

        `tree` is the complete configuration of the run; empty for published files.
        """
        raise AssertionError("a layout without a problem has write")


def run_folder(folder: Any) -> Mapping[str, Any]:
    """Keys for the folder of a run: `save_path` and `name`."""
    # As text: the command itself checks the scheme.
    text = str(folder)
    parent, _, name = text.rstrip("/").rpartition("/")
    if parent.endswith(":/") or name in ("", ".", ".."):
        raise UsageError(
            f"--output {text!r} does not name a folder for the run",
            hint="write --output runs/NAME, or s3://BUCKET/NAME for a bucket",
            code="usage.bad_value",
        )
    root = "/" if text.startswith("/") else "."
    return {"save_path": parent or root, "name": name}
