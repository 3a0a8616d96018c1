"""Policies of the package lerobot on our data: training, chunks, export. Its real classes run here.

Skipped where the package is not installed: it has an environment of its own (`.ci/run`).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders.errors import fails
from tests.builders.lerobot_backbones import (
    make_smolvlm,
    make_tokenizer,
    pi_keys,
    shrink_gemma,
    smolvla_keys,
)
from tests.builders.lerobot_policies import make_frames, needs_lerobot, run_config, train_tiny
from vlatool.checkpoints.layout import RunDir
from vlatool.episode import Array, Observation
from vlatool.models.policy import example_observation
from vlatool.models.trained import open_trained
from vlatool.models.weights import read_weights
from vlatool.workflows.export import ExportConfig, export

pytestmark = needs_lerobot
POLICIES = ("act", "diffusion", "vqbet")
TOKENIZER = "google/paligemma-3b-pt-224"


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_frames(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_smolvlm(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, frames: Path) -> Path:
    """A run of each policy, of four steps."""
    folder = tmp_path_factory.mktemp("runs")
    for policy in POLICIES:
        train_tiny(policy, frames, folder / policy, save_every_n_steps=2)
    return folder


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    latest = RunDir(run).latest()
    assert latest is not None
    return read_weights(latest[1] / "model.safetensors")


def observations_of(policy: Any, count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    made = [example_observation(policy.sees, rng) for _ in range(count)]
    return [replace(observation, is_preprocessed=True) for observation in made]


def joined(chunk: Any) -> Array:
    return np.concatenate(list(chunk.values()), axis=-1)


def recorded_batches(config: Any, patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Trains, and returns the prepared batch of each step."""
    from vlatool.models.lerobot.objective import LeRobotObjective
    from vlatool.workflows.train import train

    batches: list[dict[str, Any]] = []
    prepare = LeRobotObjective.prepare

    def recording(self: Any, batch: Any, ctx: Any) -> Any:
        prepared = prepare(self, batch, ctx)
        batches.append(dict(prepared))
        return prepared

    patch.setattr(LeRobotObjective, "prepare", recording)
    train(config)
    return batches


