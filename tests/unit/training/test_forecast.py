"""Forecasts of `train --dry-run`: memory, disk and hours."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders.base_models import vlm_base
from tests.builders.errors import fails
from tests.builders.future_vla import write_samples
from tests.builders.recording import Recorder
from tests.builders.training import (
    CAMERAS,
    tiny_arguments,
    tiny_config,
    tiny_overrides,
)
from vlatool.cli.app import run as run_command
from vlatool.config.resolve import load_config, parse_override
from vlatool.errors import ConfigError
from vlatool.training.config import TrainConfig
from vlatool.training.forecast import Forecast
from vlatool.workflows.train import train

WEIGHT = 4  # bytes of a float32


def forecast_of(data: Path, run: Path, **keys: Any) -> Forecast:
    result = train(tiny_config(data, run, dry_run=True, **keys))
    assert result.forecast is not None
    assert result.forecast.unknown == ""
    return result.forecast


def test_state_of_a_run_is_counted_exactly(data: Path, tmp_path: Path) -> None:
    keys = {"num_checkpoints": 3, "save_every_minutes": "null"}
    planned = train(tiny_config(data, tmp_path / "run", dry_run=True, **keys))
    assert planned.forecast is not None
    memory, size = planned.forecast.memory, WEIGHT * planned.parameters
    for kind in ("weights", "gradients", "averages"):  # buffers, or frozen parameters
        assert memory[kind] == pytest.approx(size, abs=1000)
    assert memory["optimizer"] == 2 * memory["gradients"]
    assert planned.forecast.checkpoints == 3
    train(tiny_config(data, tmp_path / "run", num_checkpoints=3))
    written = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*step_*/*"))
    assert planned.forecast.disk_bytes == pytest.approx(written, rel=0.15)


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"num_checkpoints": 6}, 7),  # one by the clock
        ({"num_checkpoints": 6, "save_every_minutes": "null"}, 6),
        ({"num_checkpoints": 6, "max_checkpoint_limit": 1}, 3),
        ({"num_checkpoints": 6, "max_checkpoint_limit": 1, "keep_every_n_steps": 2}, 5),
    ],
)
def test_disk_has_the_checkpoints_that_are_kept(
    keys: dict[str, Any], count: int, data: Path, tmp_path: Path
) -> None:
    assert forecast_of(data, tmp_path / "run", **keys).checkpoints == count


def test_sharding_divides_the_state_over_devices(data: Path, tmp_path: Path) -> None:
    keys = {"hparams__per_gpu_batch_size": 2, "distributed__world_size": 4}
    whole = forecast_of(data, tmp_path / "run", **keys)
    sharded = forecast_of(data, tmp_path / "run", distributed__fsdp=True, **keys)
    assert whole.devices == sharded.devices == 4
    for kind in ("gradients", "optimizer", "averages"):
        assert sharded.memory[kind] == whole.memory[kind] // 4
    assert (whole.memory["gathered"], sharded.memory["gathered"] > 0) == (0, True)


def test_run_whose_state_does_not_fit_is_refused(data: Path, tmp_path: Path) -> None:
    with fails("usage.bad_value") as raised:
        forecast_of(data, tmp_path / "run", device_memory="1MB")
    assert raised.value.details["memory"]["optimizer"]


def test_run_whose_activations_do_not_fit_is_warned_of(data: Path, tmp_path: Path) -> None:
    memory = forecast_of(data, tmp_path / "run", device_memory="1TB").memory
    limit = sum(size or 0 for size in memory.values()) - 1
    recorder = Recorder()
    keys = {"device_memory": f"{limit}", "dry_run": True}
    train(tiny_config(data, tmp_path / "run", **keys), reporter=recorder)
    assert [code for code, _ in recorder.warnings] == ["memory_activations"]


def test_activations_are_fewer_with_checkpoints_of_gradients(data: Path, tmp_path: Path) -> None:
    keys = {"model__transformer__n_layers": 8}
    whole = forecast_of(data, tmp_path / "run", **keys).memory["activations"]
    keys["hparams__grad_checkpointing"] = True
    fewer = forecast_of(data, tmp_path / "run", **keys).memory["activations"]
    assert 0 < (fewer or 0) < (whole or 0)


def test_a_given_or_measured_rate_gives_hours_and_writes_nothing(
    data: Path, tmp_path: Path
) -> None:
    planned = forecast_of(data, tmp_path / "run", rate=2.0, total_train_steps=900)
    assert planned.hours == 1.0
    planned = forecast_of(data, tmp_path / "run", measure=True)
    assert planned.samples_per_s
    assert planned.hours == 6 * 8 / planned.samples_per_s / 3600
    assert not (tmp_path / "run").exists()


def test_processes_are_planned_and_not_started(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny_arguments(data, tmp_path / "run", hparams__per_gpu_batch_size=1)
    assert run_command([*words, "--nproc", "8", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forecast"]["devices"] == 8
    # A run without weights to start from can only be planned.
    assert run_command([*FUTURE_VLA_4B, "--data", str(tmp_path), "-o", str(tmp_path / "run")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage.missing_key"
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_do_not_fit_on_the_disk_are_a_warning(data: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    keys = {"total_train_steps": 10**5, "save_every_n_steps": 1, "dry_run": True}
    keys |= {"model__transformer__hidden_dim": 1024}
    train(tiny_config(data, tmp_path / "run", **keys), reporter=recorder)
    assert "storage.no_space" in [code for code, _ in recorder.warnings]


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"rate": 0}, "rate"),
        ({"device_memory": "much"}, "device_memory"),
        ({"device_memory": "80GB", "dry_run": False}, "device_memory"),
        ({"rate": 3, "dry_run": False}, "rate"),
        ({"rate": 3, "measure": True}, "rate"),
    ],
)
def test_bad_option_of_a_forecast_is_named(
    keys: dict[str, Any], key: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=key):
        train(tiny_config(data, tmp_path / "run", **{"dry_run": True, **keys}))


def test_unknown_activations_are_reported(data: Path, tmp_path: Path) -> None:
    base, backbone = vlm_base(tmp_path / "base", "smolvlm"), "model.vision_language_backbone"
    keys = {
        **tiny_overrides(data, tmp_path / "run", dry_run=True),
        "data.processor": base,
        "data.camera_names": ",".join(CAMERAS),
        "data.lowdim_past_timesteps": 1,
        "data.lowdim_future_timesteps": 6,
        f"{backbone}.hf_pretrained": base,
        f"{backbone}.num_vlm_layers_to_use": 1,
    }
    keys = {key: value for key, value in keys.items() if not key.startswith(f"{backbone}.text")}
    for key in ("hidden_dim", "channels", "num_keypoints"):
        del keys[f"{backbone}.{key}"]

    def planned(**more: Any) -> Forecast | None:
        overrides = [parse_override(f"{k}={v}") for k, v in {**keys, **more}.items()]
        return train(
            load_config(
                TrainConfig, presets=["vla-diffusion-tiny-test"], overrides=overrides
            ).config
        ).forecast

    forecast = planned(device_memory="80GB")
    assert forecast is not None
    assert forecast.unknown
    assert forecast.memory["activations"] is None


FUTURE_VLA_4B = ("train", "-p", "future-vla-libero", "-p", "future-vla-4b", "--json")


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute of computing
def test_run_of_4b_sizes_is_planned_without_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = write_samples(tmp_path, episodes=1, side=256)
    words = [*FUTURE_VLA_4B, "--data", str(samples), "--dry-run", "--device-memory", "80GB"]
    words += ["--num-epochs", "64"]
    assert run_command([*words, "--ema.enabled", "true", "--nproc", "8"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["parameters"] == 4_551_988_736  # reference/future-vla-model 2.4
    memory = planned["forecast"]["memory"]
    state = WEIGHT * planned["parameters"] // 8
    assert memory["weights"] == pytest.approx(state, rel=0.05)
    for kind, copies in {"gradients": 1, "optimizer": 2, "averages": 1}.items():
        assert memory[kind] == pytest.approx(copies * state, rel=0.05)
