"""How a shard folder was made: preprocessing_config.yaml and processing_metadata.json.

Nothing here tells about the machine or the user. Source: lbm-data 3.13, 3.14.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from vlatool import __version__
from vlatool.errors import DataError
from vlatool.storage.atomic import write_json, write_text

CONFIG_NAME = "preprocessing_config.yaml"
METADATA_NAME = "processing_metadata.json"


def write_preprocessing_config(folder: Path, options: Mapping[str, Any]) -> None:
    """Writes the options that shaped the data, keys in alphabetical order."""
    write_text(folder / CONFIG_NAME, yaml.safe_dump(dict(options), sort_keys=True))


def read_preprocessing_config(folder: Path) -> dict[str, Any]:
    """The options beside a manifest; unknown keys are kept, a grouped form yields its first.

    Raises:
        DataError: The file is missing or not a mapping.
    """
    path = folder / CONFIG_NAME
    try:
        content: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: missing ({error.strerror})",
            hint=f"{CONFIG_NAME} belongs beside the manifest; copy it there",
            code="data.no_preprocessing_config",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML: {error}", code="data.broken_config") from None
    if isinstance(content, dict) and isinstance(content.get(0), dict):
        content = content[0]
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a mapping", code="data.broken_config")
    return content


def write_processing_metadata(
    folder: Path,
    *,
    started: datetime,
    counts: Mapping[str, Any],
    arguments: Mapping[str, Any],
    episodes: list[str],
) -> None:
    """Writes when and by what version the data were made, and how many samples came of it."""
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
    write_json(folder / METADATA_NAME, document)


def read_processing_metadata(folder: Path) -> dict[str, Any]:
    """When and by what the data were made; empty where that is not recorded."""
    try:
        text = (folder / METADATA_NAME).read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
