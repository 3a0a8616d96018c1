"""Errors, warnings and derived values of training configurations."""

from typing import Any

import pytest

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from vlatool.config.resolve import Resolved, load_config, parse_override
from vlatool.config.rules import check_rules, explicit_keys, violations
from vlatool.errors import ConfigError
from vlatool.training.config import TrainConfig


def load(*keys: str, preset: str = "diffusion-policy-tiny") -> Resolved[TrainConfig]:
    """Loads a preset with keys over it."""
    return load_config(TrainConfig, presets=[preset], overrides=[parse_override(k) for k in keys])


def violated_keys(*keys: str) -> set[str]:
    return {violation.keys[0] for violation in violations(load(*keys).config)}


@pytest.mark.parametrize(
    "key",
    [
        "hparams.precision=pure_bf16",
        "hparams.precision=amp",
        "hparams.loss_function=cross_entropy",
        "hparams.z_loss_coefficient=1e-4",
        "distributed.fsdp_cpu_offload=true",
        "distributed.dist_url=tcp://host:1",
    ],
)
def test_unsupported_value_is_an_error(key: str) -> None:
    resolved = load(key)
    with fails("config.unsupported"):
        check_rules(violations(resolved.config), (), Recorder())


@pytest.mark.parametrize("key", ["lora.targets=.*", "lora.dropout=0.1"])
def test_options_of_adapters_that_a_model_type_does_not_have_are_errors(key: str) -> None:
    config = load(key, preset="future-vla-tiny").config
    assert {violation.keys[0] for violation in violations(config)} >= {key.partition("=")[0]}


@pytest.mark.parametrize("method", [None, "std", "min_max"])
def test_normalization_of_a_field_decides_if_actions_are_centered(method: str | None) -> None:
    keys = ["data.action_fields=a", f"data.normalization.field_configs.a.method={method}"]
    assert bool(violated_keys(*(keys if method else ()))) == (method == "min_max")


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        (["data.seed=7"], "data.seed"),
        (["data.processor=someone/else"], "data.processor"),
        (["data.normalization.method=min_max"], "model.noise_scheduler.clamp_range"),
        (
            ["data.camera_names=a", "data.image_indices=0", "data.image_names=b_t0"],
            "data.image_names",
        ),
    ],
)
def test_contradiction_is_an_error_if_typed_and_a_warning_otherwise(
    keys: list[str], key: str
) -> None:
    resolved, recorder = load(*keys), Recorder()
    all_violations = list(violations(resolved.config))
    assert [violation.keys[0] for violation in all_violations] == [key]
    with pytest.raises(ConfigError):
        check_rules(all_violations, resolved.typed, recorder)
    check_rules(all_violations, (), recorder)
    assert [code for code, _ in recorder.warnings] == ["inherited_value"]


def test_clamp_limits_without_normalization_are_a_warning() -> None:
    resolved, recorder = load("data.normalization.enabled=false"), Recorder()
    check_rules(violations(resolved.config), resolved.typed, recorder)
    assert len(recorder.warnings) == 1


def test_config_built_in_python_counts_as_typed() -> None:
    config = TrainConfig.model_validate({"hparams": {"lr": 1}})
    assert explicit_keys(config) == {"hparams.lr"}


def test_keys_without_effect_are_reported_once_in_any_section() -> None:
    keys = ("data.seq_len=512", "distributed.ddp_static_graph=true", "log_level=DEBUG")
    assert list(load(*keys).ignored) == [
        "log_level",
        "data.seq_len",
        "distributed.ddp_static_graph",
    ]


@pytest.mark.parametrize(
    ("keys", "derived", "value"),
    [
        (["hparams.seed=7"], "data.seed", 7),
        (["distributed.world_size=2"], "hparams.world_size", 2),
        (
            ["data.camera_names=a,b", "data.image_indices=-1,0"],
            "data.image_names",
            ["a_t-1", "b_t-1", "a_t0", "b_t0"],
        ),
        (
            ["data.proprioception_fields=p", "data.action_fields=q"],
            "data.normalization.include_fields",
            ["p", "q"],
        ),
    ],
)
def test_derived_value_has_its_rule_as_origin(keys: list[str], derived: str, value: Any) -> None:
    resolved = load(*keys)
    section: Any = resolved.config
    for part in derived.split("."):
        section = getattr(section, part)
    assert section == value
    assert resolved.origins[derived].startswith("derived: ")


@pytest.mark.parametrize(
    "key",
    ["data.mask_padded_images=true", "hparams.lr_cooldown_end=1"],
)
def test_invalid_values_are_errors_at_parsing(key: str) -> None:
    with pytest.raises(ConfigError):
        load(key)


@pytest.mark.parametrize(
    "key",
    [
        "data.prefetch_factor",
        "data.num_workers",
        "data.dataset_statistics",
        "data.max_text_seq_len",
        "hparams.per_gpu_batch_size",
        "hparams.grad_clip_norm",
        "model.noise_scheduler.clamp_range",
        "model.num_action_head_repeats",
        "model.resume_from_checkpoint",
        "save_path",
        "name",
        "wandb_project_name",
        "remote_sync_fixed_path",
        "max_checkpoint_limit",
    ],
)
def test_null_of_published_files_is_read(key: str) -> None:
    load(f"{key}=null")
