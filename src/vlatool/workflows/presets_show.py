"""Content of one preset, with the files that it includes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlatool.config.base import ConfigModel, check_required, required_field
from vlatool.config.explain import values_to_yaml
from vlatool.config.layers import STRICT, LayerReader
from vlatool.config.presets import PresetInfo, display_path, preset_info
from vlatool.config.tree import plain
from vlatool.events import NULL, Reporter
from vlatool.results import MERGED, Result
from vlatool.training.config import TrainConfig


class PresetsShowConfig(ConfigModel):
    """Options of `vlatool presets show`."""

    name: str = required_field("", "Name of a preset, or the path of a YAML file.")


@dataclass(frozen=True)
class ShownPreset(Result):
    """A preset with its values, included files merged, in the section that it fills."""

    preset: PresetInfo = field(metadata=MERGED)
    values: Mapping[str, Any]

    def lines(self) -> list[str]:
        """YAML for `--config`, after comments with the name and the description."""
        head = f"# {display_path(self.preset.path)}"
        text = f"{head}: {self.preset.description}" if self.preset.description else head
        return [text, values_to_yaml(self.values)]


def presets_show(config: PresetsShowConfig, *, reporter: Reporter = NULL) -> ShownPreset:
    """Returns a preset.

    Raises:
        UsageError: The name is missing or unknown.
        ConfigError: A file cannot be read.
    """
    del reporter
    check_required(config, "vlatool presets show NAME; `vlatool presets` lists the names")
    reader = LayerReader(TrainConfig.preset_sections, None, STRICT)
    tree = reader.read([config.name], (), ()).trees[0]
    return ShownPreset(preset_info(config.name), plain(tree))
