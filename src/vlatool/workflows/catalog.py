"""Listings of presets, plugin registries and versions."""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlatool import __version__
from vlatool.config.presets import PresetInfo, list_presets
from vlatool.plugins import DATA_KINDS, FORMATS, MODELS, SINKS, PluginInfo


@dataclass(frozen=True)
class PresetList:
    """The presets that `--preset` accepts."""

    presets: Sequence[PresetInfo]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping per preset."""
        return ({**asdict(preset), "path": str(preset.path)} for preset in self.presets)

    def document(self) -> dict[str, Any]:
        """All presets."""
        return {"presets": list(self.rows())}

    def text(self) -> str:
        """One line per preset, by kind."""
        rows = sorted(self.rows(), key=lambda row: (row["kind"], row["name"]))
        return table([(row["name"], row["kind"], row["description"]) for row in rows])


@dataclass(frozen=True)
class PluginList:
    """All entries of the registries with the name of their registry, such as `model type`."""

    plugins: Sequence[tuple[str, PluginInfo]]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping per entry."""
        return ({"registry": registry, **asdict(info)} for registry, info in self.plugins)

    def document(self) -> dict[str, Any]:
        """All entries."""
        return {"plugins": list(self.rows())}

    def text(self) -> str:
        """One line per entry."""
        return table(
            [
                (registry, info.name, info.origin, info.error or "ok", info.about)
                for registry, info in self.plugins
            ]
        )


def presets() -> PresetList:
    """Returns the presets of this installation and of its plugins."""
    return PresetList(list_presets())


def plugins() -> PluginList:
    """Returns the entries of all registries with their origins and import errors."""
    registries = (FORMATS, SINKS, DATA_KINDS, MODELS)
    return PluginList(
        [(registry.label, info) for registry in registries for info in registry.entries()]
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as left-aligned columns; the last column is not padded."""
    if not rows:
        return "none"
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


class VersionInfo:
    """Versions for a bug report."""

    def document(self) -> dict[str, Any]:
        """Versions by name."""
        return {
            "version": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        }

    def text(self) -> str:
        """One line of text."""
        return f"vlatool {__version__} (Python {platform.python_version()})"


def version() -> VersionInfo:
    """Versions of vlatool, Python and the system."""
    return VersionInfo()
