import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlatool.artifacts.run_dir import EMA, MANIFEST, MODEL, TRAINER, RunDir, find_checkpoint
from vlatool.errors import DataError, StorageError
from vlatool.storage.atomic import remove_partials
from vlatool.training.checkpoints import load_checkpoint, save_checkpoint
from vlatool.training.config import EmaConfig, HParams
from vlatool.training.ema import WeightAverage
from vlatool.training.optim import build_optimizer
from vlatool.training.state import TrainState

CPU = torch.device("cpu")


def new_state(width: int = 3, *, average: bool = True, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Linear(width, 2)
    mean = WeightAverage(EmaConfig(enabled=True), model) if average else None
    return TrainState(model, {"main": build_optimizer(model, HParams(lr=0.1))}, mean)


def train(state: TrainState, steps: int = 1) -> TrainState:
    for _ in range(steps):
        optimizer = state.optimizers["main"]
        optimizer.zero_grad()
        state.model(torch.ones(4, state.model.in_features)).square().mean().backward()
        optimizer.step()
        if state.average is not None:
            state.average.update(state.model)
        state.step += 1
        state.samples += 4
    return state


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    state = train(new_state(), 3)
    folder = save_checkpoint(run, state, None)
    resumed = new_state(seed=1)
    load_checkpoint(folder, resumed, CPU)
    assert (resumed.step, resumed.samples) == (3, 12)
    train(state, 2)
    train(resumed, 2)
    assert state.average is not None
    assert resumed.average is not None
    assert resumed.average.updates == 5
    for name, value in state.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
        assert torch.equal(resumed.average.weights[name], state.average.weights[name])


def test_manifest_lists_size_and_digest_of_every_file(tmp_path: Path) -> None:
    folder = save_checkpoint(RunDir(tmp_path), train(new_state()), None)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["step"], manifest["samples"]) == (1, 4)
    assert manifest["files"].keys() == {MODEL, EMA, TRAINER}
    for name, facts in manifest["files"].items():
        assert facts["bytes"] == (folder / name).stat().st_size
        assert len(facts["sha256"]) == 64


def test_newest_complete_checkpoint_is_found_by_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    state = new_state()
    for step in (2, 9, 10):
        state.step = step
        save_checkpoint(run, state, None)
    half = run.checkpoint(11)
    half.mkdir()
    (half / MODEL).write_bytes(b"half")
    partial = half.with_name(".step_00000012.77.partial")
    partial.mkdir()
    assert [step for step, _ in run.checkpoints()] == [2, 9, 10]
    assert find_checkpoint(tmp_path)[1] == run.checkpoint(10)
    remove_partials(tmp_path)
    assert not partial.exists()


def test_failure_while_writing_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    save_checkpoint(run, train(new_state()), None)
    state = train(new_state(), 2)

    def disk_full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(StorageError):
        save_checkpoint(run, state, 1)
    assert [step for step, _ in run.checkpoints()] == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert json.loads((tmp_path / "latest.json").read_text())["step"] == 1


def test_only_the_latest_ones_are_kept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    state = new_state()
    for _ in range(5):
        save_checkpoint(run, train(state), 2)
    assert [step for step, _ in run.checkpoints()] == [4, 5]
    latest = json.loads((tmp_path / "latest.json").read_text())
    assert latest == {"checkpoint": "checkpoints/step_00000005", "step": 5}


def test_wrong_shape_names_the_key_and_changes_nothing(tmp_path: Path) -> None:
    folder = save_checkpoint(RunDir(tmp_path), train(new_state(width=3)), None)
    other = new_state(width=4)
    before = other.model.weight.clone()
    with pytest.raises(DataError) as caught:
        load_checkpoint(folder, other, CPU)
    assert caught.value.code == "data.checkpoint_mismatch"
    assert caught.value.details["problems"] == ["weight is [2, 3], the model has [2, 4]"]
    assert torch.equal(other.model.weight, before)


def test_missing_and_unexpected_names_are_told(tmp_path: Path) -> None:
    folder = save_checkpoint(RunDir(tmp_path), train(new_state()), None)
    weights = load_file(folder / MODEL)
    weights["wieght"] = weights.pop("weight")
    save_file(weights, folder / MODEL)
    with pytest.raises(DataError) as caught:
        load_checkpoint(folder, new_state(), CPU)
    assert caught.value.details["problems"] == ["missing weight", "unexpected wieght"]


@pytest.mark.parametrize("name", [MODEL, EMA, TRAINER])
@pytest.mark.parametrize("content", [None, b"", b"no checkpoint at all", b"cut"])
def test_damaged_file_is_a_data_error(name: str, content: bytes | None, tmp_path: Path) -> None:
    folder = save_checkpoint(RunDir(tmp_path), train(new_state()), None)
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20] if content == b"cut" else content)
    with pytest.raises(DataError) as caught:
        load_checkpoint(folder, new_state(), CPU)
    assert caught.value.code == "data.broken_checkpoint"


def test_trainer_state_of_other_optimizers_is_a_data_error(tmp_path: Path) -> None:
    folder = save_checkpoint(RunDir(tmp_path), train(new_state()), None)
    state = new_state()
    state.optimizers["generator"] = state.optimizers.pop("main")
    with pytest.raises(DataError) as caught:
        load_checkpoint(folder, state, CPU)
    assert caught.value.code == "data.broken_checkpoint"
