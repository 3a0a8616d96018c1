"""Option `--nproc`: starting a command on several ranks, and error handling within a rank."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from vlatool.cli.failures import Terminated, as_vlatool_error
from vlatool.cli.output import write_stderr, write_stdout
from vlatool.cli.session import Invocation


def on_ranks(run: Invocation, processes: int | None) -> bool:
    """Runs this command line on several ranks and prints the result of rank 0.

    Returns:
        False if this process does the work itself.
    """
    if processes is None:
        return False
    from vlatool.training import start

    if processes == 1:
        start.check_processes(processes, gpus=0)
        return False
    write_stdout(start.start(sys.argv[1:], processes, reporter=run.reporter))
    return True


@contextmanager
def one_voice(run: Invocation) -> Iterator[None]:
    """In a rank of `--nproc`, sends errors to the parent process, which prints one of them."""
    from vlatool.training.ranks import Membership

    membership = Membership.of_this_process()
    if membership is None:
        yield
        return
    try:
        membership.join()
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt, Terminated, SystemExit) as error:
        for number in (signal.SIGINT, signal.SIGTERM):  # the parent process may send it again
            signal.signal(number, signal.SIG_IGN)
        shown = as_vlatool_error(error)
        membership.report_error(shown)
        logging.getLogger("vlatool").debug("the rank ended with", exc_info=True)
        if run.options.debug:
            write_stderr("".join(traceback.format_exception(error)).rstrip())
        # Without cleanup: closing a loader while other ranks end would print many errors.
        os._exit(shown.exit_code)
