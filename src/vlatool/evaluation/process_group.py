"""Process group of a job whose ranks were started by a launcher."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed

from vlatool.errors import VlatoolError
from vlatool.jobs.job import Ranks

# One rank may have far more work than another.
_TIMEOUT = timedelta(hours=24)


@contextmanager
def ranks_from_env() -> Generator[Ranks]:
    """Ranks of `--nproc`, torchrun or accelerate launch; a single rank without a launcher.

    Ranks use a barrier only, which needs no GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    distributed.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), _barrier)
    finally:
        # Ends the barrier of ranks that still wait, with an error.
        distributed.destroy_process_group()


def _barrier() -> None:
    try:
        distributed.barrier()
    except RuntimeError:  # the only sign of a closed connection
        raise VlatoolError(
            f"rank {distributed.get_rank()}: another rank ended before this one",
            hint="see the error of that rank; once it is fixed, run the same command to resume",
            code="rank.left",
        ) from None
