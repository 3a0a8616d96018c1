"""Loads weights strictly: from safetensors, or from pickles that contain only tensors.

Tied weights are stored once, under the first of their names.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vlatool.checkpoints.checkpoint import FROZEN, frozen_path
from vlatool.errors import ConfigError, DataError, StorageError
from vlatool.plugins import did_you_mean
from vlatool.storage.atomic import open_atomic
from vlatool.storage.byte_ranges import open_file

Network = TypeVar("Network", bound=nn.Module)

_SHOWN = 5
_PICKLES = (".bin", ".pt", ".pth")
# Largest size of the tensors of a file, relative to the stored values: tensors may share them.
_MAX_SHARING = 4


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads a safetensors file into a module; all names and shapes must match."""
    weights = matching_state_dict(module, read_weights(path), path)
    module.load_state_dict(weights, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file to the CPU, with the frozen tensors to which it
    refers.
    """
    try:
        open_file(path).close()  # safetensors would wait for a pipe
        with safe_open(path, framework="pt") as file:
            frozen = (file.metadata() or {}).get(FROZEN)
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise unusable_checkpoint(path, error) from None
    return weights if frozen is None else {**weights, **_read_frozen(path, frozen)}


def _read_frozen(path: Path, name: str) -> dict[str, Tensor]:
    """Reads the frozen weights `name` of a weights file of a checkpoint."""
    frozen = frozen_path(path.parent, name)
    if not frozen.is_file():
        raise DataError(
            f"{path}: its frozen weights {name} are missing",
            hint=f"copy {name} from the folder `checkpoints` of the run to {path.parent}",
            code="data.broken",
            details={"path": str(frozen)},
        )
    return read_weights(frozen)


def read_external_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file of another program, in the format of its suffix. Never runs code
    of the file.
    """
    if path.suffix not in _PICKLES:
        return read_weights(path)
    content = read_pickled_weights(path)
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise unusable_checkpoint(path, "it is not a mapping of names to tensors")
    check_dense(content, path)
    return content


def read_pickled_weights(path: Path) -> dict[Any, Any]:
    """Reads a `.pt` or `.bin` file to the CPU. Never runs code of the file."""
    try:
        open_file(path).close()  # torch would wait for a pipe
    except OSError as error:
        raise unusable_checkpoint(path, error.strerror or error) from None
    try:
        # A memory-mapped file is read on demand, and once for all processes of a machine.
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_map(path))
    except Exception as error:  # noqa: BLE001 - the unpickler of torch raises anything
        raise _pickle_error(path, error) from None
    if not isinstance(content, Mapping):
        raise unusable_checkpoint(path, f"it contains a {type(content).__name__}")
    return dict(cast("Mapping[Any, Any]", content))


def _can_map(path: Path) -> bool:
    """True if no file of the archive is compressed; torch would map compressed bytes as numbers."""
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return all(entry.compress_type == ZIP_STORED for entry in archive.infolist())


