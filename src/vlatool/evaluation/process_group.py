"""Processes that a launcher has started to do one job together, and which of them this is."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed

from vlatool.errors import VlatoolError
from vlatool.jobs.job import Ranks

# One may have far more to do than another.
_PATIENCE = timedelta(hours=24)


@contextmanager
def ranks_from_env() -> Generator[Ranks]:
    """The ranks of `--nproc`, torchrun or accelerate launch; one alone elsewhere.

    They exchange nothing but that they have come so far, which needs no GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), _meet)
    finally:
        # Those that still wait are told by this.
        distributed.destroy_process_group()


def _meet() -> None:
    try:
        distributed.barrier()
    except RuntimeError:  # the only sign of a closed connection
        raise VlatoolError(
            f"rank {distributed.get_rank()}: another rank ended before this one",
            hint="what it says itself is the reason; once mended, the same command goes on",
            code="rank.left",
        ) from None
