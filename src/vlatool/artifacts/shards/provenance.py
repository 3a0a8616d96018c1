"""Provenance of a shard folder: preprocessing_config.yaml and processing_metadata.json.

Neither file contains information about the machine or the user. Source: formats/lbm 3.2, 3.3.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from vlatool import __version__
from vlatool.errors import DataError
from vlatool.storage.atomic import write_text
from vlatool.storage.checksummed import read_checksummed, write_checksummed
from vlatool.storage.documents import DocumentError, read_yaml

CONFIG_NAME = "preprocessing_config.yaml"
METADATA_NAME = "processing_metadata.json"


def write_preprocessing_config(folder: Path, options: Mapping[str, Any]) -> None:
    """Writes the options of the data, keys in alphabetical order."""
    write_text(folder / CONFIG_NAME, yaml.safe_dump(dict(options), sort_keys=True))


def read_preprocessing_config(folder: Path) -> dict[str, Any]:
    """Options of a shard folder; unknown keys are kept, of a grouped form the first group.

    Raises:
        DataError: The file is missing or not a mapping.
    """
    path = folder / CONFIG_NAME
    try:
        content: object = read_yaml(path)
    except OSError as error:
        raise DataError.at(
            path,
            f"missing ({error.strerror})",
            hint=f"copy {CONFIG_NAME} to the folder of the manifest",
            code="data.no_preprocessing_config",
        ) from None
    except DocumentError as error:
        raise _config_error(path, error.reason, error.line) from None
    if isinstance(content, dict) and isinstance(content.get(0), dict):
        content = content[0]
    if not isinstance(content, dict):
        raise _config_error(path, "expected a mapping")
    return content


def _config_error(path: Path, reason: str, line: int = 0) -> DataError:
    return DataError(
        f"{path}:{line}: {reason}" if line else f"{path}: {reason}",
        hint="copy it again from the original data",
        code="data.broken_config",
        details={"path": str(path)},
    )


def write_processing_metadata(
    folder: Path,
    *,
    started: datetime,
    counts: Mapping[str, Any],
    arguments: Mapping[str, Any],
    episodes: list[str],
) -> None:
    """Writes time, version, options and sample counts of the run that wrote the data."""
    now = datetime.now(UTC)
    document = {
        "metadata_version": "1.0",
        "created_at": now.isoformat(timespec="seconds"),
        "command_line": {"script_name": "vlatool preprocess", "arguments": dict(arguments)},
        "environment": {"vlatool": __version__},
        "source_data": {"num_episodes": len(episodes), "episodes": episodes},
        "processing": {
            "timestamp_start": started.isoformat(timespec="seconds"),
            "timestamp_end": now.isoformat(timespec="seconds"),
            **counts,
        },
    }
    write_checksummed(folder / METADATA_NAME, document)


def read_processing_metadata(folder: Path) -> dict[str, Any]:
    """Content of processing_metadata.json; empty if it does not exist.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / METADATA_NAME
    try:
        return read_checksummed(path)
    except (DocumentError, OSError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        reason = error.reason if isinstance(error, DocumentError) else error.strerror
        raise DataError.at(
            path, reason, hint="copy it again from the original data", code="data.broken_metadata"
        ) from None