def check_dense(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raises for a tensor that is not a dense one of numbers, such as a sparse or quantized one."""
    for name, tensor in weights.items():
        is_number = not tensor.is_complex() and not tensor.is_quantized
        is_dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
        if not (is_number and is_dense):
            raise unusable_checkpoint(path, f"the tensor {name} does not hold dense numbers")


def _pickle_error(path: Path, error: Exception) -> DataError:
    unsafe = re.search(r"GLOBAL (\S+)", str(error))
    if unsafe is not None:
        return DataError.at(
            path,
            f"not loaded, because it holds {unsafe[1]}, which is not a tensor",
            hint="use a safetensors file, or a file with nothing but tensors",
            code="data.unsafe",
            asks_for=unsafe[1],
        )
    if is_zipfile(path):
        return unusable_checkpoint(path, error)
    return unusable_checkpoint(path, "it is empty, truncated, or not a file of weights")


def write_pickled_weights(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values atomically as a `.pt` file."""
    try:
        with open_atomic(path) as file:
            torch.save(dict(content), file)
    except RuntimeError as error:
        # torch closes its archive after a failed write, and raises that its length is wrong.
        if isinstance(error.__context__, StorageError):
            raise error.__context__ from None
        raise


def matching_state_dict(
    module: nn.Module, weights: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Returns the tensors of a file, with the names and shapes of a module, sharded or not. A
    tensor of one element matches any shape with one element, because scalars cannot be sharded.
    """
    weights = matching_shapes(module, weights, path)
    not_finite: list[str] = []
    for name, value in sorted(weights.items()):
        # `isfinite` does not support the float types of one byte.
        if value.itemsize > 1 and not value.isfinite().all():
            not_finite.append(name)
    if not_finite:
        raise DataError.at(
            path,
            f"values are not finite: {', '.join(not_finite[:_SHOWN])}",
            hint="use other weights: outputs of these would not be finite",
            code="data.not_finite",
            tensors=not_finite,
        )
    return weights


def build_with(
    build: Callable[[], Network],
    weights_of: Callable[[Network], Mapping[str, Tensor]],
    path: Path,
) -> Network:
    """Builds a network with the weights of a file, after comparing sizes: before they take memory.

    `weights_of`: returns the weights with the names of a network.
    """
    with torch.device("meta"):
        planned = build()
    check_shapes(planned, weights_of(planned), path)
    network = build()
    weights = matching_state_dict(network, weights_of(network), path)
    network.load_state_dict(weights, strict=False)
    return network


def check_shapes(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Compares the sizes in a configuration with the sizes in a file, before they take memory."""
    matching_shapes(module, weights, path)
    size = sum(weight.nbytes for weight in weights.values())
    storages = [weight.untyped_storage() for weight in weights.values()]
    stored = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if size > _MAX_SHARING * stored:
        reason = f"its tensors have {size:,} bytes, but only {stored:,} are stored"
        raise unusable_checkpoint(path, reason)


def matching_shapes(
    module: nn.Module, weights: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Like `matching_state_dict`, but reads no values; tensors may be on the meta device."""
    expected = module.state_dict()
    matching: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in expected and value.numel() == expected[name].numel() == 1:
            value = value.reshape(expected[name].shape)
        matching[name] = value
    differences = sorted(_differences(module, matching))
    if differences:
        problems = [problem for _, problem in differences]
        networks = sorted({name.partition(".")[0] for name, _ in differences})
        raise DataError(
            f"{path}: does not match the model: {'; '.join(problems[:_SHOWN])}",
            hint="use the configuration with which the checkpoint was trained",
            code="data.checkpoint_mismatch",
            details={"problems": problems, "networks": networks},
        )
    return matching


def init_state_dict(
    module: nn.Module, weights: Mapping[str, Tensor], path: Path, excluded: Sequence[str]
) -> dict[str, Tensor]:
    """Returns initial weights of a module: from a file, except for some networks, which keep
    theirs.
    """
    own = module.state_dict()
    for network in excluded:
        if not any(key.startswith(f"{network}.") for key in own):
            known = sorted({key.partition(".")[0] for key in own})
            raise ConfigError(
                f"init_except: the model has no network {network!r}",
                hint=did_you_mean(network, known),
                code="config.invalid_value",
                details={"key": "init_except", "known": known},
            )
    prefixes = tuple(f"{name}." for name in excluded)
    merged = {name: value for name, value in weights.items() if not name.startswith(prefixes)}
    merged |= {name: value for name, value in own.items() if name.startswith(prefixes)}
    try:
        return matching_state_dict(module, merged, path)
    except DataError as error:
        networks = error.details.get("networks", [])
        if networks and all(any(key.startswith(f"{name}.") for key in own) for name in networks):
            error.hint += f", or train these anew: --init-except {','.join([*excluded, *networks])}"
        raise


def _differences(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """The weights that differ: name, and how."""
    expected = module.state_dict()
    aliases = _aliases(shared_names(module))
    for name, value in expected.items():
        if name not in weights:
            if name not in aliases:
                yield name, f"missing {name}"
        elif weights[name].shape != value.shape:
            yield (
                name,
                f"{name} is {list(weights[name].shape)}, the model has {list(value.shape)}",
            )
    for name in weights:
        if name not in expected:
            yield name, f"unexpected {name}"


def shared_names(module: nn.Module) -> list[Sequence[str]]:
    """Groups of names that share a tensor, in the order of the state dict."""
    names_by_tensor: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names_by_tensor.setdefault(id(parameter), []).append(name)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        names_by_tensor.setdefault(id(buffer), []).append(name)
    return [names for names in names_by_tensor.values() if len(names) > 1]


def _aliases(shared: Sequence[Sequence[str]]) -> set[str]:
    """All names of shared tensors, except the first of each."""
    aliases: set[str] = set()
    for names in shared:
        aliases.update(names[1:])
    return aliases


def saved_once(tensors: Mapping[str, Tensor], shared: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """Returns tensors, each shared one only under its first name."""
    aliases = _aliases(shared)
    return {name: value for name, value in tensors.items() if name not in aliases}


def unusable_checkpoint(path: Path, error: object) -> DataError:
    """Error for a checkpoint file that cannot be read, with the first line of the cause."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError.at(
        path,
        f"cannot be loaded: {reason}",
        hint="the checkpoint is broken, or of another model: use another one",
        code="data.broken",
    )
