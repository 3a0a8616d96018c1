"""Checkpoints: written atomically, weights as safetensors, nothing unpickled.

All ranks gather the tensors, rank 0 writes them: a checkpoint holds full tensors, independent of
the world size and the sharding of the run. Frozen parameters are written once for all checkpoints
of a run.
"""

import hashlib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save as to_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vlatool.checkpoints import checkpoint
from vlatool.checkpoints.layout import Retention, RunDir
from vlatool.errors import DataError, StorageError
from vlatool.jobs.files import FileEntry
from vlatool.models.base import Part
from vlatool.models.weights import (
    matching_state_dict,
    read_pickled_weights,
    read_weights,
    saved_once,
    shared_names,
    unusable_checkpoint,
)
from vlatool.storage.atomic import atomic_folder, write_bytes
from vlatool.storage.tree import sha256_of
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState, is_source, scatter

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class _PartWeights:
    """Complete tensors of a part on rank 0; empty on other ranks."""

    # map from file name to the tensors of the file, without frozen ones
    files: Mapping[str, dict[str, Tensor]]
    frozen: dict[str, Tensor]  # frozen parameters by name; the average does not differ from them


def save_checkpoint(
    run: RunDir,  # the run folder
    state: TrainState,  # the state to write
    runtime: Runtime,  # the ranks of the run
    retention: Retention,  # the checkpoints to keep
    *,
    needed: Collection[int] = (),  # steps of further checkpoints to keep
    # the plan has a checkpoint at this step; if not, it only serves to resume, and the next one
    # replaces it
    is_planned: bool = True,
) -> None:
    """Writes the state as the checkpoint of its step. Collective."""
    parts: list[_PartWeights] = []
    for name, part in state.parts.items():
        if part.saved:
            parts.append(_part_weights(name, state, keep_result=runtime.is_main))
    modules = nn.ModuleDict(dict(state.modules))
    optimizers: dict[str, Mapping[str, Any]] = {}
    for name, optimizer in state.optimizers.items():
        optimizers[name] = _optimizer_state(modules, optimizer)
    trainer = {
        "step": state.step,
        "samples": state.samples,
        "dropped": dict(state.dropped),
        "optimizers": optimizers,
        "averages": {name: average.updates for name, average in state.averages.items()},
        "unsaved": dict(state.unsaved),
    }
    with runtime.main_works():
        if runtime.is_main:
            _write(run, state, parts, trainer, stopped=not is_planned)
            run.update_best()
            run.prune(retention, needed)
    runtime.barrier()


def _part_weights(name: str, state: TrainState, *, keep_result: bool) -> _PartWeights:
    """Weights of a part and their average. Collective; empty without `keep_result`."""
    part = state.parts[name]
    shared = shared_names(part.module)
    frozen_names = _frozen_names(part)
    weights = saved_once(_gathered(part.module.state_dict(), keep_result=keep_result), shared)
    frozen: dict[str, Tensor] = {}
    for key in frozen_names:
        if key in weights:
            frozen[key] = weights.pop(key)
    files = {checkpoint.part_weights(name): weights}
    if name in state.averages:
        average = state.averages[name].weights
        changing = {key: value for key, value in average.items() if key not in frozen_names}
        gathered = _gathered(changing, keep_result=keep_result)
        files[checkpoint.part_weights(name, averaged=True)] = saved_once(gathered, shared)
    return _PartWeights(files, frozen)


def _frozen_names(part: Part) -> list[str]:
    """Names of frozen parameters, which are the same in all steps."""
    if not part.trained:
        return []
    parameters = part.module.named_parameters()
    return [name for name, parameter in parameters if not parameter.requires_grad]


def _write(
    run: RunDir,
    state: TrainState,
    parts: Sequence[_PartWeights],
    trainer: Mapping[str, Any],
    *,
    stopped: bool,
) -> None:
    folder = run.checkpoint(state.step)
    beside: dict[str, FileEntry] = {}
    with atomic_folder(folder) as partial:
        try:
            for part in parts:
                metadata = None
                if part.frozen:
                    entry = _write_frozen(run, part.frozen)
                    beside[entry.path] = entry
                    metadata = {checkpoint.FROZEN: entry.path}
                for name, tensors in part.files.items():
                    save_file(tensors, partial / name, metadata)
            torch.save(_canonical(trainer), partial / checkpoint.TRAINER)
        except (SafetensorError, RuntimeError) as error:  # raised for a full disk
            reason = str(error).partition("\n")[0]
            raise StorageError.at(
                folder,
                f"cannot be written: {reason}",
                hint="free space on that disk, or raise your quota or the limit on file sizes, "
                "then run the same command again",
                code="storage.write",
            ) from None
        manifest = checkpoint.CheckpointManifest.of(
            partial, state.step, state.samples, stopped=stopped, beside=beside
        )
        manifest.write(partial)
    run.write_latest(state.step)


