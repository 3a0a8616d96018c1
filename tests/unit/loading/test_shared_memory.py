"""Memory that a loader process lends, gets back and fills again."""

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
AHEAD = 2


def made_in_room(lender: SharedPool, level: int) -> BatchMessage:
    """A micro-batch whose pictures lie in a room."""
    room = lender.allocate(SIZE)
    room[:] = level
    return lender.pack(MicroBatch({"images": torch.from_numpy(room)}, ("one",)))


def images(parcel: BatchMessage) -> Tensor:
    return parcel.unpack().batch["images"]


def sent(value: Tensor) -> Tensor:
    """A tensor that did not lie in a room, as the trainer gets it."""
    return SharedPool(AHEAD).pack(MicroBatch({"value": value}, ())).unpack().batch["value"]


# rows


def test_rows_that_follow_each_other_are_not_copied() -> None:
    room = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)

    joined = stack_rows([*room][1:])

    assert joined.shape == (3, 3, 2)
    assert np.shares_memory(joined, room)
    np.testing.assert_array_equal(joined, room[1:])


def scattered() -> dict[str, list[np.ndarray]]:
    room = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    fixed = room.copy()
    fixed.flags.writeable = False
    return {
        "backwards": [*room[::-1]],
        "apart": [*room[::2]],
        "strided": [*room.transpose(0, 2, 1)],
        "read only": [*fixed],
        "of their own": [one.copy() for one in room],
    }


@pytest.mark.parametrize("where", list(scattered()))
def test_other_rows_are_copied(where: str) -> None:
    rows = scattered()[where]

    joined = stack_rows(rows)

    np.testing.assert_array_equal(joined, np.stack(rows))
    assert not any(np.shares_memory(joined, row) for row in rows)


# pieces


def test_room_of_a_micro_batch_is_sent_without_a_copy() -> None:
    lender = SharedPool(AHEAD)
    room = lender.allocate(SIZE)
    parcel = lender.pack(MicroBatch({"images": torch.from_numpy(room)}, ()))

    room[5] = 77

    assert images(parcel)[5] == 77


@pytest.mark.parametrize("part", [slice(None), slice(3, 5)])
def test_memory_is_not_filled_again_while_any_of_it_is_in_use(part: slice) -> None:
    lender = SharedPool(AHEAD)
    held = images(made_in_room(lender, 1))[part]

    made_in_room(lender, 2)

    assert (held == 1).all()


def test_memory_that_nobody_uses_is_filled_again() -> None:
    lender = SharedPool(AHEAD)
    first = images(made_in_room(lender, 1)).data_ptr()

    assert images(made_in_room(lender, 2)).data_ptr() == first


def test_memory_of_a_parcel_that_is_not_opened_is_not_filled_again() -> None:
    lender = SharedPool(AHEAD)
    waiting = made_in_room(lender, 1)

    made_in_room(lender, 2)

    assert (images(waiting) == 1).all()


def test_no_more_memory_is_kept_than_is_in_use_at_once() -> None:
    lender = SharedPool(AHEAD)
    held = [made_in_room(lender, level) for level in range(20)]
    pieces = [weakref.ref(one.shared["images"].buffer) for one in held]

    held.clear()

    assert sum(piece() is not None for piece in pieces) <= AHEAD + 3


def test_room_that_was_not_used_is_not_kept() -> None:
    lender = SharedPool(AHEAD)
    room = weakref.ref(lender.allocate(SIZE))
    assert room() is None

    lender.pack(MicroBatch({}, ()))
    first, second = lender.allocate(SIZE), lender.allocate(SIZE)

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
    ids=lambda one: f"{one.dtype} {list(one.shape)}",
)
def test_tensor_arrives_as_it_was(value: Tensor) -> None:
    found = sent(value)

    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    torch.testing.assert_close(found, value, rtol=0, atol=0)


def test_colors_stay_last_in_memory() -> None:
    value = torch.zeros(2, 100, 200, 3).permute(0, 3, 1, 2)

    assert sent(value).stride() == value.stride()


def test_what_is_no_tensor_arrives_in_its_place() -> None:
    batch: dict[str, Any] = {"keys": ["a"], "images": torch.zeros(SIZE), "nested": {"one": 1}}

    found = SharedPool(AHEAD).pack(MicroBatch(batch, ("a",), positions=(3,))).unpack()

    assert list(found.batch) == list(batch)
    assert (found.batch["keys"], found.batch["nested"]) == (["a"], {"one": 1})
    assert (found.samples, found.positions) == (("a",), (3,))


def test_small_tensors_travel_in_the_message() -> None:
    parcel = SharedPool(AHEAD).pack(MicroBatch({"actions": torch.ones(16, 7)}, ()))

    assert not parcel.shared
    assert torch.equal(parcel.unpack().batch["actions"], torch.ones(16, 7))


@pytest.mark.filterwarnings("error")
def test_memory_that_arrived_in_inference_mode_is_given_back_after_it() -> None:
    lender = SharedPool(AHEAD)
    parcel = made_in_room(lender, 1)
    message = ForkingPickler.dumps(parcel)
    with torch.inference_mode():
        taken = images(ForkingPickler.loads(message))
    taken_again = lender.allocate(SIZE)
    del taken

    lender.pack(MicroBatch({"images": torch.from_numpy(taken_again)}, ()))
    assert lender.allocate(SIZE)[0] == 1


def test_order_of_axes_is_kept_in_small_batches_too() -> None:
    value = torch.arange(48, dtype=torch.uint8).reshape(2, 2, 2, 6).permute(0, 3, 1, 2)
    message = ForkingPickler.dumps(SharedPool(AHEAD).pack(MicroBatch({"value": value}, ())))

    found = ForkingPickler.loads(message).unpack().batch["value"]

    assert found.stride() == value.stride()


NO_ROOM = """
import resource
from vlatool.errors import EnvironmentProblem
from vlatool.loading.shared_memory import SharedPool

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    SharedPool(1).allocate(1 << 24)
except EnvironmentProblem as error:
    print(error.code)
"""


def test_lack_of_shared_memory_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM], capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == "environment.no_shared_memory", done.stderr
