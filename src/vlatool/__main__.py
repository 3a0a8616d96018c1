"""Entry point of the command `vlatool` and of `python -m vlatool`."""

import signal
import sys


def main() -> None:
    """The `vlatool` command; Ctrl-C ends it silently until it can report it."""
    # Python's own handler would print a traceback from the middle of an import. A process that
    # ignores Ctrl-C, such as one with nohup, keeps ignoring it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        import fcntl as _  # noqa: F401 - Windows has none
    except ImportError:
        sys.stderr.write("error: vlatool needs Linux or macOS; on Windows, run it in WSL\n")
        sys.exit(6)
    from vlatool.cli.app import main

    main()


if __name__ == "__main__":
    main()