def _write_frozen(run: RunDir, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Writes frozen weights next to the checkpoints, unless the newest one refers to them."""
    name = checkpoint.frozen_weights(_digest(tensors))
    path = run.checkpoints_folder / name
    for _, newest in run.checkpoints()[-1:]:
        entry = checkpoint.CheckpointManifest.read(newest).beside.get(name)
        if entry is not None and path.is_file():
            return entry
    write_bytes(path, to_safetensors(dict(tensors)))
    return FileEntry(name, path.stat().st_size, sha256_of(path))


def _canonical(value: Any) -> Any:
    """A copy with new containers and interned strings, for equal pickle bytes.

    A pickle records which objects are identical, and a loaded state shares other objects than a
    fresh one.
    """
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_canonical(item) for item in value])
    return sys.intern(value) if isinstance(value, str) else value


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Restores weights, optimizers, averages and counters from a checkpoint. Collective."""
    for name, part in state.parts.items():
        if part.saved:
            _restore(part.module.state_dict(), part.module, folder / checkpoint.part_weights(name))
        if name in state.averages:
            path = folder / checkpoint.part_weights(name, averaged=True)
            _restore(state.averages[name].weights, part.module, path)
    manifest = checkpoint.CheckpointManifest.read(folder)
    trainer = read_pickled_weights(folder / checkpoint.TRAINER)
    try:
        state.step = index(trainer["step"])
        state.samples = index(trainer["samples"])
        if (state.step, state.samples) != (manifest.step, manifest.samples):
            raise ValueError(f"step is {state.step}, but the manifest says {manifest.step}")
        for name, optimizer in state.optimizers.items():
            restore_optimizer(trainer["optimizers"][name], state, optimizer)
        for name, average in state.averages.items():
            average.updates = index(trainer["averages"][name])
        state.dropped = {str(name): index(count) for name, count in trainer["dropped"].items()}
        digests = dict(trainer["unsaved"])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise unusable_checkpoint(folder / checkpoint.TRAINER, error) from None
    changed = [name for name, digest in state.unsaved.items() if digests.get(name) != digest]
    if changed:
        raise DataError(
            f"the weights of {changed[0]!r} have changed since the run started",
            hint="restore the weights with which the run started, or start again with --overwrite",
            code="data.mismatch",
            details={"parts": changed},
        )


def unsaved_digests(parts: Mapping[str, Part]) -> dict[str, str]:
    """SHA-256 of the weights of each part that checkpoints do not hold, by the name of the part."""
    unsaved = {name: part for name, part in parts.items() if not part.saved}
    return {name: _digest(part.module.state_dict()) for name, part in unsaved.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        data: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(data)
    return digest.hexdigest()


def _gathered(tensors: Mapping[str, Tensor], *, keep_result: bool) -> dict[str, Tensor]:
    """Full tensors on the CPU; empty without `keep_result`. Collective if tensors are sharded."""
    gathered: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach()
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if keep_result:
            gathered[name] = full.cpu().contiguous()
    return gathered


def _restore(into: Mapping[str, Tensor], module: nn.Module, path: Path) -> None:
    """Copies a weights file into tensors named as in the module; rank 0 reads it. Collective."""
    weights = matching_state_dict(module, read_weights(path), path) if is_source() else {}
    scatter(weights, into)


def _optimizer_state(modules: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Moments by parameter name; empty if the optimizer has not made a step.

    `get_optimizer_state_dict` initializes such an optimizer: its first step would then count as
    the second.
    """
    if not optimizer.state:
        return {}
    return dict(get_optimizer_state_dict(modules, optimizer, options=_FULL))


def restore_optimizer(saved: Mapping[str, Any], state: TrainState, optimizer: Optimizer) -> None:
    """Restores an optimizer from its saved state, which is empty before its first step.

    Weight decay, betas and other options keep the values of this run.
    """
    if not saved:
        return
    modules = nn.ModuleDict(dict(state.modules))
    options = [dict(group) for group in optimizer.param_groups]
    uses_all = all(part.uses_all for part in state.parts.values())
    how = _FULL if uses_all else replace(_FULL, strict=False)
    set_optimizer_state_dict(modules, optimizer, cast(Any, saved), options=how)
    for name, parameter in modules.named_parameters():
        if name not in saved["state"]:  # without a gradient so far: its first step is to come
            optimizer.state.pop(parameter, None)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update({**own, "params": group["params"], "lr": group["lr"]})
