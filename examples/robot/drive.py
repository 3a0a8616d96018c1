"""Drives a robot at a fixed rate with a policy, and records what it does.

    python examples/robot/drive.py world --policy runs/pick --instruction "put the red block ..."
    python examples/robot/drive.py so101 --port /dev/ttyACM0 --server ws://gpu:8000 --seconds 60
    python examples/robot/drive.py so101 --leader /dev/ttyACM1 --rate 30 --record demos

Press `s` when the task is done, `f` when it failed, `q` to stop without a word on it.

If no command is there in time, the robot holds its last one. After `stop_after` seconds without a
new command it is stopped, and so it is after an error, NaN or Ctrl-C.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import logging
import math
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from robot import Command, Commands, Observation, Robot

import vlatool
from vlatool.errors import EnvironmentProblem

_log = logging.getLogger("drive")
_STOP_TRIES = 3
_LOST = "environment.server_unreachable"


class RobotNotStoppedError(RuntimeError):
    """The robot did not confirm that it stands still: use the emergency stop."""


@dataclass
class Outcome:
    """What a drive did."""

    steps: int = 0  # commands of the policy that were executed
    held: int = 0  # steps in which the last command was repeated, because no new one was there
    reconnected: int = 0  # times that a lost server was there again in time
    reason: str = ""  # why it ended
    success: bool | None = None  # what you said at the end
    seconds: list[float] = field(default_factory=list)  # time of each step


def drive(
    robot: Robot,
    commands: Commands,
    *,
    rate: float,
    instruction: str = "",
    seconds: float = math.inf,
    stop_after: float = 0.5,
    on_step: Callable[[Observation, Command], object] | None = None,
    key: Callable[[], str] = str,
) -> Outcome:
    """Executes one command per step until the time is over, a key is pressed, or none comes.

    Args:
        robot: The robot; it is stopped when this returns or raises.
        commands: Source of the commands.
        rate: Steps per second.
        instruction: What the robot is asked to do; "" if the policy reads no text.
        seconds: Longest time.
        stop_after: Longest time in seconds without a new command.
        on_step: Called with the observation and the command of each step of the policy.
        key: Returns the key that was pressed since the last call, or "". `s`: the task is done,
            `f`: it failed, `q`: stop.

    Raises:
        ValueError: A command is not finite.
        RobotNotStoppedError: The robot could not be stopped.
    """
    outcome = Outcome()
    thread = ThreadPoolExecutor(1, "commands")
    try:
        robot.connect()
        outcome.reason = _steps(
            robot,
            _Source(commands, thread, instruction),
            outcome,
            period=1 / rate,
            end=time.monotonic() + seconds,
            stop_after=stop_after,
            on_step=on_step or (lambda observation, command: None),
            key=key,
        )
    finally:
        _stop(robot)
        thread.shutdown(wait=False, cancel_futures=True)
    return outcome


class _Source:
    """Commands that are computed beside the loop, one at a time."""

    def __init__(self, commands: Commands, thread: ThreadPoolExecutor, instruction: str) -> None:
        self._commands = commands
        self._thread = thread
        self._texts = {"instruction": instruction} if instruction else {}
        self._pending: Future[Command | None] | None = None
        self._is_lost = False
        self.reconnected = 0

    def next(self, observation: Observation, last: Command | None, wait_s: float) -> Command | None:
        """The next command; None if it is not there after `wait_s` seconds."""
        if self._pending is None:
            if self._is_lost:
                self._pending = self._thread.submit(self._commands.reset, None, command=last)
            else:
                step = self._commands.step
                self._pending = self._thread.submit(step, {**observation, **self._texts})
        done, _ = concurrent.futures.wait([self._pending], wait_s)
        if not done:
            return None
        pending = self._pending
        self._pending = None
        try:
            command = pending.result()
        except EnvironmentProblem as error:
            if error.code != _LOST or last is None:
                raise
            _log.warning("%s", error.message)
            self._is_lost = True
            return None
        if self._is_lost:  # `reset` has connected again; the next observation gets a new plan
            self._is_lost = False
            self.reconnected += 1
        return command


def _steps(
    robot: Robot,
    source: _Source,
    outcome: Outcome,
    *,
    period: float,
    end: float,
    stop_after: float,
    on_step: Callable[[Observation, Command], object],
    key: Callable[[], str],
) -> str:
    """Runs the steps; returns why they ended."""
    last: Command | None = None
    # The robot stands still until the first plan, which may take longer.
    commanded_at = math.inf
    tick = time.monotonic()
    while tick < end:
        began = time.monotonic()
        observation = robot.observe()
        command = source.next(observation, last, max(0.0, tick + period - time.monotonic()))
        outcome.reconnected = source.reconnected
        if command is not None:
            _check_finite(command)
            robot.act(command)
            last = command
            commanded_at = time.monotonic()
            outcome.steps += 1
            on_step(observation, command)
        elif last is not None:
            robot.act(last)
            outcome.held += 1
            without = time.monotonic() - commanded_at
            if without > stop_after:
                return f"no new command for {without:.2f} s"
        pressed = key()
        if pressed in ("s", "f"):
            outcome.success = pressed == "s"
        if pressed in ("s", "f", "q"):
            return "you stopped it"
        tick = max(tick + period, time.monotonic() - period)  # a late step is not made up for
        time.sleep(max(0.0, tick - time.monotonic()))
        outcome.seconds.append(time.monotonic() - began)
    return "the time is over"


def _check_finite(command: Command) -> None:
    for name, values in command.items():
        if not np.isfinite(values).all():
            raise ValueError(f"the command {name} is not finite: {values}")


def _stop(robot: Robot) -> None:
    """Stops the robot; tries again if that fails, also if Ctrl-C is pressed meanwhile."""
    for attempt in range(1, _STOP_TRIES + 1):
        try:
            robot.stop()
        except BaseException:
            _log.exception("the robot could not be stopped, attempt %d", attempt)
        else:
            return
    raise RobotNotStoppedError("the robot did not stop: use the emergency stop")


@contextmanager
def terminal_keys() -> Iterator[Callable[[], str]]:
    """Yields a function that returns the key that was pressed, or "" at once."""
    if not sys.stdin.isatty():
        yield str
        return

    def pressed() -> str:
        is_there = bool(select.select([sys.stdin], [], [], 0)[0])
        return sys.stdin.read(1) if is_there else ""

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class Recording:
    """Records the steps of a drive as frames that `vlatool train` reads."""

    def __init__(self, folder: str, rate: float) -> None:
        self.recorder = vlatool.record(folder, fps=rate)

    def add(self, observation: Observation, command: Command) -> None:
        images: dict[str, Any] = {}
        state: dict[str, Any] = {}
        for name, value in observation.items():
            if np.ndim(value) == 3:
                images[name] = value
            elif not isinstance(value, str):
                state[name.removeprefix("state.")] = value
        action = {name.removeprefix("action."): values for name, values in command.items()}
        self.recorder.add(images, state=state, action=action)

    def end(self, outcome: Outcome, instruction: str) -> None:
        """Writes the episode."""
        if outcome.steps:
            self.recorder.end_episode(instruction=instruction, success=outcome.success)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("robot", choices=["world", "so101"])
    parser.add_argument("--policy", help="run folder or checkpoint, computed here")
    parser.add_argument("--server", help="ws://HOST:PORT of `vlatool serve`")
    parser.add_argument("--leader", metavar="PORT", help="serial port of an arm that you move")
    parser.add_argument("--port", default="/dev/ttyACM0", help="serial port of the arm")
    parser.add_argument("--instruction", default="", help="what the robot is asked to do")
    parser.add_argument("--rate", type=float, help="steps per second; default: of the policy")
    parser.add_argument("--execute-steps", type=int, default=8)
    parser.add_argument("--delay-steps", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--stop-after", type=float, default=0.5)
    parser.add_argument("--record", metavar="FOLDER", help="record the episode")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        names: list[str] = []
        commands: Commands
        if options.leader:
            from so101 import Leader

            commands = Leader(options.leader)
            rate = options.rate or 30.0
        elif options.policy or options.server:
            policy = _policy(options)
            names = policy.names
            rate = options.rate or policy.fps
            steps = {"execute_steps": options.execute_steps, "delay_steps": options.delay_steps}
            commands = stack.enter_context(vlatool.ControlLoop(policy, **steps))
        else:
            parser.error("give --policy, --server or --leader")
        recording = Recording(options.record, rate) if options.record else None
        if recording:
            stack.callback(recording.recorder.close)
        key = stack.enter_context(terminal_keys())
        outcome = drive(
            _robot(options, names),
            commands,
            rate=rate,
            instruction=options.instruction,
            seconds=options.seconds,
            stop_after=options.stop_after,
            on_step=recording.add if recording else None,
            key=key,
        )
        if recording:
            recording.end(outcome, options.instruction)
    print(f"{outcome.reason}: {outcome.steps} steps, {outcome.held} held")
    return 0 if outcome.reason in ("the time is over", "you stopped it") else 1


def _policy(options: argparse.Namespace) -> Any:
    if options.policy:
        return vlatool.load_policy(options.policy)
    return vlatool.connect(options.server, wait=30)


def _robot(options: argparse.Namespace, names: list[str]) -> Robot:
    """The robot; yours gets its line here."""
    if options.robot == "world":
        from world import WorldRobot

        return WorldRobot(names)
    from so101 import SO101

    return SO101(options.port)


if __name__ == "__main__":
    sys.exit(main())
