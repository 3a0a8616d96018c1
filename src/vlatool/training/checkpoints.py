"""Checkpoints: written whole or not at all, weights as safetensors, nothing unpickled.

Gathering is collective, writing is the first process's: a checkpoint holds full tensors, whatever
processes and sharding it was made with.
"""

import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from math import isfinite
from operator import index
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vlatool.artifacts.checkpoint import TRAINER, CheckpointManifest, part_weights
from vlatool.artifacts.run_dir import Retention, RunDir
from vlatool.errors import DataError, StorageError
from vlatool.models.base import Part
from vlatool.models.weights import (
    matching_state_dict,
    read_weights,
    saved_once,
    shared_names,
    unusable_checkpoint,
)
from vlatool.storage.atomic import atomic_folder
from vlatool.storage.tree import size_text
from vlatool.training.ema import local
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState

_SIZE_PER_PARAMETER = 4 * 4  # float32 weights, their average, two moments
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save_checkpoint(
    run: RunDir,
    state: TrainState,
    runtime: Runtime,
    kept: Retention,
    *,
    stopped: bool = False,
) -> None:
    """Writes the state as checkpoint of its step; every process calls it.

    Args:
        run: The run folder.
        state: What is written.
        runtime: The processes.
        kept: Which checkpoints stay.
        stopped: Its step is not a planned one: the run was asked to stop.

    Raises:
        StorageError: It cannot be written, or there is no space for it.
    """
    files: dict[str, dict[str, Tensor]] = {}
    for name, part in state.parts.items():
        if part.saved:
            shared = shared_names(part.module)
            weights = _gathered(part.module.state_dict(), kept=runtime.is_main)
            files[part_weights(name)] = saved_once(weights, shared)
            if name in state.averages:
                average = _gathered(state.averages[name].weights, kept=runtime.is_main)
                files[part_weights(name, averaged=True)] = saved_once(average, shared)
    trainer = _trainer_state(state)
    if runtime.is_main:
        _write(run, state, files, trainer, stopped=stopped)
        run.prune(kept)
    runtime.wait()


def check_space(run: RunDir, state: TrainState) -> None:
    """Refuses a run whose first checkpoint does not fit the disk.

    Raises:
        StorageError: It does not.
    """
    needed = _SIZE_PER_PARAMETER * state.num_parameters
    free = _free(run.root)
    if free < needed:
        raise StorageError(
            f"{run.root}: {size_text(int(free))} are free, a checkpoint takes about "
            f"{size_text(needed)}",
            hint="free some space or choose another --output",
            code="storage.no_space",
            details={"path": str(run.root), "needed": needed, "free": free},
        )


def _write(
    run: RunDir,
    state: TrainState,
    files: Mapping[str, dict[str, Tensor]],
    trainer: Mapping[str, Any],
    *,
    stopped: bool,
) -> None:
    folder = run.checkpoint(state.step)
    if _free(run.root) < _size((files, trainer)):
        raise _unwritten(folder, (files, trainer), "there is no space")
    with atomic_folder(folder) as partial:
        try:
            for name, tensors in files.items():
                save_file(tensors, partial / name)
            torch.save(_canonical(trainer), partial / TRAINER)
        except (SafetensorError, RuntimeError) as error:  # how they tell of a full disk
            raise _unwritten(folder, (files, trainer), error) from None
        manifest = CheckpointManifest.of(partial, state.step, state.samples, stopped=stopped)
        manifest.write(partial)
    run.write_latest(state.step)


def _unwritten(folder: Path, content: object, error: object) -> StorageError:
    needed = _size(content)
    free = _free(folder.parent.parent)
    # Of a full disk torch's writer says no more than that a position is unexpected.
    told = "the disk is full" if free < needed else str(error).partition("\n")[0]
    return StorageError(
        f"{folder}: cannot be written: {told}; it takes {size_text(needed)}, "
        f"{size_text(int(free)) if isfinite(free) else 'an unknown amount'} are free",
        hint="free space there, or raise the limit on sizes of files, then run the same command "
        "again",
        code="storage.write",
        details={"path": str(folder), "needed": needed, "free": free},
    )


