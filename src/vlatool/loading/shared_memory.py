"""Memory that a loader worker shares with the trainer, to send micro-batches without a copy.

A worker reads images into a buffer of its `SharedPool` and sends a `BatchMessage` with the place of
each tensor. The trainer marks the buffer as free when no tensor of the micro-batch is left, and the
worker fills it again. The first access to new shared memory takes as long as decoding the images
that are written there: 0.8 ms per MiB on a virtual machine (measured), 0.1 ms when reused. With
torch's own messages, which share each tensor anew, a loader process read 78 % of the samples per
second (8 images of 384 x 384, medians of 5 runs in turn). Source: reference/order 5-10.

Legend of shapes: K bytes of a buffer, B rows of a batch.
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
        batch = dict(self.micro_batch.batch)
        contents: dict[int, Tensor] = {}  # of each buffer; several tensors may share one
        for name, tensor in self.shared.items():
            if id(tensor.buffer) not in contents:
                contents[id(tensor.buffer)] = _content(tensor.buffer)
            batch[name] = tensor.view(contents[id(tensor.buffer)])
        for name, array in self.small.items():
            batch[name] = torch.from_numpy(array)
        return replace(self.micro_batch, batch=batch)

    def pin_memory(self) -> MicroBatch:
        """Returns the micro-batch in page-locked memory; see `MicroBatch.pin_memory`."""
        return self.unpack().pin_memory()


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


class SharedPool:
    """The shared memory of one loader worker."""

    def __init__(self, prefetch_factor: int) -> None:
        self._max_batches = prefetch_factor + _IN_USE
        self._buffers: list[Tensor] = []
        # Buffers of the micro-batch that is being read.
        self._current: list[Tensor] = []

    def allocate(self, size: int) -> UInt8Array:
        """Returns uninitialized memory uint8 [size] for the micro-batch that is being read."""
        buffer = self._free_buffer(_HEADER + size)
        buffer[0] = 1
        self._current.append(buffer)
        return buffer.numpy()[_HEADER : _HEADER + size]

    def _free_buffer(self, size: int) -> Tensor:
        for buffer in self._buffers:
            if buffer.numel() >= size and not buffer[0]:
                return buffer
        try:
            buffer = torch.empty(size, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"cannot allocate {size / 1e6:.1f} MB of shared memory for a batch: {error}",
                hint="raise the limit of the container (`docker run --shm-size 8g`), or lower "
                "data.num_workers, data.prefetch_factor or hparams.per_gpu_batch_size",
                code="environment.hardware",
            ) from None
        self._buffers.append(buffer)
        return buffer

    def pack(self, micro_batch: MicroBatch) -> BatchMessage:
        """Returns the message to send; tensors that are in a buffer of the pool are not copied."""
        batch = dict(micro_batch.batch)
        shared: dict[str, SharedTensor] = {}
        small: dict[str, Array] = {}
        for name, value in micro_batch.batch.items():
            if not is_numpy_compatible(value):
                continue
            batch[name] = None
            # A message would lose the strides of a tensor that is not contiguous.
            if value.nbytes >= _MIN_SHARED_BYTES or not value.is_contiguous():
                shared[name] = self._share(value)
            else:
                small[name] = value.numpy()
        # Drops buffers that were not sent, which the trainer never returns, and surplus ones
        sent = {id(tensor.buffer) for tensor in shared.values()}
        unsent = {id(buffer) for buffer in self._current} - sent
        kept = [buffer for buffer in self._buffers if id(buffer) not in unsent]
        self._buffers = kept[-self._max_batches * max(1, len(shared)) :]
        self._current = []
        return BatchMessage(replace(micro_batch, batch=batch), shared, small)

    def _share(self, value: Tensor) -> SharedTensor:
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


def is_numpy_compatible(value: Any) -> bool:
    """True if numpy can represent the tensor without a conversion."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.requires_grad or value.is_conj() or value.is_neg())
        and value.dtype is not torch.bfloat16
        and not (value.is_floating_point() and value.itemsize == 1)
    )


def stack_rows(rows: Sequence[Array]) -> Array:
    """Stacks arrays of one shape to [B, ...]; does not copy if they are adjacent in one buffer."""
    first = rows[0]
    if first.base is None or not first.flags.writeable:
        return np.stack(rows)
    for number, row in enumerate(rows):
        address = first.ctypes.data + number * first.nbytes
        is_next = row.base is first.base and row.ctypes.data == address
        if not is_next or not row.flags.c_contiguous:
            return np.stack(rows)
    strides = (first.nbytes, *first.strides)
    return np.lib.stride_tricks.as_strided(first, (len(rows), *first.shape), strides)
