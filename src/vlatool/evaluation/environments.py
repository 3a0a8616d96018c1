"""Gymnasium environments: where they are registered, how they are made, how their names map."""

import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, Self, cast

import numpy as np
from PIL import Image

from vlatool.config.resolve import load_config
from vlatool.episode import UInt8Array
from vlatool.errors import (
    EnvironmentProblem,
    UsageError,
    VlatoolError,
    install_line,
    missing_package,
)
from vlatool.evaluation.config import RolloutConfig, RolloutTask
from vlatool.jobs.executor import (
    check_semaphores,
    default_workers,
    end_with_driver,
    signals_blocked,
)
from vlatool.plugins import ENVIRONMENTS, EnvironmentSource, did_you_mean

Env = Any
EnvObservation = Mapping[str, Any]
MakeEnv = Callable[[], Env]

_JOIN_TIMEOUT_S = 5.0
# Attribute of an environment that can leave out drawing; where it is False, images may be black.
DRAWS_IMAGES = "draws_images"
# Key of an observation that is one array.
_ARRAY = "observation"
_IMAGE_DIMENSIONS = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnvInfo:
    """Description of an environment; all its episodes share it."""

    make_env: MakeEnv  # function that creates one; picklable for other processes
    action_space: Any  # gymnasium space of the actions
    fps: float | None  # frames per second of its renderings; None if it does not say


@dataclass(frozen=True)
class Start:
    """Start of an episode."""

    make_env: MakeEnv  # function that creates the environment
    seed: int  # seed of the initial state
    options: dict[str, Any] | None = None  # options of the environment's reset


@dataclass(frozen=True)
class Call:
    """Call of one environment."""

    slot: int  # number of the environment
    start: Start | None = None  # start of an episode; None for a step
    action: Any = None  # action of a step
    is_rendered: bool = False  # the reply has a rendered image
    has_images: bool = True  # False: the images of the observation may be black


@dataclass(frozen=True)
class Reply:
    """Reply to a call."""

    observation: EnvObservation = field(default_factory=dict[str, Any])
    # Values of the info that are plain or of numpy.
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reward: float = 0.0  # reward of a step
    terminated: bool = False  # True if the episode has reached an end
    # True if the environment ends it for another reason, such as its limit of steps.
    truncated: bool = False
    frame: UInt8Array | None = None  # rendered image after the call, uint8 [H, W, 3]
    # Exception of the environment, or the end of its process; None without one.
    error: str | None = None
    traceback: str = ""  # traceback of the exception


