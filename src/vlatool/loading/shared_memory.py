"""Memory of micro-batches that loader processes lend to the trainer, get back and fill again.

New shared memory takes as long to be touched for the first time as the pictures that are put there
take to be decoded: 0.8 ms per MiB on a virtual machine, 0.1 ms when it is filled again; measured.
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

# The first byte of a piece: whether it is lent. The rest keeps what follows aligned for any type.
_HEADER = 64
# Contiguous tensors of fewer bytes travel in the message.
_LARGE = 1 << 16
# Besides those that are ready: one that is being made, and two that the trainer has. One that holds
# more at once, as in accumulation on a CPU, has others made anew.
_IN_HAND = 3


class SharedPool:
    """The pieces of one loader process.

    Args:
        ahead: Micro-batches that it makes before one is taken.
    """

    def __init__(self, prefetch_factor: int) -> None:
        self._most = prefetch_factor + _IN_HAND
        self._kept: list[Tensor] = []
        self._taken: list[Tensor] = []

    def allocate(self, size: int) -> UInt8Array:
        """Memory uint8 [size] for the micro-batch that is being made; holds anything.

        Raises:
            EnvironmentProblem: There is no shared memory left.
        """
        fits = (one for one in self._kept if one.numel() >= _HEADER + size and not one[0])
        piece = next(fits, None)
        if piece is None:
            piece = _shared(_HEADER + size)
            self._kept.append(piece)
        piece[0] = 1
        self._taken.append(piece)
        return piece.numpy()[_HEADER : _HEADER + size]

    def pack(self, made: MicroBatch) -> "BatchMessage":
        """A micro-batch to be sent; what has its place in a room is not copied."""
        tensors = {name: one for name, one in made.batch.items() if _is_plain(one)}
        loans = {name: self._loan(one) for name, one in tensors.items() if _is_lent(one)}
        small = {name: one.numpy() for name, one in tensors.items() if name not in loans}
        self._settle([loan.buffer for loan in loans.values()])
        others = {name: None if name in tensors else one for name, one in made.batch.items()}
        return BatchMessage(replace(made, batch=others), loans, small)

    def _loan(self, value: Tensor) -> "SharedTensor":
        place = value.data_ptr()
        for piece in self._taken:
            offset = place - piece.data_ptr() - _HEADER
            if 0 <= offset < piece.numel() - _HEADER and offset % value.itemsize == 0:
                return SharedTensor(piece, offset, value.dtype, value.shape, value.stride())
        self.allocate(value.nbytes)
        strides = torch.empty_like(value, device="meta").stride()
        loan = SharedTensor(self._taken[-1], 0, value.dtype, value.shape, strides)
        loan.view(loan.buffer[_HEADER:]).copy_(value)
        return loan

    def _settle(self, sent: Sequence[Tensor]) -> None:
        """Keeps few enough; nobody gives back what was not sent."""
        lost = {id(one) for one in self._taken} - {id(one) for one in sent}
        most = self._most * max(1, len(sent))
        self._kept = [one for one in self._kept if id(one) not in lost][-most:]
        self._taken = []


@dataclass(frozen=True)
class SharedTensor:
    """A tensor in a piece of shared memory.

    Attributes:
        piece: uint8 [K].
        offset: Bytes from the end of its header.
        dtype: Of the tensor, as `shape` and `strides`.
        shape: In numbers.
        strides: In numbers.
    """

    buffer: Tensor
    offset: int
    dtype: torch.dtype
    shape: Sequence[int]
    strides: Sequence[int]

    def view(self, content: Tensor) -> Tensor:
        """The tensor in the content uint8 [K - 64] of the piece."""
        steps = zip(self.shape, self.strides, strict=True)
        count = 1 + sum((size - 1) * stride for size, stride in steps)
        end = self.offset + count * self.dtype.itemsize
        return content[self.offset : end].view(self.dtype).as_strided(self.shape, self.strides)


@dataclass(frozen=True)
class BatchMessage:
    """A micro-batch on its way from a loader process.

    Attributes:
        made: What it holds besides tensors, and None for each of these.
        loans: Large tensors, by name.
        small: Others, by name.
    """

    micro_batch: MicroBatch
    shared: Mapping[str, SharedTensor]
    small: Mapping[str, Array]

    def unpack(self) -> MicroBatch:
        """The micro-batch; its memory is given back when none of its tensors is left."""
        pieces = {id(loan.buffer): loan.buffer for loan in self.shared.values()}
        contents = {key: _content(piece) for key, piece in pieces.items()}
        found: dict[str, Any] = {
            name: loan.view(contents[id(loan.buffer)]) for name, loan in self.shared.items()
        }
        found |= {name: torch.from_numpy(one) for name, one in self.small.items()}
        return replace(self.micro_batch, batch={**self.micro_batch.batch, **found})

    def pin_memory(self) -> MicroBatch:
        """The micro-batch in page-locked memory; see `MicroBatch.pin_memory`."""
        return self.unpack().pin_memory()


def stack_rows(rows: Sequence[Array]) -> Array:
    """Arrays of one shape as one [B, ...]: those that lie in a room as they are, others copied."""
    first = rows[0]
    step = first.nbytes
    start = first.ctypes.data
    in_place = first.flags.writeable and all(
        one.base is first.base
        and one.ctypes.data == start + number * step
        and one.flags.c_contiguous
        for number, one in enumerate(rows)
    )
    if first.base is None or not in_place:
        return np.stack(rows)
    return np.lib.stride_tricks.as_strided(first, (len(rows), *first.shape), (step, *first.strides))


def _content(piece: Tensor) -> Tensor:
    """What is lent in a piece; gives it back when the tensor and all its views are gone."""
    whole = piece.numpy()  # written to in any mode of torch, unlike a tensor
    lease = whole[_HEADER:]
    given_back = weakref.finalize(lease, _give_back, whole)
    given_back.atexit = False
    return torch.from_numpy(lease)


def _give_back(whole: Array) -> None:
    whole[0] = 0


def _shared(size: int) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"no shared memory for {size / 1e6:.1f} MB of a batch: {error}",
            hint="give the container more (`docker run --shm-size 8g`), or lower "
            "data.num_workers, data.prefetch_factor or hparams.per_gpu_batch_size",
            code="environment.no_shared_memory",
        ) from None


def _is_plain(value: Any) -> bool:
    """Whether numpy can hold it as it is."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.requires_grad or value.is_conj() or value.is_neg())
        and value.dtype is not torch.bfloat16
        and not (value.is_floating_point() and value.itemsize == 1)
    )


def _is_lent(value: Tensor) -> bool:
    """Whether it is large, or has an order of axes that a message would lose."""
    return value.nbytes >= _LARGE or not value.is_contiguous()
