import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.builders.errors import fails
from vlatool.checkpoints.checkpoint import EMA, MANIFEST, MODEL, TRAINER, CheckpointManifest
from vlatool.checkpoints.layout import Retention, RunDir
from vlatool.checkpoints.locations import find_checkpoint
from vlatool.errors import DataError, StorageError
from vlatool.models.base import OptimizerSpec, Part
from vlatool.models.weights import read_weights
from vlatool.storage.atomic import remove_partials
from vlatool.training.checkpoints import load_checkpoint, save_checkpoint, unsaved_digests
from vlatool.training.config import EmaConfig, HParams, TrainConfig
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState, WeightAverage
from vlatool.training.step import build_optimizer, update

RUNTIME = Runtime(TrainConfig(hparams=HParams(precision="float32")))
YES = torch.tensor(True)


def new_state(
    width: int = 3, *, seed: int = 0, tied: bool = False, frozen: bool = False
) -> TrainState:
    """State with an averaged network, buffers without average, and a teacher that is not saved.

    Args:
        width: Inputs of the network.
        seed: Seed of its weights.
        tied: The last two layers have one weight.
        frozen: The first layer is not trained.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    if tied:
        model[2].weight = model[1].weight
    model[0].requires_grad_(requires_grad=not frozen)
    means = nn.BatchNorm1d(2, affine=False)
    teacher = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    nn.init.eye_(teacher.weight)
    nn.init.zeros_(teacher.bias)
    parts = {
        "model": Part(model),
        "means": Part(means, trained=False, averaged=False),
        "teacher": Part(teacher, trained=False, saved=False),
    }
    optimizer = build_optimizer(OptimizerSpec(("model",)), {"model": model}, HParams(lr=0.1))
    averages = {"model": WeightAverage(EmaConfig(enabled=True), model)}
    return TrainState(parts, {"main": optimizer}, averages, unsaved_digests(parts))


def save(run: RunDir, state: TrainState, limit: int | None = None) -> Path:
    save_checkpoint(run, state, RUNTIME, Retention(limit))
    return run.checkpoint(state.step)


def train(state: TrainState, steps: int = 1) -> TrainState:
    model, means = state.parts["model"].module, state.parts["means"].module
    for _ in range(steps):
        optimizer = state.optimizers["main"]
        optimizer.zero_grad()
        out = model(torch.linspace(-1, 1, 4 * model[0].in_features).reshape(4, -1))
        out.square().mean().backward()
        update(optimizer, torch.tensor(1.0), None, ~YES)
        means(out.detach())
        state.averages["model"].update(YES)
        state.step += 1
        state.samples += 4
        state.dropped["bad"] = state.step
    return state


def all_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    tensors = {
        f"{name}.{key}": value
        for name, module in state.modules.items()
        for key, value in module.state_dict().items()
    }
    return tensors | {f"mean.{key}": mean for key, mean in state.averages["model"].weights.items()}


@pytest.mark.parametrize("kind", [{}, {"tied": True}, {"frozen": True}])
def test_resumed_training_is_bitwise_equal(kind: dict[str, bool], tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    state = train(new_state(**kind), 3)
    folder = save(run, state)
    resumed = new_state(seed=1, **kind)
    load_checkpoint(folder, resumed)
    assert (resumed.step, resumed.samples, resumed.dropped) == (3, 12, {"bad": 3})
    train(state, 2)
    train(resumed, 2)
    assert resumed.averages["model"].updates == 5
    for name, value in all_tensors(state).items():
        assert torch.equal(all_tensors(resumed)[name], value), name
    folders = save(run, state), save(RunDir(tmp_path / "again"), resumed)
    first, second = ((folder / TRAINER).read_bytes() for folder in folders)
    assert first == second


def test_options_of_a_restored_optimizer_are_those_of_its_run(tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path), train(new_state()))
    other = new_state()
    parts = {"model": other.parts["model"].module}
    h = HParams(wd=0.3, beta2=0.5, decay_by_name=True)
    other.optimizers["main"] = build_optimizer(OptimizerSpec(("model",)), parts, h)
    load_checkpoint(folder, other)

    groups = other.optimizers["main"].param_groups
    assert [(group["weight_decay"], group["betas"]) for group in groups] == [
        (0.3, (0.9, 0.5)),
        (0.0, (0.9, 0.5)),
    ]


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path), train(new_state(tied=True)))
    for name in (MODEL, EMA):
        assert sorted(load_file(folder / name)) == [
            "0.bias", "0.weight", "1.bias", "1.weight", "2.bias"
        ]  # fmt: skip
    resumed = new_state(seed=1, tied=True)
    load_checkpoint(folder, resumed)
    model = resumed.parts["model"].module
    assert model[1].weight is model[2].weight


def test_frozen_weights_are_stored_once_beside_all_checkpoints(tmp_path: Path) -> None:
    run, state = RunDir(tmp_path), new_state(frozen=True)
    folders = [save(run, train(state)) for _ in range(2)]
    (frozen,) = run.checkpoints_folder.glob("*.safetensors")

    assert sorted(load_file(frozen)) == ["0.bias", "0.weight"]
    for folder in folders:
        assert CheckpointManifest.read(folder).beside.keys() == {frozen.name}
        for name in (MODEL, EMA):
            assert sorted(load_file(folder / name)) == [
                "1.bias", "1.weight", "2.bias", "2.weight"
            ]  # fmt: skip


def test_checkpoint_with_frozen_weights_in_its_own_files_is_restored(tmp_path: Path) -> None:
    state = train(new_state(frozen=True))
    folder = save(RunDir(tmp_path), state)
    for name in (MODEL, EMA):  # as written before frozen weights had a file of their own
        save_file(read_weights(folder / name), folder / name)
    (frozen,) = folder.parent.glob("*.safetensors")
    frozen.unlink()
    resumed = new_state(seed=1, frozen=True)
    load_checkpoint(folder, resumed)
    for name, value in all_tensors(state).items():
        assert torch.equal(all_tensors(resumed)[name], value), name


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"other")])
def test_lost_frozen_weights_are_named_and_written_again_by_the_next_checkpoint(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    run, state = RunDir(tmp_path), new_state(frozen=True)
    folder = save(run, train(state))
    (frozen,) = run.checkpoints_folder.glob("*.safetensors")
    expected = frozen.read_bytes()
    damage(frozen)
    with pytest.raises(DataError) as caught:
        CheckpointManifest.read(folder).check(folder)

    assert caught.value.details["path"] == str(frozen)
    shutil.rmtree(folder)
    save(run, train(state))
    assert frozen.read_bytes() == expected


def test_weights_that_were_copied_with_their_frozen_ones_are_read(tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path / "run"), train(new_state(frozen=True)))
    shutil.copy(folder / MODEL, tmp_path)
    with pytest.raises(DataError) as caught:
        read_weights(tmp_path / MODEL)
    (frozen,) = folder.parent.glob("*.safetensors")

    assert frozen.name in caught.value.message
    shutil.copy(frozen, tmp_path)
    assert len(read_weights(tmp_path / MODEL)) == 6


def test_optimizer_without_steps_starts_the_same_after_a_resume(
    tmp_path: Path,
) -> None:
    resumed = new_state(seed=1)
    load_checkpoint(save(RunDir(tmp_path), new_state()), resumed)
    state = train(new_state())
    train(resumed)
    assert torch.equal(all_tensors(resumed)["model.0.weight"], all_tensors(state)["model.0.weight"])


def test_unsaved_part_must_equal_that_of_the_first_start(tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path), train(new_state()))
    assert sorted(path.name for path in folder.glob("*.safetensors")) == sorted(
        [EMA, "means.safetensors", MODEL]
    )
    other = new_state()
    nn.init.ones_(other.parts["teacher"].module.weight)
    other.unsaved = unsaved_digests(other.parts)
    with fails("data.mismatch") as caught:
        load_checkpoint(folder, other)
    assert caught.value.details["parts"] == ["teacher"]


def test_manifest_lists_size_and_digest_of_every_file(tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path), train(new_state()))
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["step"], manifest["samples"]) == (1, 4)
    assert manifest["files"].keys() == {MODEL, EMA, "means.safetensors", TRAINER}
    for name, info in manifest["files"].items():
        assert info["bytes"] == (folder / name).stat().st_size
        assert len(info["sha256"]) == 64


def test_newest_complete_checkpoint_is_found_by_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    state = new_state()
    for step in (2, 9, 10):
        state.step = step
        save(run, state)
    partial = run.checkpoint(12).with_name(".step_00000012.77.partial")
    partial.mkdir()
    assert [step for step, _ in run.checkpoints()] == [2, 9, 10]
    assert find_checkpoint(tmp_path)[1] == run.checkpoint(10)
    remove_partials(tmp_path)
    assert not partial.exists()


def test_newest_checkpoint_without_its_manifest_is_not_skipped(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    state = new_state()
    for _ in range(2):
        save(run, train(state))
    (run.checkpoint(2) / MANIFEST).unlink()
    for location in (tmp_path, run.checkpoint(2)):
        with pytest.raises(DataError) as caught:
            CheckpointManifest.read(find_checkpoint(location)[1])
        assert caught.value.details["path"] == str(run.checkpoint(2) / MANIFEST)


def test_an_artifact_with_another_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": "vlatool.windows"}')
    with fails("data.missing"):
        find_checkpoint(tmp_path)


def test_failure_while_writing_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    save(run, train(new_state()))
    state = train(new_state(), 2)

    def disk_full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(StorageError):
        save(run, state, 1)
    assert [step for step, _ in run.checkpoints()] == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert json.loads((tmp_path / "latest.json").read_text())["step"] == 1


@pytest.mark.parametrize(
    ("retention", "steps"), [(Retention(2), [6, 7]), (Retention(2, every=3), [3, 6, 7])]
)
def test_latest_checkpoints_and_those_at_multiples_are_kept(
    retention: Retention, steps: list[int], tmp_path: Path
) -> None:
    run, state = RunDir(tmp_path), new_state()
    for _ in range(7):
        save_checkpoint(run, train(state), RUNTIME, retention)
    assert [step for step, _ in run.checkpoints()] == steps
    latest = json.loads((tmp_path / "latest.json").read_text())
    assert latest == {"checkpoint": "checkpoints/step_00000007", "step": 7}


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "list": lambda _: ["a", "list"],
    "text": lambda _: "a text",
    "step": lambda content: {**content, "step": 10**9},
    "optimizer": lambda content: {**content, "optimizers": {"main": ["no", "state"]}},
    "names": lambda content: {**content, "optimizers": {"generator": {}}},
    "dropped": lambda content: {**content, "dropped": {"bad": "many"}},
}


def test_checkpoint_of_a_stop_replaces_no_planned_one_and_is_removed_with_the_next(
    tmp_path: Path,
) -> None:
    run = RunDir(tmp_path)
    state = new_state()
    for stopped in (False, False, True, False):
        save_checkpoint(run, train(state), RUNTIME, Retention(2), is_planned=not stopped)
        if stopped:
            assert [step for step, _ in run.checkpoints()] == [1, 2, 3]
    assert [step for step, _ in run.checkpoints()] == [2, 4]


def test_trainer_state_does_not_depend_on_object_identity(tmp_path: Path) -> None:
    first, second = train(new_state()), train(new_state())
    first.dropped = {"reason": 1, "other": 2}
    first.unsaved = {**first.unsaved, "reason": "reason"}
    second.dropped = {"".join(["rea", "son"]): 1, "other": 2}
    second.unsaved = {**second.unsaved, "".join(["reas", "on"]): "".join(["re", "ason"])}
    paths = [
        save(RunDir(tmp_path / name), state) / TRAINER
        for name, state in (("one", first), ("other", second))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_wrong_shape_names_the_key_and_changes_nothing(tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path), train(new_state(width=3)))
    other = new_state(width=4)
    before = all_tensors(other)["model.0.weight"].clone()
    with fails("data.checkpoint_mismatch") as caught:
        load_checkpoint(folder, other)
    assert caught.value.details["problems"] == ["0.weight is [2, 3], the model has [2, 4]"]
    assert torch.equal(all_tensors(other)["model.0.weight"], before)


def test_missing_and_unexpected_names_are_reported(tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path), train(new_state()))
    weights = load_file(folder / MODEL)
    weights["0.wieght"] = weights.pop("0.weight")
    save_file(weights, folder / MODEL)
    with pytest.raises(DataError) as caught:
        load_checkpoint(folder, new_state())
    assert caught.value.details["problems"] == ["missing 0.weight", "unexpected 0.wieght"]


@pytest.mark.parametrize("name", [MODEL, EMA, TRAINER])
@pytest.mark.parametrize("content", [None, b"", b"no checkpoint at all", b"cut"])
def test_damaged_file_is_a_data_error(name: str, content: bytes | None, tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path), train(new_state()))
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20] if content == b"cut" else content)
    with fails("data.broken"):
        load_checkpoint(folder, new_state())


@pytest.mark.parametrize("name", BROKEN)
def test_broken_trainer_state_is_a_short_data_error(name: str, tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path), train(new_state()))
    torch.save(BROKEN[name](torch.load(folder / TRAINER, weights_only=True)), folder / TRAINER)
    with fails("data.broken") as caught:
        load_checkpoint(folder, new_state())
    assert caught.value.details["path"] == str(folder / TRAINER)
    assert "\n" not in caught.value.message + caught.value.hint


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    folder = save(RunDir(tmp_path), train(new_state()))
    for name in (EMA, MODEL):
        whole = load_file(folder / name)
        save_file({**whole, "1.weight": torch.full((2, 2), torch.nan)}, folder / name)
        with fails("data.not_finite") as caught:
            load_checkpoint(folder, new_state())
        assert caught.value.details["tensors"] == ["1.weight"]
        save_file(whole, folder / name)
