"""Ctrl-C and SIGTERM ask a run to stop after its step, so that a checkpoint can be written."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """While active, the first SIGINT or SIGTERM is remembered; the second one acts at once.

    Attributes:
        signal: The signal that came, if any.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
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

    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