class Environments(Protocol):
    """Environments by slot; use it in a `with` block, which closes them."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def info(self, make_env: MakeEnv) -> EnvInfo:
        """Creates an environment, closes it and returns its description."""
        ...

    def call(self, calls: Sequence[Call]) -> dict[int, Reply]:
        """Returns the replies by slot.

        A slot without a reply has lost its environment, because another one ended the process they
        share. Its episode has to be started again.
        """
        ...


class LocalEnvironments:
    """Environments in this process; an environment that raises an exception is replaced."""

    def __init__(self) -> None:
        self._envs: dict[int, tuple[MakeEnv, Env]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for slot in [*self._envs]:
            self._close(slot)

    def info(self, make_env: MakeEnv) -> EnvInfo:
        """Creates and closes an environment; returns its description."""
        with redirect_stdout(sys.stderr):
            env = make_env()
            fps = getattr(env, "metadata", {}).get("render_fps")
            _close(env)
        return EnvInfo(make_env, env.action_space, float(fps) if fps else None)

    def call(self, calls: Sequence[Call]) -> dict[int, Reply]:
        return {call.slot: self.reply(call) for call in calls}

    def reply(self, call: Call) -> Reply:
        """Reply to one call; an exception of the environment becomes the error of the reply."""
        try:
            # Simulators print; the standard output is for the result of the command.
            with redirect_stdout(sys.stderr):
                env = self._env(call)
                world = getattr(env, "unwrapped", env)
                if hasattr(world, DRAWS_IMAGES):
                    setattr(world, DRAWS_IMAGES, call.has_images or call.is_rendered)
                if call.start is not None:
                    observation, info = env.reset(seed=call.start.seed, options=call.start.options)
                    step = (0.0, False, False)
                else:
                    observation, reward, terminated, truncated, info = env.step(call.action)
                    step = (float(reward), bool(terminated), bool(truncated))
                frame = env.render() if call.is_rendered else None
                return Reply(
                    observation if isinstance(observation, Mapping) else {_ARRAY: observation},
                    {key: value for key, value in info.items() if _is_sent(value)},
                    *step,
                    frame=None if frame is None else _rgb(frame),
                )
        except Exception as error:  # noqa: BLE001 - an environment may raise anything
            self._close(call.slot)
            text = f"{type(error).__name__}: {error}".partition("\n")[0]
            return Reply(error=text, traceback=traceback.format_exc())

    def _env(self, call: Call) -> Env:
        """Environment of a slot; a new one if an episode of another environment starts there."""
        if call.start is not None:
            make_env = call.start.make_env
            if call.slot in self._envs and self._envs[call.slot][0] != make_env:
                self._close(call.slot)
            if call.slot not in self._envs:
                self._envs[call.slot] = (make_env, make_env())
        return self._envs[call.slot][1]

    def _close(self, slot: int) -> None:
        if slot in self._envs:
            _close(self._envs.pop(slot)[1])


class EnvProcesses:
    """Environments in other processes: slot i is in process i modulo their number.

    If a process ends, its environments are lost, and another process replaces it. Only the
    environment it was working on gets an error. A process that does not reply in time is killed.
    """

    def __init__(self, num_processes: int, timeout_s: float) -> None:
        self._num_processes = num_processes
        self._timeout_s = timeout_s
        self._workers: dict[int, _Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers.values():
            worker.close()
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()

    def info(self, make_env: MakeEnv) -> EnvInfo:
        """Creates and closes an environment in the first process; returns its description."""
        worker = self._worker(0)
        try:
            worker.send(make_env)
            answer = worker.receive(self._timeout_s)
        except _WorkerEnded as ended:
            del self._workers[0]
            raise EnvironmentProblem(
                f"the process that makes the environment {ended}",
                hint='a script needs `if __name__ == "__main__":`; to see its messages, try '
                "--env-processes 1",
                code="environment.process_failed",
            ) from None
        if isinstance(answer, VlatoolError):
            raise answer
        return answer

    def call(self, calls: Sequence[Call]) -> dict[int, Reply]:
        """Returns the replies by slot. The processes work at the same time."""
        shares: dict[int, list[Call]] = {}
        for call in calls:
            shares.setdefault(call.slot % self._num_processes, []).append(call)
        for number, share in shares.items():
            with suppress(_WorkerEnded):  # noticed below
                self._worker(number).send(share)
        replies: dict[int, Reply] = {}
        for number, share in shares.items():
            replies |= self._replies(number, share)
        return replies

    def _replies(self, number: int, share: Sequence[Call]) -> dict[int, Reply]:
        """Replies of one process; if it has ended, only an error for the call that was running.

        The other environments of the process are lost, also those that have replied.
        """
        replies: dict[int, Reply] = {}
        for call in share:
            try:
                replies[call.slot] = self._workers[number].receive(self._timeout_s)
            except _WorkerEnded as ended:
                del self._workers[number]
                return {call.slot: Reply(error=f"the process of the environment {ended}")}
        return replies

    def _worker(self, number: int) -> "_Worker":
        if number not in self._workers:
            self._workers[number] = _Worker()
        return self._workers[number]


class _WorkerEnded(Exception):
    """A process of environments has ended; the text is such as `ended with SIGKILL`."""


class _Worker:
    """A process of environments and the connection to it."""

    def __init__(self) -> None:
        check_semaphores()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        with signals_blocked(signal.SIGINT):
            self._process.start()
        theirs.close()
        self._is_started = False

    def send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._ended() from None

    def receive(self, timeout_s: float) -> Any:
        """Next answer; the time limit begins when the process has started."""
        try:
            if not self._is_started:
                self._connection.recv()
                self._is_started = True
            if self._connection.poll(timeout_s):
                return self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        self._process.kill()
        self.end()
        raise _WorkerEnded(f"did not reply within {timeout_s:g} s and was killed")

    def close(self) -> None:
        self._connection.close()

    def end(self) -> None:
        """Closes the connection; ends the process if it does not end by itself."""
        self.close()
        self._process.join(_JOIN_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ended(self) -> _WorkerEnded:
        self.end()
        code = self._process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _WorkerEnded(f"ended with {name}")


def _serve(connection: Connection) -> None:
    """Replies to the calls of the driver until it closes the connection or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    end_with_driver()
    # Simulators print from C too; the standard output is for the result of the command.
    os.dup2(2, 1)
    with LocalEnvironments() as environments, suppress(EOFError, OSError):
        connection.send("started")
        while True:
            message = connection.recv()
            for answer in _answers(environments, message):
                _send(connection, answer)


def _answers(environments: LocalEnvironments, message: Any) -> Iterator[Any]:
    """Answers to a message: calls, or a function that creates an environment."""
    if isinstance(message, list):
        yield from map(environments.reply, message)
        return
    try:
        yield environments.info(message)
    except VlatoolError as error:
        yield error


def _send(connection: Connection, answer: Any) -> None:
    try:
        connection.send(answer)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - objects of others raise anything when pickled
        text = f"its observation cannot be sent to another process: {error}".partition("\n")[0]
        connection.send(Reply(error=text))


def _rgb(frame: Any) -> UInt8Array:
    """Copy of a rendered image as uint8 [H, W, 3]; raises TypeError for anything else."""
    image = np.array(frame, np.uint8)
    if image.ndim == _IMAGE_DIMENSIONS and image.shape[-1] == 3:
        return image
    return np.asarray(Image.fromarray(image).convert("RGB"))