def test_twenty_steps_are_those_of_lerobot(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlatool.models.lerobot import package
    from vlatool.training.runtime import Runtime

    # Without clipping, whose rounding grows in a network of random weights.
    keys = {"total_train_steps": 20, "hparams__grad_clip_norm": 1e9}
    config = run_config("act", frames, tmp_path / "run", **keys)
    batches = recorded_batches(config, monkeypatch)

    derived, _ = config.derive_from_data()
    torch.manual_seed(derived.hparams.seed)
    policy = package.new_policy(derived.model)
    preset = policy.config.get_optimizer_preset()
    options = {"lr": preset.lr, "betas": preset.betas, "eps": preset.eps}
    decay = preset.weight_decay
    params = policy.get_optim_params()
    optimizer = torch.optim.AdamW(params, weight_decay=decay, fused=True, **options)
    runtime = Runtime(derived)
    policy.train()
    for step, batch in enumerate(batches):
        runtime.seed(derived.hparams.seed, step)
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = policy.state_dict()
    for name, value in weights_of(tmp_path / "run").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_has_the_loss_and_the_gradients_of_the_policy(
    policy: str, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlatool.models.base import StepContext
    from vlatool.models.lerobot import package

    config = run_config(policy, frames, tmp_path / "run", total_train_steps=1)
    (batch, *_) = recorded_batches(config, monkeypatch)
    derived, _ = config.derive_from_data()
    info = derived.load_info()
    gradients: list[dict[str, torch.Tensor]] = []
    losses: list[float] = []
    for is_ours in (False, True):
        torch.manual_seed(0)
        network = package.new_policy(derived.model).train()
        parts = {"model": derived.model_type.build(derived.model)["model"]}
        parts = {"model": replace(parts["model"], module=network)}
        torch.manual_seed(1)
        size = len(batch["action"])
        if is_ours:
            objective = derived.model_type.objective(derived.model, derived.data, info, parts)
            context = StepContext(0, None, {"model": network})  # pyright: ignore[reportArgumentType]
            loss = objective.loss("main", batch, context)
            mean = loss.total / loss.count
        else:
            mean, _ = network.forward(dict(batch))
        mean.backward()
        losses.append(mean.item())
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        gradients.append(found)
        assert size == 4
    assert losses[0] == losses[1]
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert torch.equal(value, gradients[1][name]), name


@pytest.mark.parametrize("policy", POLICIES)
def test_a_resumed_run_has_the_same_weights(
    policy: str, frames: Path, runs: Path, tmp_path: Path
) -> None:
    copy = tmp_path / policy
    copytree(runs / policy, copy)
    rmtree(copy / "checkpoints" / "step_00000004")
    train_tiny(policy, frames, copy, save_every_n_steps=2)
    expected = weights_of(runs / policy)
    resumed = weights_of(copy)
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize("policy", POLICIES)
def test_chunks_depend_on_no_other_observation(policy: str, runs: Path) -> None:
    opened = open_trained(str(runs / policy), device="cpu").policy()
    observations = observations_of(opened, 4)
    seeds = range(4)
    together = joined(opened.act(observations, seeds=seeds))
    for row in (3, 1, 2, 0):  # another order: nothing of an earlier robot is left
        alone = joined(opened.act([observations[row]], seeds=[row]))
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)
    again = joined(opened.act(observations, seeds=seeds))
    np.testing.assert_array_equal(again, together)


def lerobot_chunk(folder: Path, batch: dict[str, Any]) -> Array:
    """The chunk of a checkpoint by lerobot alone, for one observed step."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder)
    before, after = make_pre_post_processors(config, str(folder))
    return after(policy.predict_action_chunk(before(batch))).numpy()


def test_lerobot_opens_an_export_and_plans_the_same(runs: Path, tmp_path: Path) -> None:
    export(ExportConfig(source=str(runs / "act"), output=str(tmp_path / "out")))
    trained = open_trained(str(runs / "act"), device="cpu")
    policy = trained.policy()
    (observation,) = observations_of(policy, 1)
    section: Any = trained.config.model
    fields = section.fields["observation.state"]
    state = np.concatenate([observation.fields[name] for name in fields], axis=-1)
    batch: dict[str, Any] = {"observation.state": torch.from_numpy(state).float(), "task": [""]}
    for camera, feature in section.cameras.items():
        pixels = torch.from_numpy(observation.images[camera]).permute(0, 3, 1, 2)
        batch[feature] = pixels.float() / 255
    expected = joined(policy.act([observation], seeds=[0]))
    np.testing.assert_allclose(lerobot_chunk(tmp_path / "out", batch), expected, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_export_opens_here_and_plans_the_same(policy: str, runs: Path, tmp_path: Path) -> None:
    export(ExportConfig(source=str(runs / policy), output=str(tmp_path / "out")))
    assert_same_chunks(runs / policy, tmp_path / "out")


def assert_same_chunks(run: Path, exported: Path, tolerance: float = 1e-5) -> None:
    trained = open_trained(str(run), device="cpu")
    policy = trained.policy()
    section: Any = trained.config.model
    observations = observations_of(policy, 2)
    theirs = [theirs_of(section, observation) for observation in observations]
    expected = joined(policy.act(observations, seeds=[1, 2]))
    opened = open_trained(str(exported), device="cpu").policy()
    found = opened.act(theirs, seeds=[1, 2])["action"]
    np.testing.assert_allclose(found, expected, atol=tolerance)


def theirs_of(section: Any, observation: Observation) -> Observation:
    """The observation by the names of the features."""
    images = {}
    for camera, feature in section.cameras.items():
        images[feature] = observation.images[camera]
    names: Sequence[str] = section.fields["observation.state"]
    state = np.concatenate([observation.fields[name] for name in names], axis=-1)
    return replace(observation, images=images, fields={"observation.state": state})


def test_a_dimension_that_never_moved_is_commanded_as_recorded(runs: Path, tmp_path: Path) -> None:
    export(ExportConfig(source=str(runs / "act"), output=str(tmp_path / "out")))
    policy = open_trained(str(runs / "act"), device="cpu").policy()
    held = "robot__action__grippers__left::panda_hand"
    (observation,) = observations_of(policy, 1)
    section: Any = open_trained(str(runs / "act"), device="cpu").config.model
    opened = open_trained(str(tmp_path / "out"), device="cpu").policy()
    chunk = opened.act([theirs_of(section, observation)], seeds=[0])["action"]
    index = 9  # after the position and the rotation of the left arm
    value = next(value for name, value in policy.held.items() if name.startswith(held))
    np.testing.assert_allclose(chunk[0, :, index], value, atol=1e-6)


def test_smolvla_trains_resumes_and_exports(frames: Path, backbone: Path, tmp_path: Path) -> None:
    keys = {"model__config": smolvla_keys(backbone), "save_every_n_steps": 2}
    run = train_tiny("smolvla", frames, tmp_path / "run", **keys)
    expected = weights_of(run)
    rmtree(run / "checkpoints" / "step_00000004")
    train_tiny("smolvla", frames, run, **keys)
    assert all(torch.equal(value, weights_of(run)[name]) for name, value in expected.items())
    export(ExportConfig(source=str(run), output=str(tmp_path / "out")))
    assert_same_chunks(run, tmp_path / "out")


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
def test_policies_of_physical_intelligence_train_and_plan(
    policy: str, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_gemma(monkeypatch)
    tokenizer = tmp_path / "tokenizer"
    make_tokenizer().save_pretrained(tokenizer)
    keys = {"model__config": pi_keys(), "model__bases": {TOKENIZER: str(tokenizer)}}
    run = train_tiny(policy, frames, tmp_path / "run", **keys)
    opened = open_trained(str(run), device="cpu").policy()
    observations = observations_of(opened, 4)
    together = joined(opened.act(observations, seeds=range(4)))
    for row in range(4):
        alone = joined(opened.act([observations[row]], seeds=[row]))
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


def test_adapters_of_smolvla_are_few_resume_and_merge(
    frames: Path, backbone: Path, tmp_path: Path
) -> None:
    keys = {
        "model__config": smolvla_keys(backbone),
        "lora__rank": 8,
        "save_every_n_steps": 2,
        "hparams__lr": 1e-2,
    }
    run = train_tiny("smolvla", frames, tmp_path / "run", **keys)
    checkpoint = run / "checkpoints" / "step_00000004"
    from safetensors import safe_open

    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    weights = weights_of(run)
    assert all(".adapter." in name for name in names)
    trained = sum(weights[name].numel() for name in names)
    assert trained < 0.05 * sum(value.numel() for value in weights.values())
    rmtree(checkpoint)
    train_tiny("smolvla", frames, run, **keys)
    assert all(torch.equal(value, weights_of(run)[name]) for name, value in weights.items())
    export(ExportConfig(source=str(run), output=str(tmp_path / "out")))
    assert_same_chunks(run, tmp_path / "out")


def test_adapters_alone_are_those_of_peft(runs: Path, frames: Path, tmp_path: Path) -> None:
    from lerobot.policies.factory import get_policy_class
    from peft import PeftModel

    base = tmp_path / "base"
    export(ExportConfig(source=str(runs / "act"), output=str(base)))
    keys = {"init_from": str(base), "lora__rank": 2, "hparams__lr": 1e-2, "model__config": {}}
    run = train_tiny("act", frames, tmp_path / "run", **keys)
    export(ExportConfig(source=str(run), output=str(tmp_path / "whole")))
    with fails("usage.output_differs"):
        export(ExportConfig(source=str(run), output=str(tmp_path / "whole"), merge=False))
    export(ExportConfig(source=str(run), output=str(tmp_path / "adapters"), merge=False))
    policy = get_policy_class("act").from_pretrained(base)
    merged = PeftModel.from_pretrained(policy, str(tmp_path / "adapters")).merge_and_unload()
    expected = read_weights(tmp_path / "whole/model.safetensors")
    changed = read_weights(base / "model.safetensors")
    found = merged.state_dict()
    assert any(not torch.equal(expected[name], changed[name]) for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_a_chunk_goes_on_from_the_committed_one(
    frames: Path, backbone: Path, tmp_path: Path
) -> None:
    keys = smolvla_keys(backbone)
    run = train_tiny("smolvla", frames, tmp_path / "run", model__config=keys)
    policy = open_trained(str(run), device="cpu").policy()
    (observation,) = observations_of(policy, 1)
    first = policy.act([observation], seeds=[0])
    free = joined(policy.act([observation], seeds=[1]))
    left = {name: values[0] for name, values in first.items()}
    waiting = replace(observation, committed=left, delay=2)
    guided = joined(policy.act([waiting], seeds=[1]))
    expected = joined(first)
    steps = slice(0, 2)
    assert np.abs(guided - expected)[:, steps].sum() < np.abs(free - expected)[:, steps].sum()
