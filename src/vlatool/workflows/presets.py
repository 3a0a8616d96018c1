"""Listing of presets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from vlatool.config.base import ConfigModel, option
from vlatool.config.presets import PresetInfo, builtin_root, list_presets
from vlatool.events import NULL, Reporter
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

    all: bool = option(False, "List every preset, not only the ones to start with.")


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


def presets(config: PresetsConfig | None = None, *, reporter: Reporter = NULL) -> PresetList:
    """Returns the presets to start with, and presets of plugins; with `all`, every preset."""
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
