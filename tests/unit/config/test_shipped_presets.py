"""Every shipped preset resolves against the schema of its folder."""

from pathlib import Path

import pytest

from vlatool.config.resolve import load_config
from vlatool.evaluation.config import RolloutConfig
from vlatool.training.config import TrainConfig
from vlatool.workflows.preprocess import PreprocessConfig

PRESETS = Path(__file__).parents[3] / "presets"
SCHEMAS = {"preprocess": PreprocessConfig, "rollouts": RolloutConfig}
FILES = sorted(PRESETS.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_preset_fits_its_schema(path: Path) -> None:
    folder = path.relative_to(PRESETS).parts[0]
    # A part of a model says nothing of the rest.
    whole = ["diffusion-policy-tiny"] if folder in TrainConfig.preset_sections else []
    load_config(SCHEMAS.get(folder, TrainConfig), presets=[*whole, path.stem])


def test_names_are_unique() -> None:
    names = [path.stem for path in FILES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_preset_begins_with_a_sentence_about_it(path: Path) -> None:
    assert path.read_text().startswith("# ")