def _is_sent(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_sent, cast(Sequence[object], value)))
    return value is None or isinstance(value, str | bool | int | float | np.generic | np.ndarray)


def _close(env: Env) -> None:
    """Closes an environment, which may raise anything after an exception."""
    try:
        env.close()
    except Exception as error:  # noqa: BLE001 - its episodes have ended
        _log.warning("an environment cannot be closed: %r", error)


_BUILT_IN = "vlatool/"
_MAPPING = (
    *("cameras", "flipped_cameras", "camera_rotations", "channels_first_cameras"),
    *("fields", "action", "pose_groups"),
)


def environment_ids() -> list[str]:
    ids: list[str] = []
    for source in ENVIRONMENTS.values():
        if source.ids:
            ids += source.load("ids")()
    return ids


def source_of(name: str) -> EnvironmentSource | None:
    """Source of an environment; None if it is not in the table."""
    prefixes = [prefix for prefix in ENVIRONMENTS if name.startswith(prefix)]
    return ENVIRONMENTS[max(prefixes, key=len)] if prefixes else None


def with_mapping(config: RolloutConfig) -> RolloutConfig:
    """The config; without a mapping, it gets the mapping of the environment's preset."""
    source = source_of(config.env)
    if source is None or config.fields or config.action:
        return config
    preset = load_config(RolloutConfig, presets=[source.preset]).config
    names = [name for name in _MAPPING if not getattr(config, name)]
    return config.model_copy(update={name: getattr(preset, name) for name in names})


@dataclass(frozen=True)
class EnvironmentMaker:
    """Function without arguments that creates an environment, in any process."""

    name: str  # id
    # Arguments of the environment.
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # Registration of an environment that the caller registered in this process; None for others.
    spec: Any = None

    def __call__(self) -> Env:
        import gymnasium

        _register(self.name)
        try:
            return gymnasium.make(self.spec or self.name, render_mode="rgb_array", **self.options)
        except (gymnasium.error.Error, ModuleNotFoundError) as error:
            if isinstance(error, ModuleNotFoundError) and _extra_of(self.name):
                raise _missing(self.name, error) from None
            raise UsageError(
                f"the environment {self.name!r} cannot be created: {_first_line(error)}",
                hint=_unknown_hint(self.name),
                code="usage.unknown_name",
            ) from error
        except VlatoolError:
            raise
        except Exception as error:
            with_options = f" with {dict(self.options)}" if self.options else ""
            hint = "correct env_options: the documentation of the environment lists them"
            raise UsageError(
                f"the environment {self.name!r} cannot be created{with_options}: "
                f"{type(error).__name__}: {_first_line(error)}",
                hint=hint
                if self.options
                else "the documentation of the environment may name what it needs",
                code="usage.unsupported",
                details={"env_options": dict(self.options)},
            ) from error

    def default_processes(self) -> int:
        """Default number of processes for its environments.

        The steps of the built-in world take less time than sending their images. An environment
        that other processes cannot make stays in this one.
        """
        is_built_in = self.name.startswith(_BUILT_IN)
        return 1 if is_built_in or not self.is_portable else default_workers()

    @property
    def is_portable(self) -> bool:
        """True if other processes can make the environment."""
        try:
            ForkingPickler.dumps(self)
        except Exception:  # noqa: BLE001 - objects of others raise anything when they are pickled
            return False
        return True


def environment_maker(task: RolloutTask) -> EnvironmentMaker:
    """Function that creates the environment of a task."""
    name = task.env
    if not name:
        raise UsageError(
            "you have not named an environment",
            hint=f"name one, such as --env {environment_ids()[0]}",
            code="usage.missing_key",
        )
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise missing_package("gymnasium") from None
    _register(name)
    known = gymnasium.registry.get(name) if source_of(name) is None else None
    return EnvironmentMaker(name, task.env_options, known)


def _register(name: str) -> None:
    source = source_of(name)
    if source is None:
        return
    try:
        source.load("register")()
    except ModuleNotFoundError as error:
        raise _missing(name, error) from None


def _missing(name: str, error: ModuleNotFoundError) -> EnvironmentProblem:
    extra = _extra_of(name)
    return EnvironmentProblem(
        f"the environment {name!r} needs the package {error.name!r}, which is not installed",
        hint=install_line(extra),
        code="environment.missing_dependency",
        details={"package": error.name, "extra": extra},
    )


def _extra_of(name: str) -> str:
    """Extra that an environment needs; empty for the built-in world and unknown environments."""
    source = source_of(name)
    return "" if source is None else source.extra


def _unknown_hint(name: str) -> str:
    known = environment_ids()
    hint = did_you_mean(name, known)
    if source_of(name) is not None and not name.startswith(_BUILT_IN):
        return hint
    if not hint.startswith("known:"):
        return hint
    built_in = [known_name for known_name in known if known_name.startswith(_BUILT_IN)]
    return f"install the package that defines it, or choose a built-in one: {', '.join(built_in)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
