"""Where weights are that another program or an earlier run made. Light: reads no tensor."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlatool.artifacts.checkpoint import CheckpointManifest, is_checkpoint, part_weights
from vlatool.artifacts.published_tokenizer import PublishedTokenizer, find_published
from vlatool.artifacts.run_dir import RunDir, find_checkpoint, is_run
from vlatool.errors import ConfigError, DataError
from vlatool.storage.cache import FileCache, default_cache_folder
from vlatool.storage.uri import is_remote, require_existing

_MODEL = "model"
# What a checkpoint has of it, the best first.
_NAMES = (part_weights(_MODEL, averaged=True), part_weights(_MODEL))


@dataclass(frozen=True)
class ForeignWeights:
    """A file of weights and what is known of it.

    Attributes:
        path: On the local disk.
        location: Where it is; the same, or remote.
        origin: As it was given.
        run: The run that made it; None for a lone file or a published folder.
        section: The `model` section of that run.
        published: The configuration of a published folder; None elsewhere.
    """

    path: Path
    location: Path
    origin: str
    run: Path | None = None
    section: dict[str, Any] | None = None
    published: dict[str, Any] | None = None


def find_weights(origin: str) -> ForeignWeights:
    """The weights behind a file, a run, a checkpoint of one, or a published folder, of any scheme.

    Of a run those are its averaged weights where it has them. A file that is part of a published
    folder or of a checkpoint is what they say it is.

    Raises:
        DataError: Nothing is there, a checkpoint is damaged, or a folder holds no weights.
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
def as_config_error(found: ForeignWeights) -> Generator[None]:
    """Within it, values that no model can have are told as damage of the weights' configuration.

    Raises:
        DataError: There are some; names the first.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise _unusable(found, f"{key}: {first['msg']}" if key else first["msg"]) from None
    except ConfigError as error:
        raise _unusable(found, error.message) from None


def _unusable(found: ForeignWeights, reason: str) -> DataError:
    return DataError(
        f"{found.origin}: its configuration cannot be used: {reason}",
        hint="copy it again from where it was made, with its configuration",
        code="data.broken_config",
        details={"path": found.origin},
    )


def _published(found: PublishedTokenizer, origin: str) -> ForeignWeights:
    tree = found.config_tree()
    return ForeignWeights(_local(found.weights), found.weights, origin, published=tree)


def _of_run(run: RunDir, checkpoint: Path, names: Sequence[str], origin: str) -> ForeignWeights:
    """The first of some files that a checkpoint has."""
    manifest = CheckpointManifest.read(checkpoint)
    name = next((name for name in names if name in manifest.files), None)
    if name is None:
        raise DataError(
            f"{checkpoint}: holds no weights of a model",
            hint="give another run",
            code="data.no_checkpoint",
            details={"path": str(checkpoint)},
        )
    manifest.check(checkpoint, [name])
    section = run.config_tree().get(_MODEL)
    told = section if isinstance(section, dict) else {}
    path = checkpoint / name
    return ForeignWeights(_local(path), path, origin, run=run.root, section=told)


def _local(path: Path) -> Path:
    """The file, or its copy in the user's cache."""
    if not is_remote(path):
        return path
    return FileCache(default_cache_folder()).local_copy(path.parent, [path.name]) / path.name
