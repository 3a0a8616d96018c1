"""The child process of `--nproc`: runs torchrun, and writes down how the ranks ended."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from vlatool.events import STOP_SIGNALS
from vlatool.storage.atomic import write_json
from vlatool.training.ranks import Launch, RankExit

EXITS = "exits.json"
FORWARDED = (signal.SIGINT, *STOP_SIGNALS)


def run_ranks(options: Sequence[str], folder: Path) -> list[RankExit]:
    """Runs torchrun until all ranks have ended, and returns the failed ones. `folder` is for the
    error files of the ranks.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parsed = run.parse_args(options)
    parsed.log_dir = str(folder / "torchrun")  # otherwise a new folder that it does not remove
    logging.disable(logging.ERROR)  # the starting process reports the failed ranks
    try:
        # In a thread torchrun handles no signals: `start` passes them on.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(run.run, parsed).result()
    except ChildFailedError as failed:
        exits: list[RankExit] = []
        for rank, end in failed.failures.items():
            error = end.error_file_data
            if "kind" not in error:  # torch's document for a rank without an error file
                error = None
            exits.append(RankExit(rank, end.exitcode, end.timestamp, error))
        return exits
    return []


def main(options: Sequence[str]) -> int:
    """Starts the ranks with the options of torchrun; returns 1 if one failed."""
    launch = Launch.of_this_process()
    assert launch is not None
    launch.end_with_parent()
    for number in FORWARDED:  # not SIG_IGN, which the ranks would inherit
        signal.signal(number, lambda *_: None)
    os.environ.update(replace(launch, parent=os.getpid()).variables())
    exits = run_ranks(options, Path(launch.folder))
    if exits:
        rows = [asdict(rank_exit) for rank_exit in exits]
        write_json(Path(launch.folder) / EXITS, {"exits": rows})
    return 1 if exits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
