"""What is available here: presets, and everything in the registries."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlatool.config.presets import PresetInfo, list_presets
from vlatool.plugins import DATA_KINDS, FORMATS, MODELS, SINKS, PluginInfo


@dataclass(frozen=True)
class PresetList:
    """The presets that `--preset` takes."""

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
    """Everything in the registries, each with what it is: `format`, `model type` and so on."""

    plugins: Sequence[tuple[str, PluginInfo]]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping per entry."""
        return ({"registry": noun, **asdict(info)} for noun, info in self.plugins)

    def document(self) -> dict[str, Any]:
        """All entries."""
        return {"plugins": list(self.rows())}

    def text(self) -> str:
        """One line per entry."""
        return table(
            [(noun, one.name, one.origin, one.error or "ok") for noun, one in self.plugins]
        )


def presets() -> PresetList:
    """Every preset of this installation and of its plugins."""
    return PresetList(list_presets())


def plugins() -> PluginList:
    """Everything in the registries, with where it comes from and whether it works."""
    registries = (FORMATS, SINKS, DATA_KINDS, MODELS)
    return PluginList([(one.label, info) for one in registries for info in one.entries()])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns; the last one is as long as it is."""
    if not rows:
        return "none"
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
