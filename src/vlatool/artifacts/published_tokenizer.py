"""Published layout of a visual tokenizer: a configuration and a flat file of weights.

Two forms: config.yaml with pytorch_model.bin, as training writes it, and config.json with
model.safetensors, as on the hub. Source: reference/titok 7.1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlatool.errors import DataError
from vlatool.storage.atomic import write_text
from vlatool.storage.documents import read_json, read_yaml

CONFIG, WEIGHTS = "config.yaml", "pytorch_model.bin"
HUB_CONFIG, HUB_WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class PublishedTokenizer:
    """Paths of the two files."""

    config: Path
    weights: Path

    def config_tree(self) -> dict[str, Any]:
        """Tree of the configuration.

        Raises:
            DataError: It is broken.
        """
        try:
            read = read_json if self.config.suffix == ".json" else read_yaml
            content = read(self.config)
        except (OSError, ValueError) as error:
            raise self._broken(error) from None
        if not isinstance(content, dict):
            raise self._broken("not a mapping")
        return content

    def _broken(self, reason: object) -> DataError:
        return DataError(
            f"{self.config}: {reason}",
            hint="copy the folder again",
            code="data.broken_config",
            details={"path": str(self.config)},
        )


def find_published(folder: Path) -> PublishedTokenizer | None:
    """The two files of a published folder; None if one is missing."""
    pairs = ((CONFIG, WEIGHTS), (HUB_CONFIG, HUB_WEIGHTS))
    candidates = [(folder / config, folder / weights) for config, weights in pairs]
    complete = [pair for pair in candidates if all(path.is_file() for path in pair)]
    return PublishedTokenizer(*complete[0]) if complete else None


def write_published_config(folder: Path, tree: dict[str, Any]) -> PublishedTokenizer:
    """Writes config.yaml into an existing folder; returns the paths of config and weights."""
    write_text(folder / CONFIG, yaml.safe_dump(tree, sort_keys=False))
    return PublishedTokenizer(folder / CONFIG, folder / WEIGHTS)
