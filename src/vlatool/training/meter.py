"""Memory that a computation would allocate, without allocating it or computing anything.

Tensors are fake: they have a shape, a type and a device, and no content. Integers and booleans of a
batch keep their values, because a model may select by them, such as the labelled tokens.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_ATEN = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)
# Elements of a float tensor that keeps its values, such as a constant of a schedule.
_CONSTANT = 4096
# Glibc gives blocks of this size back to the system when they are freed; smaller ones stay with the
# process.
_LARGE = 2**25


class AllocationMeter(TorchDispatchMode):
    """Context in which new tensors are fake, and their bytes are counted until they are freed."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the check takes a tenth of the time

    def __init__(self, device: torch.device, *, for_gpu: bool = False) -> None:
        """Creates the meter."""
        super().__init__()
        self.device = device
        self.live = self.peak = self.retained = 0  # bytes that are allocated now
        self._is_cpu = device.type == "cpu" and not for_gpu
        self._small = 0
        self._storages: dict[int, weakref.finalize[Any, Any]] = {}
        self._fake_mode = FakeTensorMode(allow_non_fake_inputs=True)

    def resident(self, tensor: Tensor) -> Tensor:
        """A fake tensor on the device, whose bytes are not counted."""
        fake = self._empty(tensor, self.device)
        self._follow(fake, 0)
        return fake

    def copied(self, tensor: Tensor) -> Tensor:
        """A fake copy on the device, which keeps the values of integers and booleans."""
        fake = self._known(self._empty(tensor, self.device), tensor)
        self._follow(fake, tensor.nbytes)
        return fake

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operation on fake tensors."""
        del types
        # Two thirds of all calls: autograd asks each tensor for its device.
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        named = dict(kwargs or {})
        inputs = list(_tensors((args, named.values())))
        if not all(isinstance(tensor, FakeTensor) for tensor in inputs):
            args, named = tree_map(self._as_fake, (tuple(args), named))
            inputs = list(_tensors((args, named.values())))
        result = self._run(func, args, named, inputs)
        for tensor in _tensors((result,)):
            if tensor.device.type == self.device.type:
                self._follow(tensor, tensor.untyped_storage().nbytes())
        if self._is_cpu:
            self._raise_peak(_workspace(func, args, result))
        return result

    def _as_fake(self, value: Any) -> Any:
        is_real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self._known(self._empty(value, value.device), value) if is_real else value

    def _empty(self, like: Tensor, device: torch.device) -> Tensor:
        with self._fake_mode:
            return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)

    def _known(self, fake: Tensor, real: Tensor) -> Tensor:
        """Keeps the values of a tensor, if it is of a type that a model selects by."""
        is_number = real.is_floating_point() or real.is_complex()
        if not real.is_meta and (not is_number or real.numel() <= _CONSTANT):
            fake.known = real  # pyright: ignore[reportAttributeAccessIssue] - read by `_values`
        return fake

    def _run(self, func: Any, args: Any, named: dict[str, Any], inputs: list[Tensor]) -> Any:
        if func in _INDEXING:
            args = self._without_masks(args)
        if all(_values(tensor) is not None for tensor in inputs):
            return self._run_known(func, args, named, inputs)
        if func._schema.is_mutable:
            for tensor in _written(func, args):
                tensor.known = None  # pyright: ignore[reportAttributeAccessIssue] - see `_known`
        with self._fake_mode:
            return func(*args, **named)

    def _run_known(self, func: Any, args: Any, named: dict[str, Any], inputs: list[Tensor]) -> Any:
        """Runs an operation whose inputs, if it has any, all have values."""
        if not inputs:  # makes a tensor: numbers of a network have no values
            with self._fake_mode:
                result = func(*args, **named)
            if isinstance(result, Tensor) and not result.is_floating_point():
                self._known(result, _on_values(func, args, named))
            return result
        real = _on_values(func, args, named)
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(real)):
            return real
        schema = func._schema
        if schema.is_mutable or any(value.alias_info for value in schema.returns):
            with self._fake_mode:
                result = func(*args, **named)
            for fake, values in zip(tree_leaves(result), tree_leaves(real), strict=True):
                if isinstance(fake, Tensor):
                    self._known(fake, values)
            return result
        # The size of the result may depend on values.
        device = named.get("device") or inputs[0].device
        return tree_map(
            lambda leaf: (
                self._known(self._empty(leaf, device), leaf) if isinstance(leaf, Tensor) else leaf
            ),
            real,
        )

    def _without_masks(self, args: Any) -> Any:
        """Arguments of an indexing operation with indices in place of masks of known values."""
        tensor, indices, *rest = args
        chosen: list[Tensor | None] = []
        for index in indices:
            values = None if index is None else _values(index)
            if index is None or values is None or values.dtype not in (torch.bool, torch.uint8):
                chosen.append(index)
                continue
            chosen += [
                self._known(self._empty(part, index.device), part)
                for part in values.nonzero().T.contiguous().unbind()
            ]
        return (tensor, chosen, *rest)

    def _follow(self, tensor: Tensor, size: int) -> None:
        """Counts the bytes of a tensor until it is freed, unless another one shares them."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        self._storages[key] = weakref.finalize(storage, self._free, key, size)
        self.live += size
        self._small += size if size < _LARGE else 0
        self._raise_peak(0)

    def _free(self, key: int, size: int) -> None:
        del self._storages[key]
        self.live -= size
        self._small -= size if size < _LARGE else 0

    def _raise_peak(self, temporary: int) -> None:
        if self._is_cpu:
            self.retained = max(self.retained, self._small)
        idle = max(self.retained - self._small, 0)
        self.peak = max(self.peak, self.live + idle + temporary)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among arguments or results of an operation, in lists of them too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Iterable) and not isinstance(value, str):
            yield from _tensors(value)


def _values(tensor: Tensor) -> Tensor | None:
    return getattr(tensor, "known", None)


def _on_values(func: Any, args: Any, named: Any) -> Any:
    """Result of an operation on the values of its inputs, on the CPU."""

    def real(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _values(value)
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value

    args, named = tree_map(real, (args, named))
    return func(*args, **named)


def _written(func: Any, args: Any) -> list[Tensor]:
    """Arguments that an operation writes to."""
    pairs = zip(func._schema.arguments, args, strict=False)
    changed = [value for spec, value in pairs if spec.alias_info and spec.alias_info.is_write]
    return [leaf for leaf in tree_leaves(changed) if isinstance(leaf, Tensor)]


def _workspace(func: Any, args: Any, result: Any) -> int:
    """Bytes that a convolution on a CPU allocates besides its result.

    It copies tensors to the layout of its kernels (measured: oneDNN 3, AVX-512).
    """
    if func is _ATEN.convolution.default:
        return max(args[0].nbytes, result.nbytes)
    if func is _ATEN.convolution_backward.default:
        gradient, inputs = args[0].nbytes, args[1].nbytes
        return max(inputs, gradient) + (0 if result[0] is None else inputs)
    return 0
