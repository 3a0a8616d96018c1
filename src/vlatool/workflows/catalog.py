"""Listings of presets, plugin registries and versions."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from vlatool import __version__
from vlatool.config.base import ConfigModel, option
from vlatool.config.presets import PresetInfo, builtin_root, list_presets
from vlatool.events import NULL, Reporter
from vlatool.plugins import DATA_KINDS, FORMATS, MODELS, SINKS
from vlatool.results import UNLISTED, Result, columns

# Presets to start with, in the order in which they are listed: your own data, from recordings to a
# policy, then the first step of both published systems.
FIRST_PRESETS = (
    "policy-tiny-data",
    "policy-tiny",
    "policy-small-data",
    "policy-small",
    "policy-clip-data",
    "policy-clip",
    "policy-vlm-data",
    "policy-vlm",
    "lbm-1past-14future",
    "future-vla",
)


class PresetsConfig(ConfigModel):
    """Options of `vlatool presets`."""

    all: bool = option(False, "List every preset, not only those to start with.")


@dataclass(frozen=True)
class PresetList(Result):
    """Presets that `--preset` accepts."""

    rows_key: ClassVar[str] = "presets"

    presets: Sequence[PresetInfo]
    hidden: int = field(default=0, metadata=UNLISTED)  # number of other presets

    def lines(self) -> list[str]:
        rows = [(preset.name, preset.kind, preset.description) for preset in self.presets]
        lines = [columns(rows)]
        if self.hidden:
            lines.append(f"{self.hidden} more: vlatool presets --all")
        return lines


@dataclass(frozen=True)
class PluginList(Result):
    """All entries of the registries with the name of their registry, such as `model type`."""

    rows_key: ClassVar[str] = "plugins"

    plugins: Sequence[Mapping[str, Any]]

    def lines(self) -> list[str]:
        keys = ("registry", "name", "origin", "error", "about")
        rows = ({**row, "error": row["error"] or "ok"} for row in self.plugins)
        return [columns([row[key] for key in keys] for row in rows)]


def presets(config: PresetsConfig | None = None, *, reporter: Reporter = NULL) -> PresetList:
    """Returns the presets to start with and those of plugins; with `all` every preset."""
    del reporter
    known = list_presets()
    if config is not None and config.all:
        return PresetList(sorted(known, key=lambda preset: (preset.kind, preset.name)))
    by_name = {preset.name: preset for preset in known}
    chosen = [by_name[name] for name in FIRST_PRESETS if name in by_name]
    root = builtin_root()
    for preset in known:
        if preset not in chosen and not preset.path.is_relative_to(root):
            chosen.append(preset)
    return PresetList(chosen, len(known) - len(chosen))


def plugins() -> PluginList:
    """Returns the entries of all registries with their origins and import errors."""
    return PluginList(
        [
            {"registry": registry.label, **asdict(info)}
            for registry in (FORMATS, SINKS, DATA_KINDS, MODELS)
            for info in registry.entries()
        ]
    )


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
