"""Shared memory of loader workers: sent, returned and reused."""

import subprocess
import sys
import weakref
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vlatool.loading.base import MicroBatch
from vlatool.loading.shared_memory import BatchMessage, SharedPool, stack_rows

SIZE = 100_001
PREFETCH = 2


def filled(pool: SharedPool, level: int) -> BatchMessage:
    """A message with a micro-batch whose images are in a buffer of the pool."""
    buffer = pool.allocate(SIZE)
    buffer[:] = level
    return pool.pack(MicroBatch({"images": torch.from_numpy(buffer)}, ("one",)))


def images(message: BatchMessage) -> Tensor:
    return message.unpack().batch["images"]


def received(value: Tensor) -> Tensor:
    """A tensor that is not in a buffer of the pool, as the trainer receives it."""
    return SharedPool(PREFETCH).pack(MicroBatch({"value": value}, ())).unpack().batch["value"]


# rows


def test_adjacent_rows_are_not_copied() -> None:
    buffer = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)

    joined = stack_rows([*buffer][1:])

    assert joined.shape == (3, 3, 2)
    assert np.shares_memory(joined, buffer)
    np.testing.assert_array_equal(joined, buffer[1:])


def scattered() -> dict[str, list[np.ndarray]]:
    buffer = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    fixed = buffer.copy()
    fixed.flags.writeable = False
    return {
        "backwards": [*buffer[::-1]],
        "apart": [*buffer[::2]],
        "strided": [*buffer.transpose(0, 2, 1)],
        "read only": [*fixed],
        "separate": [value.copy() for value in buffer],
    }


@pytest.mark.parametrize("case", list(scattered()))
def test_other_rows_are_copied(case: str) -> None:
    rows = scattered()[case]

    joined = stack_rows(rows)

    np.testing.assert_array_equal(joined, np.stack(rows))
    assert not any(np.shares_memory(joined, row) for row in rows)


def test_buffer_of_a_micro_batch_is_sent_without_a_copy_and_reused() -> None:
    pool = SharedPool(PREFETCH)
    buffer = pool.allocate(SIZE)
    message = pool.pack(MicroBatch({"images": torch.from_numpy(buffer)}, ()))
    buffer[5] = 77
    assert images(message)[5] == 77

    pool = SharedPool(PREFETCH)
    first = images(filled(pool, 1)).data_ptr()
    waiting = filled(pool, 2)  # not unpacked
    assert images(waiting).data_ptr() == first
    waiting = filled(pool, 1)
    filled(pool, 2)
    assert (images(waiting) == 1).all()


@pytest.mark.parametrize("part", [slice(None), slice(3, 5)])
def test_memory_is_not_reused_while_a_part_of_it_is_in_use(part: slice) -> None:
    pool = SharedPool(PREFETCH)
    messages = images(filled(pool, 1))[part]

    filled(pool, 2)

    assert (messages == 1).all()


def test_number_of_buffers_is_limited() -> None:
    pool = SharedPool(PREFETCH)
    messages = [filled(pool, level) for level in range(20)]
    buffers = [weakref.ref(value.shared["images"].buffer) for value in messages]

    messages.clear()

    assert sum(ref() is not None for ref in buffers) <= PREFETCH + 3


def test_buffer_that_was_not_sent_is_dropped() -> None:
    pool = SharedPool(PREFETCH)
    buffer = weakref.ref(pool.allocate(SIZE))
    assert buffer() is None

    pool.pack(MicroBatch({}, ()))
    first, second = pool.allocate(SIZE), pool.allocate(SIZE)

    assert not np.shares_memory(first, second)


# tensors


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(40_000).view(200, 200).T,
        torch.rand(2, 3, 100, 200).contiguous(memory_format=torch.channels_last),
        torch.rand(300, 200)[:, ::2],
        torch.zeros(1 << 17, dtype=torch.bool),
        torch.rand(1 << 16).to(torch.bfloat16),
        torch.rand(3, 2).T,
        torch.tensor(4),
        torch.zeros(0, 7),
    ],
    ids=lambda value: f"{value.dtype} {list(value.shape)}",
)
def test_tensor_arrives_unchanged(value: Tensor) -> None:
    result = received(value)

    assert (result.dtype, result.shape) == (value.dtype, value.shape)
    torch.testing.assert_close(result, value, rtol=0, atol=0)
    if value.shape[1:] == (3, 100, 200):  # colors stay last in memory
        assert result.stride() == value.stride()


def test_other_values_and_small_tensors_arrive_under_their_keys() -> None:
    batch: dict[str, Any] = {"keys": ["a"], "images": torch.zeros(SIZE), "nested": {"one": 1}}
    result = SharedPool(PREFETCH).pack(MicroBatch(batch, ("a",), positions=(3,))).unpack()
    assert list(result.batch) == list(batch)
    assert (result.batch["keys"], result.batch["nested"]) == (["a"], {"one": 1})
    assert (result.samples, result.positions) == (("a",), (3,))

    value = torch.arange(48, dtype=torch.uint8).reshape(2, 2, 2, 6).permute(0, 3, 1, 2)
    tensors = {"value": value, "small": torch.ones(16, 7)}
    sent = SharedPool(PREFETCH).pack(MicroBatch(tensors, ()))
    assert "small" not in sent.shared
    arrived = ForkingPickler.loads(ForkingPickler.dumps(sent)).unpack().batch
    assert all(torch.equal(arrived[name], tensor) for name, tensor in tensors.items())
    assert arrived["value"].stride() == value.stride()


@pytest.mark.filterwarnings("error")
def test_memory_that_arrived_in_inference_mode_is_returned_after_it() -> None:
    pool = SharedPool(PREFETCH)
    sent = filled(pool, 1)
    message = ForkingPickler.dumps(sent)
    with torch.inference_mode():
        taken = images(ForkingPickler.loads(message))
    taken_again = pool.allocate(SIZE)
    del taken

    pool.pack(MicroBatch({"images": torch.from_numpy(taken_again)}, ()))
    assert pool.allocate(SIZE)[0] == 1


NO_MEMORY = """
import resource
from vlatool.errors import EnvironmentProblem
from vlatool.loading.shared_memory import SharedPool

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    SharedPool(1).allocate(1 << 24)
except EnvironmentProblem as error:
    print(error.code)
"""


def test_lack_of_shared_memory_is_reported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == "environment.hardware", done.stderr
