"""Pool of shared memory for the micro-batches of a loader worker.

The trainer returns a buffer to the pool of its worker when no tensor of the micro-batch is left,
and the worker fills it again. The first access to new shared memory takes as long as decoding the
images that are written there: 0.8 ms per MiB on a virtual machine (measured), 0.1 ms when reused.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlatool.episode import Array, UInt8Array
from vlatool.errors import EnvironmentProblem
from vlatool.loading.base import MicroBatch

# The first byte of a buffer is 1 while the buffer is in use. The size of the header aligns the
# content for any dtype.
_HEADER = 64
# Smallest size in bytes of a contiguous tensor in shared memory; smaller ones are in the message.
_MIN_SHARED_BYTES = 1 << 16
# Micro-batches in use besides the prefetched ones: one that the worker reads, two of the trainer.
# If the trainer keeps more, as with gradient accumulation on a CPU, new buffers are allocated.
_IN_USE = 3


class SharedPool:
    """The shared memory of one loader worker."""

    def __init__(self, prefetch_factor: int) -> None:
        self._max_batches = prefetch_factor + _IN_USE
        self._buffers: list[Tensor] = []
        # Buffers of the micro-batch that is being read.
        self._current: list[Tensor] = []

    def allocate(self, size: int) -> UInt8Array:
        """Returns uninitialized memory uint8 [size] for the micro-batch that is being read."""
        free = (b for b in self._buffers if b.numel() >= _HEADER + size and not b[0])
        buffer = next(free, None)
        if buffer is None:
            buffer = _shared(_HEADER + size)
            self._buffers.append(buffer)
        buffer[0] = 1
        self._current.append(buffer)
        return buffer.numpy()[_HEADER : _HEADER + size]

    def pack(self, micro_batch: MicroBatch) -> "BatchMessage":
        """Returns the message to send; tensors that are in a buffer of the pool are not copied."""
        items = micro_batch.batch.items()
        tensors = {name: value for name, value in items if _is_numpy_compatible(value)}
        shared = {name: self._share(value) for name, value in tensors.items() if _is_large(value)}
        small = {name: value.numpy() for name, value in tensors.items() if name not in shared}
        self._release_unsent([tensor.buffer for tensor in shared.values()])
        batch = {name: None if name in tensors else value for name, value in items}
        return BatchMessage(replace(micro_batch, batch=batch), shared, small)

    def _share(self, value: Tensor) -> "SharedTensor":
        address = value.data_ptr()
        for buffer in self._current:
            offset = address - buffer.data_ptr() - _HEADER
            if 0 <= offset < buffer.numel() - _HEADER and offset % value.itemsize == 0:
                return SharedTensor(buffer, offset, value.dtype, value.shape, value.stride())
        self.allocate(value.nbytes)
        strides = torch.empty_like(value, device="meta").stride()
        tensor = SharedTensor(self._current[-1], 0, value.dtype, value.shape, strides)
        tensor.view(tensor.buffer[_HEADER:]).copy_(value)
        return tensor

    def _release_unsent(self, sent: Sequence[Tensor]) -> None:
        """Drops buffers that were not sent, which the trainer never returns, and surplus ones."""
        unsent = {id(buffer) for buffer in self._current} - {id(buffer) for buffer in sent}
        count = self._max_batches * max(1, len(sent))
        self._buffers = [buffer for buffer in self._buffers if id(buffer) not in unsent][-count:]
        self._current = []


@dataclass(frozen=True)
class SharedTensor:
    """A tensor in a buffer of shared memory."""

    buffer: Tensor  # header and content, uint8 [K]
    offset: int  # offset in bytes from the start of the content
    dtype: torch.dtype  # data type of the tensor
    shape: Sequence[int]
    strides: Sequence[int]  # strides of the tensor, in elements

    def view(self, content: Tensor) -> Tensor:
        """Returns the tensor as a view of the content uint8 [K - 64] of its buffer."""
        steps = zip(self.shape, self.strides, strict=True)
        count = 1 + sum((size - 1) * stride for size, stride in steps)
        end = self.offset + count * self.dtype.itemsize
        return content[self.offset : end].view(self.dtype).as_strided(self.shape, self.strides)


@dataclass(frozen=True)
class BatchMessage:
    """A micro-batch as a loader worker sends it."""

    # the micro-batch; values of its batch that are in `shared` or `small` are None
    micro_batch: MicroBatch
    shared: Mapping[str, SharedTensor]  # map from name to large tensor
    # map from name to array of any other tensor that numpy can represent
    small: Mapping[str, Array]

    def unpack(self) -> MicroBatch:
        """Returns the micro-batch; its memory is returned to the pool with its last tensor."""
        buffers = {id(tensor.buffer): tensor.buffer for tensor in self.shared.values()}
        contents = {key: _content(buffer) for key, buffer in buffers.items()}
        tensors: dict[str, Any] = {
            name: tensor.view(contents[id(tensor.buffer)]) for name, tensor in self.shared.items()
        }
        tensors |= {name: torch.from_numpy(array) for name, array in self.small.items()}
        return replace(self.micro_batch, batch={**self.micro_batch.batch, **tensors})

    def pin_memory(self) -> MicroBatch:
        """Returns the micro-batch in page-locked memory; see `MicroBatch.pin_memory`."""
        return self.unpack().pin_memory()


def stack_rows(rows: Sequence[Array]) -> Array:
    """Stacks arrays of one shape to [B, ...]; does not copy if they are adjacent in one buffer."""
    first = rows[0]
    step = first.nbytes
    start = first.ctypes.data
    is_adjacent = first.flags.writeable and all(
        row.base is first.base
        and row.ctypes.data == start + number * step
        and row.flags.c_contiguous
        for number, row in enumerate(rows)
    )
    if first.base is None or not is_adjacent:
        return np.stack(rows)
    return np.lib.stride_tricks.as_strided(first, (len(rows), *first.shape), (step, *first.strides))


def _content(buffer: Tensor) -> Tensor:
    """Content of a buffer, which is marked free when the tensor and all its views are deleted."""
    # An array: unlike a tensor, it can be written in any mode of torch.
    array = buffer.numpy()
    content = array[_HEADER:]
    finalizer = weakref.finalize(content, _mark_free, array)
    finalizer.atexit = False
    return torch.from_numpy(content)


def _mark_free(array: Array) -> None:
    array[0] = 0


def _shared(size: int) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"cannot allocate {size / 1e6:.1f} MB of shared memory for a batch: {error}",
            hint="raise the limit of the container (`docker run --shm-size 8g`), or lower "
            "data.num_workers, data.prefetch_factor or hparams.per_gpu_batch_size",
            code="environment.no_shared_memory",
        ) from None


def _is_numpy_compatible(value: Any) -> bool:
    """True if numpy can represent the tensor without a conversion."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.requires_grad or value.is_conj() or value.is_neg())
        and value.dtype is not torch.bfloat16
        and not (value.is_floating_point() and value.itemsize == 1)
    )


def _is_large(value: Tensor) -> bool:
    """True if the tensor is large, or if it is not contiguous: a message would lose its strides."""
    return value.nbytes >= _MIN_SHARED_BYTES or not value.is_contiguous()
