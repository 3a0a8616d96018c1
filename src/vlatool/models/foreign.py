"""Lookup of trained weights: runs, checkpoints, published folders and files. Reads no tensor."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlatool.artifacts.published_tokenizer import PublishedTokenizer, find_published
from vlatool.artifacts.run.checkpoint import CheckpointManifest, is_checkpoint, part_weights
from vlatool.artifacts.run.format import RunDir, find_checkpoint, is_run
from vlatool.errors import ConfigError, DataError
from vlatool.storage.cache import FileCache, default_cache_folder
from vlatool.storage.uri import is_remote, require_existing

_MODEL = "model"
# Files of the model in a checkpoint, the preferred one first.
_NAMES = (part_weights(_MODEL, averaged=True), part_weights(_MODEL))


@dataclass(frozen=True)
class ForeignWeights:
    """A file of weights and its metadata.

    Attributes:
        path: Local path; a cached copy if the file is remote.
        location: Location of the file, of any scheme.
        origin: Location as the user wrote it.
        run: Folder of the run; None for a single file or a published folder.
        section: Section `model` of that run; None without a run.
        published: Configuration of a published folder; None otherwise.
    """

    path: Path
    location: Path
    origin: str
    run: Path | None = None
    section: dict[str, Any] | None = None
    published: dict[str, Any] | None = None


def find_weights(origin: str) -> ForeignWeights:
    """Finds the weights of a run, a checkpoint, a published folder, or a file, of any scheme.

    For a run or checkpoint these are the averaged weights if there are any. A file in a published
    folder or in a checkpoint gets the metadata of that folder.

    Raises:
        DataError: The location does not exist, the checkpoint is broken, or the folder has no
            weights.
        UsageError: The scheme is unknown.
    """
    location = require_existing(origin)
    if location.is_file():
        folder = location.parent
        published = find_published(folder)
        if published is not None and published.weights == location:
            return _published(published, origin)
        is_of_run = is_checkpoint(folder) and is_run(folder.parent.parent)
        if location.name in _NAMES and is_of_run:
            return _of_run(RunDir(folder.parent.parent), folder, (location.name,), origin)
        return ForeignWeights(_local(location), location, origin)
    published = find_published(location)
    if published is not None and not is_run(location):
        return _published(published, origin)
    return _of_run(*find_checkpoint(location), _NAMES, origin)


@contextmanager
def as_config_error(weights: ForeignWeights) -> Generator[None]:
    """Reports validation errors in its body as errors in the configuration of the weights.

    Raises:
        DataError: A value is invalid; the message has the first.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise _unusable(weights, f"{key}: {first['msg']}" if key else first["msg"]) from None
    except ConfigError as error:
        raise _unusable(weights, error.message) from None


def _unusable(weights: ForeignWeights, reason: str) -> DataError:
    return DataError(
        f"{weights.origin}: invalid configuration: {reason}",
        hint="copy the weights again from their origin, with their configuration",
        code="data.broken_config",
        details={"path": weights.origin},
    )


def _published(tokenizer: PublishedTokenizer, origin: str) -> ForeignWeights:
    tree = tokenizer.config_tree()
    return ForeignWeights(_local(tokenizer.weights), tokenizer.weights, origin, published=tree)


def _of_run(run: RunDir, checkpoint: Path, names: Sequence[str], origin: str) -> ForeignWeights:
    """Weights in the first of `names` that a checkpoint has."""
    manifest = CheckpointManifest.read(checkpoint)
    name = next((name for name in names if name in manifest.files), None)
    if name is None:
        raise DataError(
            f"{checkpoint}: contains no weights of a part {_MODEL!r}",
            hint="use the checkpoint of another run",
            code="data.no_checkpoint",
            details={"path": str(checkpoint)},
        )
    manifest.check(checkpoint, [name])
    section = run.config_tree().get(_MODEL)
    section = section if isinstance(section, dict) else {}
    path = checkpoint / name
    return ForeignWeights(_local(path), path, origin, run=run.root, section=section)


def _local(path: Path) -> Path:
    """Returns the path of a local file, or of the cached copy of a remote one."""
    if not is_remote(path):
        return path
    return FileCache(default_cache_folder()).local_copy(path.parent, [path.name]) / path.name
