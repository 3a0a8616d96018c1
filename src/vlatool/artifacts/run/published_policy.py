"""Published layout of a policy: four configuration files, statistics, and weights.

Source: formats/published-runs 1, 3, 5.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vlatool.artifacts.run.format import RunDir
from vlatool.artifacts.shards import provenance
from vlatool.artifacts.stats.format import STATS_NAME
from vlatool.storage.atomic import write_bytes, write_text

_CONFIG, _MODEL = "config.yaml", "config_model.yaml"
_NORMALIZER, _PROCESSOR = "config_normalizer.yaml", "config_processor.yaml"
WEIGHTS, AVERAGE = "checkpoints/checkpoint_1.pt", "checkpoints/ema_1.pt"
CHECKPOINT_NUMBER = 1
FILES = (
    _CONFIG,
    _MODEL,
    _NORMALIZER,
    _PROCESSOR,
    STATS_NAME,
    provenance.CONFIG_NAME,
    WEIGHTS,
    AVERAGE,
)


def write_published_config(folder: Path, tree: Mapping[str, Any], run: RunDir) -> None:
    """Writes all but the weights.

    Args:
        folder: Existing folder.
        tree: The whole configuration, with published keys.
        run: Run whose statistics and preprocessing options are copied.
    """
    data = tree["data"]
    files = {
        _CONFIG: tree,
        _MODEL: tree["model"],
        _NORMALIZER: data["normalization"],
        _PROCESSOR: data,
    }
    for name, content in files.items():
        write_text(folder / name, yaml.safe_dump(content, sort_keys=True, allow_unicode=True))
    for path in (run.stats, run.options):
        write_bytes(folder / path.name, path.read_bytes())
