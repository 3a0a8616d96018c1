"""Ctrl-C and SIGTERM ask a run to stop after its step, so that a checkpoint can be written."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

_SAME_STOP_S = 2.0


class StopRequest:
    """While active, the first SIGINT or SIGTERM is remembered; a later one acts at once.

    One that follows within two seconds is the same request: schedulers and launchers send it to a
    process and to its group.

    Attributes:
        signal: The signal that came, if any.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread alone and lets no other ask for them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def received(self) -> int | None:
        """The signal that asked for a stop, if one did."""
        return self.signal

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None and time.monotonic() - self._since < _SAME_STOP_S:
            return
        if self.signal is not None:
            self._restore()
            signal.raise_signal(number)
        self.signal, self._since = number, time.monotonic()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
