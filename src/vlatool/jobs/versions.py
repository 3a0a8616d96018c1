"""Versions of the locations that a run reads, in the options of its record."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlatool.errors import UsageError
from vlatool.storage.uri import version_of

# Option that maps a location to the version that was read, where its storage names versions.
_VERSIONS = "versions"


def versions_of(paths: Iterable[Path]) -> dict[str, Any]:
    """The option `versions` of a record; empty if storage names no versions."""
    versions = {
        str(path).replace(f"@{version}", "", 1): version
        for path in paths
        if (version := version_of(path))
    }
    return {_VERSIONS: versions} if versions else {}


def without_versions(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a record without `versions`."""
    return {key: value for key, value in options.items() if key != _VERSIONS}


def changed_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Locations whose version differs between two records, sorted."""
    old, new = before.get(_VERSIONS) or {}, now.get(_VERSIONS) or {}
    return sorted(path for path in old.keys() & new.keys() if old[path] != new[path])


def check_versions(
    before: Mapping[str, Any],  # options of the run that is resumed
    now: Mapping[str, Any],  # options of this run
    hint: str = "start from scratch with --overwrite",  # what else can be done
) -> None:
    """Raises an error if a source has another version than when the run started."""
    for path in changed_versions(before, now):
        old = before[_VERSIONS][path]
        raise UsageError(
            f"{path}: has changed since the run started, which read {old}",
            hint=f"resume with owner/name@{old}, or {hint}",
            code="usage.source_moved",
            details={"place": path, "before": old, "now": now[_VERSIONS][path]},
        )
