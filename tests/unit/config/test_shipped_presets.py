"""Shipped presets: each is valid for the schema of its folder."""

from pathlib import Path
from typing import Any

import pytest

from vlatool.config.resolve import Override, load_config
from vlatool.evaluation.config import RolloutConfig
from vlatool.models.future_vla.token_ids import TINY_RESERVED
from vlatool.recordings.mapping import RecordingMapping
from vlatool.training.config import TrainConfig
from vlatool.workflows.build_dataset import BuildDatasetConfig
from vlatool.workflows.curate import CurateConfig
from vlatool.workflows.preprocess import PreprocessConfig

PRESETS = Path(__file__).parents[3] / "presets"
SCHEMAS = {
    "curation": CurateConfig,
    "mappings": RecordingMapping,
    "preprocess": PreprocessConfig,
    "rollouts": RolloutConfig,
    "samples": BuildDatasetConfig,
}
FILES = sorted(PRESETS.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_preset_fits_its_schema_and_begins_with_a_sentence_about_it(path: Path) -> None:
    folder, *below = path.relative_to(PRESETS).parts
    # A part of a model, or a section without a type, needs another preset for the rest.
    published = path.with_stem(f"{path.stem}-published")  # included by the recommended one
    texts = [file.read_text() for file in (path, published) if file.exists()]
    names_type = len(below) == 1 and any("\ntype: " in text for text in texts)
    is_part = folder in TrainConfig.preset_sections.keys() - SCHEMAS.keys() and not names_type
    complete = ["diffusion-policy-tiny"] if is_part else []
    load_config(SCHEMAS.get(folder, TrainConfig), presets=[*complete, path.stem])

    assert path.read_text().startswith("# ")


def test_names_are_unique() -> None:
    names = [path.stem for path in FILES]
    assert len(set(names)) == len(names)


def test_a_key_of_the_sink_that_a_preset_names_can_be_typed() -> None:
    typed = [Override("sink.jpeg_quality", "90", "--jpeg-quality")]
    sink = load_config(PreprocessConfig, presets=["titok-images"], overrides=typed).config.sink
    assert (sink.type, sink.jpeg_quality) == ("image-shards", 90)


def test_keys_that_two_sinks_have_stay_when_another_sink_is_typed() -> None:
    typed = [Override("sink.type", "lbm", "--sink")]
    sink: Any = load_config(
        PreprocessConfig, presets=["world-windows"], overrides=typed
    ).config.sink
    assert (sink.type, sink.future_lowdim_steps, sink.max_padding_right) == ("lbm", 15, 15)


def test_presets_of_the_tiny_future_vla_fit_together() -> None:
    windows: Any = load_config(PreprocessConfig, presets=["future-vla-tiny-data"]).config.sink
    tokenizer: Any = load_config(TrainConfig, presets=["future-vla-tiny-tokenizer"]).config
    first, run = (
        load_config(TrainConfig, presets=[name]).config
        for name in ("future-vla-tiny-first", "future-vla-tiny")
    )
    for config in (first, run):
        model: Any = config.model
        assert sum(model.compress) == windows.past_steps
    assert {*windows.resize_images_size} == {tokenizer.data.preprocessing.crop_size}
    # Codes of both, and FAST with its default of 1024 ids, have room in the tiny text tokenizer.
    assert tokenizer.model.codebook_size + 1024 <= TINY_RESERVED
