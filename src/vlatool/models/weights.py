"""Weights from files into models, strictly: safetensors, or pickles of tensors and nothing else.

Tied weights are stored once, under the first of their names.
"""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlatool.errors import DataError
from vlatool.storage.atomic import open_atomic

_SHOWN = 5
_PICKLES = (".bin", ".pt", ".pth")
# The first byte of a pickle that is no archive.
_PICKLE, _ARCHIVE = b"\x80", b"PK\x03\x04"


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads a safetensors file into a module; every name and shape must fit.

    Raises:
        DataError: The file is missing or broken, keys or shapes differ, or numbers are not finite;
            names the first few.
    """
    weights = matching_state_dict(module, read_weights(path), path)
    module.load_state_dict(weights, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        DataError: It is missing or broken.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise unusable_checkpoint(path, error) from None


def read_external_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that another program wrote, by its suffix; no code of it is run.

    Raises:
        DataError: It is missing, broken, holds more than tensors by name, or code.
    """
    if path.suffix not in _PICKLES:
        return read_weights(path)
    content = read_pickled_weights(path)
    if not all(isinstance(k, str) and isinstance(one, Tensor) for k, one in content.items()):
        raise unusable_checkpoint(path, "it holds more than tensors by name")
    return content


def read_pickled_weights(path: Path) -> dict[Any, Any]:
    """The content of a published `.pt` or `.bin` file, on the CPU; nothing of it is run.

    Raises:
        DataError: It is missing or broken, or would run code.
    """
    if reason := _pickle_problem(path):
        raise unusable_checkpoint(path, reason)
    try:
        # What is mapped is read as it is needed, once for all processes of a machine.
        content: Any = torch.load(
            path, map_location="cpu", weights_only=True, mmap=is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise _pickle_error(path, error) from None
    except Exception as error:  # noqa: BLE001 - the unpickler of torch raises anything
        raise unusable_checkpoint(path, error) from None
    if not isinstance(content, Mapping):
        raise unusable_checkpoint(path, f"it holds a {type(content).__name__}")
    return dict(cast("Mapping[Any, Any]", content))


def _pickle_error(path: Path, error: pickle.UnpicklingError) -> DataError:
    """What a pickle asks for that is no tensor would be run by loading it."""
    asked = re.search(r"GLOBAL (\S+)", str(error))
    what = "code" if asked is None else asked[1]
    return DataError(
        f"{path}: asks for {what}, which is no tensor; nothing of the file is run",
        hint="ask for safetensors, or for a file of nothing but tensors",
        code="data.unsafe_checkpoint",
        details={"path": str(path), "asks_for": what},
    )


def _pickle_problem(path: Path) -> str:
    """Why a file can hold no weights; empty where it may."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_ARCHIVE))
    except OSError as error:
        return error.strerror or str(error)
    if start == _ARCHIVE and not is_zipfile(path):
        return "it is cut off"
    known = start == _ARCHIVE or start.startswith(_PICKLE)
    return "" if known else ("it is no file of weights" if start else "it is empty")


def write_pickled_weights(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values as a `.pt` file, whole or not at all."""
    with open_atomic(path) as file:
        torch.save(dict(content), file)


def matching_state_dict(
    module: nn.Module, weights: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """The tensors of a file, which has a module's names and shapes, sharded or not.

    A single number fits whether it is a scalar or a row of one: scalars cannot be sharded.

    Raises:
        DataError: It has not, or a number is not finite; names the first few differences.
    """
    expected = module.state_dict()
    weights = {
        name: value.reshape(expected[name].shape)
        if name in expected and value.numel() == expected[name].numel() == 1
        else value
        for name, value in weights.items()
    }
    problems = sorted(_differences(module, weights))
    if problems:
        raise DataError(
            f"{path}: does not fit the model: {'; '.join(problems[:_SHOWN])}",
            hint="use the configuration that the checkpoint was trained with",
            code="data.checkpoint_mismatch",
            details={"problems": problems},
        )
    bad = sorted(name for name, value in weights.items() if not _is_finite(value))
    if bad:
        raise DataError(
            f"{path}: numbers are not finite: {', '.join(bad[:_SHOWN])}",
            hint="use other weights: with these nothing can be computed",
            code="data.weights_not_finite",
            details={"path": str(path), "tensors": bad},
        )
    return weights


def _is_finite(value: Tensor) -> bool:
    # Of the types of one byte torch cannot tell.
    return value.itemsize == 1 or bool(value.isfinite().all())


def _differences(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[str]:
    expected = module.state_dict()
    again = {name for names in shared_names(module) for name in names[1:]}
    yield from (f"missing {name}" for name in expected.keys() - weights.keys() - again)
    yield from (f"unexpected {name}" for name in weights.keys() - expected.keys())
    for name, value in expected.items():
        if name in weights and weights[name].shape != value.shape:
            yield f"{name} is {list(weights[name].shape)}, the model has {list(value.shape)}"


def shared_names(module: nn.Module) -> list[Sequence[str]]:
    """Groups of names that stand for one tensor, in the order of the state dict."""
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    groups: dict[int, list[str]] = {}
    for name, value in tensors:
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def saved_once(tensors: Mapping[str, Tensor], shared: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """The tensors without the further names of those that are shared."""
    again = {name for names in shared for name in names[1:]}
    return {name: value for name, value in tensors.items() if name not in again}


def unusable_checkpoint(path: Path, error: object) -> DataError:
    """The error for a checkpoint file that cannot be read; of what torch says, the first line."""
    told = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"{path}: cannot be loaded: {told}",
        hint="the checkpoint is damaged or of another model; use an earlier one",
        code="data.broken_checkpoint",
        details={"path": str(path)},
    )
