"""Checkpoints: written whole or not at all, weights as safetensors, nothing unpickled."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlatool.artifacts.run_dir import EMA, MODEL, TRAINER, CheckpointManifest, RunDir
from vlatool.models.weights import load_weights, unusable_checkpoint
from vlatool.storage.atomic import atomic_folder
from vlatool.training.state import TrainState


def save_checkpoint(run: RunDir, state: TrainState, keep: int | None) -> Path:
    """Writes the state as checkpoint of its step; keeps the latest `keep` ones if given."""
    folder = run.checkpoint(state.step)
    with atomic_folder(folder) as partial:
        save_file(_cpu(state.model.state_dict()), partial / MODEL)
        if state.average is not None:
            save_file(_cpu(state.average.weights), partial / EMA)
        torch.save(_trainer_state(state), partial / TRAINER)
        facts = {"step": state.step, "samples": state.samples}
        CheckpointManifest.of(partial, facts).write(partial)
    run.write_latest(state.step)
    if keep is not None:
        for _, old in run.checkpoints()[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(folder: Path, state: TrainState, device: torch.device) -> None:
    """Continues from a checkpoint: weights, optimizers, average, counters.

    Raises:
        DataError: A file is missing or does not fit the model.
    """
    load_weights(state.model, folder / MODEL)
    trainer = _load_trainer(folder / TRAINER)
    try:
        for name, optimizer in state.optimizers.items():
            optimizer.load_state_dict(trainer["optimizers"][name])
        if state.average is not None:
            weights = load_file(folder / EMA, device=str(device))
            state.average.load(weights, trainer["ema_updates"])
        state.step, state.samples = trainer["step"], trainer["samples"]
    except (KeyError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise unusable_checkpoint(folder, error) from None


def _trainer_state(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "samples": state.samples,
        "optimizers": {name: one.state_dict() for name, one in state.optimizers.items()},
        "ema_updates": 0 if state.average is None else state.average.updates,
    }


def _load_trainer(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise unusable_checkpoint(path, error) from None


def _cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
