"""Local folder of a run, and the locations of its copies."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from vlatool.errors import UsageError
from vlatool.storage.remote import is_writable
from vlatool.storage.uri import is_remote, location
from vlatool.training.config import TrainConfig

Run = TypeVar("Run", bound=TrainConfig)


def with_local_folder(config: Run) -> Run:
    """The config with a local run folder: a remote one becomes the location of its copy."""
    if is_remote(location(config.save_path)):
        if config.remote_sync not in (None, config.save_path):
            raise UsageError(
                f"save_path is {config.save_path} and remote_sync is {config.remote_sync}",
                hint="give the location once: as --remote-sync, with a local --output",
                code="usage.two_locations",
            )
        default = TrainConfig.model_fields["save_path"].default
        update = {"save_path": default, "remote_sync": config.save_path}
        config = config.model_copy(update=update)
    for key in ("remote_sync", "remote_sync_fixed_path"):
        text = getattr(config, key)
        if text is not None:
            _check_writable(location(text))
    return config


def new_name(config: TrainConfig) -> str:
    """Name of a run folder that is not named."""
    now = datetime.now(UTC).strftime("%Y_%m_%d-%H_%M_%S")
    return f"{now}-model_{config.model.type}-lr_{config.hparams.lr}"  # pyright: ignore[reportAttributeAccessIssue]


def fixed_name(run_id: str) -> str:
    """Name of the second copy of a run: a UUID of version 4 that does not change on resume.

    Source: reference/training 1.7.
    """
    return str(UUID(bytes=hashlib.sha256(run_id.encode()).digest()[:16], version=4))


def _check_writable(path: Path) -> None:
    """Raises UsageError if a location has a scheme that is only read."""
    scheme = str(path).partition("://")[0]
    if is_remote(path) and not is_writable(scheme):
        raise UsageError.at(
            path,
            f"{scheme}:// can only be read, a run cannot be copied there",
            hint="choose a bucket, such as s3://bucket/runs, or a folder",
            code="usage.unsupported_scheme",
        )
