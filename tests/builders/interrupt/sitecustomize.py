"""Ctrl-C at a chosen event of a command, in its own process or in one that it starts.

Python imports this file in every process whose `PYTHONPATH` has its folder. Events are those of
`sys.addaudithook`: opened files, imports, started threads and processes, connections, ...
"""

import os
import signal
import sys
import threading
from pathlib import Path

VARIABLE = "VLATOOL_TEST_INTERRUPT"


def install() -> None:
    """Counts events of this process, as the environment variable says.

    `record:FOLDER` appends each event to `FOLDER/driver` or `FOLDER/worker`. `ROLE:N:FOLDER` sends
    SIGINT to the process group at event N of a process with this role (once, even if several have
    it), and creates the file `FOLDER/sent-N` with the handler of SIGINT that the process had.
    `ROLE:N,M:FOLDER` sends it again at event M.
    """
    setting = os.environ[VARIABLE].split(":")
    role = "driver" if os.getsid(0) == os.getpid() else "worker"
    folder = Path(setting[-1])
    if setting[0] == "record":
        _record(folder / role)
    elif setting[0] == role:
        for number in setting[1].split(","):
            _interrupt(folder / f"sent-{number}", int(number))


def _record(path: Path) -> None:
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if threading.current_thread() is threading.main_thread():
            text = "".join(str(arguments[:1])[:80].splitlines())
            os.write(file, f"{os.getpid()} {event} {text}\n".encode())

    sys.addaudithook(hook)


def _interrupt(sent: Path, number: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        del event, arguments
        if threading.current_thread() is not threading.main_thread():
            return
        count += 1
        if count == number:
            handler = signal.getsignal(signal.SIGINT)
            try:
                file = os.open(sent, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return
            os.write(file, repr(handler).encode())
            os.close(file)
            os.killpg(0, signal.SIGINT)

    sys.addaudithook(hook)


if VARIABLE in os.environ:
    install()
