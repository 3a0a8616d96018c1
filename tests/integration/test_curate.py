"""`curate` finds planted defects, and `preprocess` leaves them out."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from vlatool.artifacts.curation.format import FIGURES, CuratedEpisode, read_curation
from vlatool.config.resolve import Override, load_config
from vlatool.errors import ConfigError, DataError, UsageError
from vlatool.sinks.curation import CurationSink
from vlatool.testing.sinks import check_sink
from vlatool.workflows.curate import CurateConfig, CurateResult, KeepRule, curate, judge
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.verify import InspectConfig, VerifyConfig, inspect, verify
from vlatool.world.defects import DEFECTS

# The figure that has to be worst, or above its limit, for each defect.
FOUND_BY = {
    "early-release": "other_instruction",
    "wrong-object": "other_instruction",
    "wrong-instruction": "other_instruction",
    "tremor": "reversal",
    "late-actions": "action_lag",
    "pause": "idle_share",
    "truncated": "outlier_distance",
    "swapped-cameras": "swapped_cameras",
    "frozen-camera": "frozen_share",
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of which half have one of the defects."""
    folder = tmp_path_factory.mktemp("planted") / "raw"
    shares = [f"{name}:0.05" for name in DEFECTS]
    sample(SampleConfig(layout="libero", output=str(folder), episodes=90, seed=3, defects=shares, size="small"))
    return folder


def curated(raw: Path, output: Path, *presets: str, **options: Any) -> CurateResult:
    keys = {"sources": [str(raw)], "output": str(output), "workers": 1, **options}
    overrides = [Override(key.replace("__", "."), value, "test") for key, value in keys.items()]
    return curate(load_config(CurateConfig, presets=presets, overrides=overrides).config)


@pytest.fixture(scope="module")
def output(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated") / "out"
    curated(raw, folder)
    return folder


def test_the_sink_fulfills_its_contract() -> None:
    check_sink(CurationSink, {})


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_figure_tells_episodes_with_a_defect_from_others(
    raw: Path, output: Path, defect: str
) -> None:
    name = FOUND_BY[defect]
    truth = json.loads((raw / "defects.json").read_text())["episodes"]
    bad, good = [], []
    for number, episode in enumerate(read_curation(output).episodes):
        value = FIGURES[name].bad * episode.figures.get(name, 0.0)
        planted = truth[str(number)]
        (bad if planted == defect else good if not planted else []).append(value)
    assert bad
    assert np.mean(np.array(bad)[:, None] > np.array(good)) > 0.9
