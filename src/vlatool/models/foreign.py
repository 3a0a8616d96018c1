"""Where weights are that another program or an earlier run made. Light: reads no tensor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.checkpoint import CheckpointManifest, part_weights
from vlatool.artifacts.published_tokenizer import find_published
from vlatool.artifacts.run_dir import find_checkpoint, is_run
from vlatool.errors import DataError
from vlatool.storage.cache import FileCache, default_cache_folder
from vlatool.storage.uri import existing, is_remote

_MODEL = "model"


@dataclass(frozen=True)
class ForeignWeights:
    """A file of weights and what is known of it.

    Attributes:
        path: On the local disk.
        origin: As it was given.
        section: The `model` section of the run that made it; None for a file or published folder.
        published: The configuration of a published folder; None elsewhere.
    """

    path: Path
    origin: str
    section: dict[str, Any] | None = None
    published: dict[str, Any] | None = None


def find_weights(origin: str) -> ForeignWeights:
    """The weights behind a file, a run, a checkpoint of one, or a published folder, of any scheme.

    Of a run those are its averaged weights where it has them.

    Raises:
        DataError: Nothing is there, a checkpoint is damaged, or a folder holds no weights.
        UsageError: The scheme is unknown.
    """
    location = existing(origin)
    if location.is_file():
        return ForeignWeights(_local(location), origin)
    published = find_published(location)
    if published is not None and not is_run(location):
        return ForeignWeights(_local(published.weights), origin, published=published.config_tree())
    run, checkpoint = find_checkpoint(location)
    manifest = CheckpointManifest.read(checkpoint)
    averaged = part_weights(_MODEL, averaged=True)
    name = averaged if averaged in manifest.files else part_weights(_MODEL)
    if name not in manifest.files:
        raise DataError(
            f"{checkpoint}: holds no weights of a model",
            hint="give another run",
            code="data.no_checkpoint",
            details={"path": str(checkpoint)},
        )
    manifest.check(checkpoint, [name])
    section = run.config_tree().get(_MODEL)
    return ForeignWeights(
        _local(checkpoint / name), origin, section=section if isinstance(section, dict) else {}
    )


def _local(path: Path) -> Path:
    """The file, or its copy in the user's cache."""
    if not is_remote(path):
        return path
    return FileCache(default_cache_folder()).local_copy(path.parent, [path.name]) / path.name
