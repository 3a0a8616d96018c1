"""Stop requests by Ctrl-C and SIGTERM: the run stops after the step and writes a checkpoint."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

_SAME_STOP_S = 2.0


class StopRequest:
    """Context that stores the first SIGINT or SIGTERM; a later one has its usual effect.

    A signal within two seconds of the first belongs to the same request: schedulers and launchers
    send signals to a process and to its group.

    Attributes:
        signal: The first signal that was received, if any.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        # Python delivers signals only to the main thread; other threads cannot set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def received(self) -> int | None:
        """The first signal that was received, if any."""
        return self.signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
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
