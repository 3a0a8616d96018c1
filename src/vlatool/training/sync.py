"""Copies of a run at remote locations, made in the background while the run trains.

The trainer only wakes a thread for each location: a step never waits for the storage.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from vlatool.artifacts.run.format import Retention, RunDir
from vlatool.errors import EnvironmentProblem, StorageError, VlatoolError
from vlatool.events import Reporter
from vlatool.storage.background import in_background
from vlatool.storage.remote import forget_connections
from vlatool.storage.retry import ProcessClock
from vlatool.storage.tree import size_text
from vlatool.training.mirror import RunMirror

# Growing files, such as the metrics, are sent this often between checkpoints; failures of the
# storage that outlast its retries are tried again after the same time.
_EVERY_S = 60.0
_QUIET_S, _POLL_S = 1.0, 0.5
_LOST = "storage.lock_lost"

_LOGGER = logging.getLogger(__name__)


class RunSync:
    """Context in which a run is copied to each of some locations; rank 0 has it.

    On entry the record is written there, so a location that cannot be written is an error before
    the first step. If the block ends with an error or an interruption, what is missing is sent
    too, and only a warning says if that fails.
    """

    def __init__(
        self,
        run: RunDir,  # the local run
        locations: Sequence[tuple[Path, Callable[[], None]]],
        retention: Retention,  # rule for the checkpoints there
        reporter: Reporter,  # receives warnings, and the progress at the end
    ) -> None:
        self._run, self._reporter = run, reporter
        self._is_flushed = False
        self._senders = [
            _Sender(RunMirror(run, root, check, retention)) for root, check in locations
        ]

    def __enter__(self) -> Self:
        for sender in self._senders:
            sender.mirror.send_record()
        for sender in self._senders:
            sender.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            is_lost = isinstance(exc, VlatoolError) and exc.code == _LOST
            if exc is not None and not is_lost and not self._is_flushed:
                self._flush()
                for error in self._errors():
                    self._reporter.warn("sync", f"{error.message}; {error.hint}")
        finally:
            for sender in self._senders:
                sender.end()

    @property
    def location(self) -> str | None:
        """Location of the first copy; None without any."""
        return str(self._senders[0].mirror.root) if self._senders else None

    def needed(self) -> frozenset[int]:
        """Steps of local checkpoints that are still to be sent."""
        return frozenset(step for sender in self._senders for step in sender.mirror.missing())

    def saved(self) -> None:
        """Starts to send a new checkpoint; reports a failure of the attempts before."""
        for sender in self._senders:
            sender.ask()
            error = sender.error
            if error is not None and error.code == _LOST:
                raise error
            if error is not None:
                self._reporter.warn(
                    "sync",
                    f"{error.message}; the run continues, and what is missing is sent "
                    "when the storage can be used again",
                )

    def finish(self) -> None:
        """Waits until everything is sent, the record last."""
        self._flush()
        for error in self._errors():
            raise error

    def _flush(self) -> None:
        self._is_flushed = True
        tickets = [(sender, sender.ask(is_last=True)) for sender in self._senders]
        try:
            # Most runs have only the last checkpoint left, which is no reason for a bar.
            if not all(sender.wait(ticket, _QUIET_S) for sender, ticket in tickets):
                self._wait(tickets)
        except KeyboardInterrupt:
            for sender, _ in tickets:
                self._reporter.warn(
                    "sync",
                    f"{sender.mirror.root}: {sender.state()}; run the same command again to send "
                    "the rest",
                )
            raise

    def _wait(self, tickets: Sequence[tuple["_Sender", int]]) -> None:
        left = len(self.needed())
        if not left:  # the last small files
            while not all(sender.wait(ticket, _POLL_S) for sender, ticket in tickets):
                pass
            return
        with self._reporter.progress("sending", left, "checkpoints") as bar:
            for sender, ticket in tickets:
                while not sender.wait(ticket, _POLL_S):
                    before, left = left, len(self.needed())
                    bar.advance(before - left, sent=size_text(sender.mirror.sent_bytes))
            bar.advance(left - len(self.needed()))

    def _errors(self) -> list[StorageError]:
        errors = (sender.final_error(self._run) for sender in self._senders)
        return [error for error in errors if error is not None]


class _Sender:
    """Thread that keeps one copy up to date: when it is asked, and now and then."""

    def __init__(self, mirror: RunMirror) -> None:
        self.mirror = mirror  # the copy
        self.error: VlatoolError | None = None  # failure of the last attempt, if it failed
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._is_last = self._has_ended = False
        self._thread: Future[None] = Future()

    def start(self) -> None:
        """Starts the thread with a first attempt, which sends what the copy lacks."""
        self.ask()
        self._thread = in_background(self._run)

    def ask(self, *, is_last: bool = False) -> int:
        """Asks for an attempt that begins after this call; returns a ticket for `wait`; `is_last`:
        send the record too, after everything else.
        """
        with self._changed:
            self._asked += 1
            self._is_last |= is_last
            self._changed.notify_all()
            return self._asked

    def wait(self, ticket: int, seconds: float) -> bool:
        """Waits for the attempt of a ticket; False if it takes longer."""
        if self._thread.done():
            self._thread.result()  # raises what the thread did not expect
            return True
        with self._changed:
            return self._changed.wait_for(lambda: self._has_ended or self._done >= ticket, seconds)

    def end(self) -> None:
        """Ends the thread after the request that it waits for."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def state(self) -> str:
        """Newest checkpoint that is there, as text."""
        newest = self.mirror.newest()
        return (
            "no checkpoint is there" if newest is None else f"step {newest} is the last one there"
        )

    def final_error(self, run: RunDir) -> StorageError | None:
        """Error of a run of which a part could not be sent; None if all of it is there."""
        error = self.error
        if error is None or (isinstance(error, StorageError) and error.code == _LOST):
            return error
        return StorageError(
            f"the run could not be sent completely to {self.mirror.root}: {self.state()}, all of "
            f"the run is in {run.root}. {error.message}",
            hint=f"{error.hint}; the same command then sends the rest",
            code="storage.not_sent",
            details={**error.details, "location": str(self.mirror.root), "reason": error.code},
        )

    def _run(self) -> None:
        speed = ProcessClock().speed
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._has_ended or self._asked > self._done, _EVERY_S / speed
                )
                if self._has_ended:
                    return
                ticket, is_last = self._asked, self._is_last
            self.error = self._attempt(is_last=is_last)
            with self._changed:
                self._done = ticket
                self._has_ended |= self.error is not None and self.error.code == _LOST
                self._changed.notify_all()

    def _attempt(self, *, is_last: bool) -> VlatoolError | None:
        if isinstance(self.error, EnvironmentProblem):
            forget_connections()  # credentials may have been renewed
        try:
            self.mirror.send(is_last=is_last)
            if is_last:
                self.mirror.confirm()
                self.mirror.send_record()
        except VlatoolError as error:
            _LOGGER.warning("%s", error.message)
            return error
        return None
