"""How a folder of training shards was made, as far as its files tell."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.provenance import METADATA_NAME
from vlatool.inspection.text import pairs
from vlatool.jobs.record import OutputRecord, read_record

_SHOWN_OPTIONS = (
    "stride",
    "max_padding_left",
    "max_padding_right",
    "padding_strategy",
    "resize_images_size",
    "image_resizing_method",
    "jpeg_quality",
    "samples_per_shard",
    "seed",
)


@dataclass(frozen=True)
class Origin:
    """Where the samples come from.

    Attributes:
        format: Format of the raw data.
        sources: Names of the raw sources.
        version: Version of vlatool.
        created_at: When, ISO 8601.
        is_complete: Whether the run came to its end; None when that was not recorded.
        episodes: Episodes it holds.
        failures: Episodes that are not in it because they are broken.
        dropped: Reason to number of samples that were dropped.
        options: preprocessing_config.yaml.
    """

    format: str
    sources: tuple[str, ...]
    version: str
    created_at: str
    is_complete: bool | None
    episodes: int | None
    failures: int
    dropped: Mapping[str, int]
    options: Mapping[str, Any]


def read_origin(folder: Path, options: Mapping[str, Any]) -> Origin:
    """Takes together the options, the run record and the metadata of a shard folder."""
    record = read_record(folder.parent if folder.name in ("shards", "episodes") else folder)
    metadata = _metadata(folder)
    result = (record.result or {}) if record else {}
    return Origin(
        format=str(options.get("type") or ""),
        sources=tuple(map(str, list_of(options, "source_episodes"))),
        version=str(_mapping(metadata, "environment").get("vlatool") or ""),
        created_at=str(metadata.get("created_at") or ""),
        is_complete=_is_complete(record),
        episodes=result.get("episodes"),
        failures=len(result.get("failures") or ()),
        dropped=dict(result.get("dropped") or {}),
        options=options,
    )


def _is_complete(record: OutputRecord | None) -> bool | None:
    return None if record is None else record.result is not None


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(
            (folder / METADATA_NAME).read_text(encoding="utf-8"), parse_constant=lambda _: None
        )
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def origin_block(origin: Origin) -> str:
    """The origin for people."""
    options = origin.options
    rows = pairs(
        {
            "from": f"{', '.join(origin.sources) or 'unknown'} ({origin.format or 'unknown'})",
            "episodes": "" if origin.episodes is None else f"{origin.episodes} in it",
            "broken": f"{origin.failures} episodes left out" if origin.failures else "",
            "dropped": [f"{count} samples: {why}" for why, count in origin.dropped.items()],
            "with": f"vlatool {origin.version}" if origin.version else "",
            "at": origin.created_at,
            **{key: _option_text(options[key]) for key in _SHOWN_OPTIONS if key in options},
        }
    )
    return "How it was made\n" + "\n".join(f"  {line}" for line in rows.split("\n"))


def _option_text(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def list_of(tree: Mapping[str, Any], key: str) -> list[Any]:
    """The list under `key`; empty where there is none."""
    value = tree.get(key)
    return value if isinstance(value, list) else []


def _mapping(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}
