"""Option `--nproc`: starting a command on several ranks, and error handling within a rank."""

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from vlatool.cli.failures import Terminated, as_vlatool_error
from vlatool.cli.output import error_document, to_json, write_stderr, write_stdout
from vlatool.cli.session import Invocation
from vlatool.errors import VlatoolError
from vlatool.results import Result


def run_on_ranks(run: Invocation, processes: int | None) -> bool:
    """Runs this command line on several ranks and prints the result of rank 0.

    Returns False if this process does the work itself.

    In a job on other machines, there is a rank for each GPU of this one.
    """
    from vlatool.training.ranks import Node

    node = Node.of_environment(os.environ)
    if processes is None and node is None:
        return False
    from vlatool.training import start

    count = (start.gpus_here() or 1) if processes is None else processes
    if count == 1 and (node is None or node.count == 1):
        start.check_processes(count, gpus=0)
        return False
    nodes = {} if node is None else {"node": node}
    write_stdout(start.start(sys.argv[1:], count, **nodes, reporter=run.reporter))
    return True


def read_secrets() -> None:
    """Reads the secrets of a job from their store into the environment of this process."""
    from vlatool.training.ranks import SECRETS

    if SECRETS in os.environ:
        from vlatool.launching.secrets import load_secrets

        os.environ.update(load_secrets(os.environ.pop(SECRETS)))


def join_slurm() -> None:
    """Makes this process a rank if srun started it as one of several tasks."""
    from vlatool.training.ranks import slurm_variables

    os.environ.update(slurm_variables(os.environ))


@contextmanager
def rank_errors(run: Invocation) -> Iterator[None]:
    """In a rank of `--nproc`, writes errors for the starting process, which prints one of them."""
    from vlatool.training.ranks import Launch

    launch = Launch.of_this_process()
    if launch is None:
        yield
        return
    try:
        launch.join()
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt, Terminated, SystemExit) as error:
        for number in (signal.SIGINT, signal.SIGTERM):  # the starting process may send it again
            signal.signal(number, signal.SIG_IGN)
        shown = as_vlatool_error(error)
        write_error_file(shown, Path(os.environ["TORCHELASTIC_ERROR_FILE"]))
        logging.getLogger("vlatool").debug("the rank ended with", exc_info=True)
        if run.options.debug:
            write_stderr("".join(traceback.format_exception(error)).rstrip())
        # Without cleanup: closing a loader while other ranks end would print many errors.
        os._exit(shown.exit_code)


def write_error_file(error: VlatoolError, file: Path) -> None:
    """Writes the error of a rank; torchrun reads `message` and `timestamp`, in seconds."""
    from vlatool.storage.atomic import write_json

    document = {**error_document(error), "timestamp": int(time.time())}
    if isinstance(result := error.result, Result):
        document["result"] = {"json_document": result.document(), "plain_text": result.text()}
    write_json(file, json.loads(to_json(document)))
