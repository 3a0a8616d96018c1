"""The published training command of FUTURE-VLA, typed with its first words changed."""

import shlex
from typing import Any

import pytest
import yaml

from tests.surface.invoke import run_vlatool
from vlatool.config.overrides import parse_override
from vlatool.config.resolve import Resolved, load_config
from vlatool.errors import ConfigError
from vlatool.training.config import TrainConfig

PUBLISHED = shlex.split("""
    --model Qwen3vl+dinov3 --train_type full --freeze_vit false --freeze_aligner false
    --freeze_llm false --trainable_parameters_regex ".*" --dataset A/data --torch_dtype bfloat16
    --num_train_epochs 2 --per_device_train_batch_size 8 --learning_rate 1e-4 --warmup_steps 1000
    --save_steps 5000 --logging_steps 100 --dataloader_num_workers 10 --output_dir out/vla
    --model_author me --model_name vla --ddp_find_unused_parameters true
    --gradient_checkpointing true --gradient_checkpointing_kwargs '{"use_reentrant": false}'
""")
# Keys of the preset that the command line does not have, and those that follow from its place.
OF_THE_COMMAND = {"data.samples", "init_from", "save_path", "name"}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        values |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return values


def resolved(*options: str) -> Resolved[TrainConfig]:
    """The configuration of options `key=value` of the published command."""
    return load_config(TrainConfig, overrides=[parse_override(option) for option in options])


def test_published_command_is_the_preset() -> None:
    preset = load_config(TrainConfig, presets=["future-vla-libero"]).config.model_dump(mode="json")
    code, stdout = run_vlatool("resolve-config", *PUBLISHED)
    assert code == 0
    typed = flat(yaml.safe_load(stdout))
    differences = {key: value for key, value in typed.items() if flat(preset).get(key) != value}
    assert differences.keys() == OF_THE_COMMAND
    assert differences["data.samples"] == ["A/data"]
    assert (differences["save_path"], differences["name"]) == ("out", "vla")


def test_options_without_effect_have_a_reason() -> None:
    ignored = resolved("train_type=full", "torch_dtype=bfloat16", "model_name=vla").ignored
    assert ignored["model.model_name"].startswith("it names the model in")
    assert ignored["model.torch_dtype"].startswith("weights and optimizer keep float32")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["freeze_vit=true", "freeze_llm=true"], {"freeze_vision": True, "freeze_language": True}),
        (["freeze_vit=true", "trainable_parameters_regex=.*"], {"freeze_vision": False}),
        (["train_type=lora"], {"freeze_vision": True, "freeze_mergers": True}),
        (["train_type=lora", "freeze_vit=false"], {"freeze_vision": False}),
        (["train_type=lora", "model.lora.rank=4"], {"freeze_mergers": True}),
    ],
)
def test_trained_parts_of_the_published_options(
    options: list[str], expected: dict[str, bool]
) -> None:
    model = resolved("train_type=full", *options).config.model.model_dump()
    assert {key: model[key] for key in expected} == expected


def test_checkpoint_to_resume_from_replaces_the_model() -> None:
    config = resolved("train_type=full", "init_from=composed", "resume_from_checkpoint=c").config
    assert (config.init_from, config.init_weights_only) == ("c", False)


@pytest.mark.parametrize(
    "option",
    [
        "train_type=longlora",
        "torch_dtype=float16",
        "trainable_parameters_regex=visual",
        "output_dir=..",
    ],
)
def test_option_that_contradicts_what_runs_is_an_error(option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved("train_type=full", option) if "train_type" not in option else resolved(option)
    assert caught.value.code == "config.refused"
    assert "--" in caught.value.hint
