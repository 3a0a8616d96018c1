"""What is available here: presets, dataset formats, model types."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlatool.config.presets import PresetInfo, list_presets
from vlatool.plugins import FORMATS, MODELS


@dataclass(frozen=True)
class PresetList:
    """The presets that `--preset` takes."""

    presets: Sequence[PresetInfo]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping per preset."""
        for preset in self.presets:
            yield {
                "name": preset.name,
                "kind": str(preset.kind),
                "path": str(preset.path),
                "description": preset.description,
            }

    def document(self) -> dict[str, Any]:
        """All presets."""
        return {"presets": list(self.rows())}

    def text(self) -> str:
        """One line per preset, by kind."""
        rows = sorted(self.rows(), key=lambda row: (row["kind"], row["name"]))
        return table([(row["name"], row["kind"], row["description"]) for row in rows])


@dataclass(frozen=True)
class PluginRow:
    """One entry of a registry.

    Attributes:
        registry: `format` or `model type`.
        name: What users type.
        target: `module:object`.
        origin: `vlatool`, or the distribution that brings it.
        error: Why it cannot be used; empty when it can.
    """

    registry: str
    name: str
    target: str
    origin: str
    error: str


@dataclass(frozen=True)
class PluginList:
    """Everything in the registries."""

    plugins: Sequence[PluginRow]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping per entry."""
        return (asdict(row) for row in self.plugins)

    def document(self) -> dict[str, Any]:
        """All entries."""
        return {"plugins": list(self.rows())}

    def text(self) -> str:
        """One line per entry."""
        return table([(r.registry, r.name, r.origin, r.error or "ok") for r in self.plugins])


def presets() -> PresetList:
    """Every preset of this installation and of its plugins."""
    return PresetList(list_presets())


def plugins() -> PluginList:
    """Every dataset format and model type, with where it comes from and whether it works."""
    rows = [
        PluginRow(registry.noun, info.name, info.target, info.origin, info.error)
        for registry in (FORMATS, MODELS)
        for info in registry.entries()
    ]
    return PluginList(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns; the last one is as long as it is."""
    if not rows:
        return "none"
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
