"""Listings of plugin registries and versions."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from vlatool import __version__
from vlatool.plugins import DATA_KINDS, FORMATS, MODELS, SINKS
from vlatool.results import Result, columns


@dataclass(frozen=True)
class PluginList(Result):
    """All entries of the registries with the name of their registry, such as `model type`."""

    rows_key: ClassVar[str] = "plugins"

    plugins: Sequence[Mapping[str, Any]]

    def lines(self) -> list[str]:
        rows: list[tuple[object, ...]] = []
        for row in self.plugins:
            state = row["error"] or "ok"
            rows.append((row["registry"], row["name"], row["origin"], state, row["about"]))
        return [columns(rows)]


def plugins() -> PluginList:
    """Returns the entries of all registries with their origins and import errors."""
    rows: list[Mapping[str, Any]] = []
    for registry in (FORMATS, SINKS, DATA_KINDS, MODELS):
        for info in registry.entries():
            rows.append({"registry": registry.label, **asdict(info)})
    return PluginList(rows)


@dataclass(frozen=True)
class VersionInfo(Result):
    """Versions for a bug report."""

    version: str
    python: str
    platform: str

    def lines(self) -> list[str]:
        return [f"vlatool {self.version} (Python {self.python})"]


def version() -> VersionInfo:
    return VersionInfo(__version__, platform.python_version(), platform.platform())
