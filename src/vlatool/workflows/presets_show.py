"""Content of one preset, with the files that it includes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vlatool.config.base import ConfigModel, check_required, required_field
from vlatool.config.coerce import plain
from vlatool.config.presets import PresetInfo, display_path, preset_info
from vlatool.config.resolve import STRICT, LayerReader, values_to_yaml
from vlatool.events import NULL, Reporter
from vlatool.training.config import TrainConfig


class PresetsShowConfig(ConfigModel):
    """Options of `vlatool presets show`."""

    name: str = required_field("", "Name of a preset, or the path of a YAML file.")


@dataclass(frozen=True)
class ShownPreset:
    """A preset with its values, included files merged, in the section that it fills."""

    preset: PresetInfo
    values: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The preset as a JSON-serializable mapping."""
        return {**asdict(self.preset), "path": str(self.preset.path), "values": self.values}

    def text(self) -> str:
        """YAML for `--config`, after comments with the name and the description."""
        head = f"# {display_path(self.preset.path)}"
        text = f"{head}: {self.preset.description}" if self.preset.description else head
        return f"{text}\n{values_to_yaml(self.values)}"


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