def _free(folder: Path) -> float:
    """Bytes; any number where the folder does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return float("inf")


def _size(content: object) -> int:
    """Bytes of all tensors."""
    return sum(one.nbytes for one in _tensors(content))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one)


def _canonical(value: Any) -> Any:
    """The same content, its containers and texts as objects of their own.

    A pickle tells which objects are one and the same, and a state that was loaded shares others
    than one that was not.
    """
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_canonical(one) for one in value])
    return sys.intern(value) if isinstance(value, str) else value


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Continues from a checkpoint: weights, optimizers, averages, counters.

    Every process calls it and takes its share.

    Raises:
        DataError: A file is missing or does not fit the model, or a part that is not saved has
            other weights than when the run began.
    """
    for name, part in state.parts.items():
        if part.saved:
            _restore(part.module.state_dict(), part.module, folder / part_weights(name))
        if name in state.averages:
            path = folder / part_weights(name, averaged=True)
            _restore(state.averages[name].weights, part.module, path)
    manifest = CheckpointManifest.read(folder)
    trainer = _read_trainer(folder / TRAINER)
    try:
        state.step, state.samples = index(trainer["step"]), index(trainer["samples"])
        if (state.step, state.samples) != (manifest.step, manifest.samples):
            raise ValueError(f"of step {state.step}, the manifest says {manifest.step}")
        for name, optimizer in state.optimizers.items():
            _restore_optimizer(trainer["optimizers"][name], state, optimizer)
        for name, average in state.averages.items():
            average.updates = index(trainer["averages"][name])
        state.dropped = {str(name): index(one) for name, one in trainer["dropped"].items()}
        digests = dict(trainer["unsaved"])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise unusable_checkpoint(folder / TRAINER, error) from None
    changed = [name for name, digest in state.unsaved.items() if digests.get(name) != digest]
    if changed:
        raise DataError(
            f"the weights of {changed[0]!r} are others than when the run began",
            hint="give the weights that it began with, or begin anew with --overwrite",
            code="data.other_weights",
            details={"parts": changed},
        )


def unsaved_digests(parts: Mapping[str, Part]) -> dict[str, str]:
    """Part to digest of its weights, for parts that checkpoints do not hold."""
    return {name: _digest(part.module) for name, part in parts.items() if not part.saved}


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _gathered(tensors: Mapping[str, Tensor], *, kept: bool) -> dict[str, Tensor]:
    """Full tensors on the CPU where they are `kept`; collective where they are sharded."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        full = _full(value.detach())
        if kept:
            found[name] = full.cpu().contiguous()
    return found


def _full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def _restore(into: Mapping[str, Tensor], module: nn.Module, path: Path) -> None:
    """Copies a file of weights into tensors of the module's names, each process its share."""
    weights = matching_state_dict(module, read_weights(path), path)
    for name, value in into.items():
        if name in weights:
            given = weights[name].to(value.device)
            if isinstance(value, DTensor):
                given = distribute_tensor(given, value.device_mesh, value.placements)
            local(value).copy_(local(given))


def _trainer_state(state: TrainState) -> dict[str, Any]:
    modules = nn.ModuleDict(dict(state.modules))
    return {
        "step": state.step,
        "samples": state.samples,
        "dropped": dict(state.dropped),
        "optimizers": {
            name: _optimizer_state(modules, one) for name, one in state.optimizers.items()
        },
        "averages": {name: one.updates for name, one in state.averages.items()},
        "unsaved": dict(state.unsaved),
    }


def _optimizer_state(modules: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Momenta by name of the parameter; empty for an optimizer that has not moved yet.

    Asking torch for the latter would begin it: its first step would count as the second.
    """
    if not optimizer.state:
        return {}
    return dict(get_optimizer_state_dict(modules, optimizer, options=_FULL))


def _restore_optimizer(saved: Mapping[str, Any], state: TrainState, optimizer: Optimizer) -> None:
    if saved:
        modules = nn.ModuleDict(dict(state.modules))
        _check_moments(saved, modules)
        set_optimizer_state_dict(modules, optimizer, cast(Any, saved), options=_FULL)
        for group in optimizer.param_groups:
            group["betas"] = tuple(group["betas"])  # torch gives a list


def _check_moments(saved: Mapping[str, Any], modules: nn.Module) -> None:
    """ValueError where the moments of a parameter are not of its shape, or no numbers."""
    shapes = {name: one.shape for name, one in modules.named_parameters()}
    for name, moments in saved["state"].items():
        for key, value in moments.items():
            if key != "step" and value.shape != shapes[name]:
                raise ValueError(f"{key} of {name} is {list(value.shape)}")
            if not torch.as_tensor(value).isfinite().all():
                raise ValueError(f"{key} of {name} is not finite")


def _read_trainer(path: Path) -> dict[str, Any]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - the unpickler of torch raises anything
        raise unusable_checkpoint(path, f"{type(error).__name__}: {error}") from None
    if not isinstance(content, dict):
        raise unusable_checkpoint(path, f"it holds a {type(content).__name__}")
    return content
