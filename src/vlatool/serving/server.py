"""Websocket server of a policy: one task per client, one thread that computes.

The protocol is in docs/reference/serving.md. How a request becomes actions:

1. `_process_request` answers plain HTTP, checks the key, and lets the client in;
2. `_serve_client` sends the metadata of the policy, then answers requests until the client leaves;
3. `Session.observe` checks a request and adds its observation to the episode of this client;
4. the `ChunkBatcher` (serving/planner.py) collects requests of all clients for a few milliseconds
   and computes them in one batch of a fixed size, so that no client changes the actions of another;
5. `Session.actions` packs the chunk in the order that the client expects.

An error of a client ends its connection with a text, never the server.
"""

import asyncio
import gc
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State

import vlatool
from vlatool.config.resolve import load_config
from vlatool.episode import Array, ObservationSpec, as_array
from vlatool.errors import DataError, EnvironmentProblem, VlatoolError
from vlatool.evaluation.config import ActionMap, RolloutConfig
from vlatool.evaluation.control import EpisodeControl, ImageSizes
from vlatool.evaluation.controllers import KeyMap, control_options, has_mapping, steps_per_chunk
from vlatool.evaluation.policy_runner import PolicyRunner
from vlatool.models.base import Policy
from vlatool.models.published import WeightsOrigin
from vlatool.plugins import did_you_mean
from vlatool.serving import messages
from vlatool.serving.access import has_key, listen
from vlatool.serving.client import SocketLog
from vlatool.serving.config import ServeConfig, ServeMap
from vlatool.serving.planner import ChunkBatcher
from vlatool.transforms.names import FieldMap, NameMap


class Durations:
    """Number and sum of durations."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._count = 0
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        self._count += 1
        self._seconds += seconds

    def lines(self) -> Iterator[str]:
        yield from _head(self._name, "summary", self._text)
        yield f"{self._name}_sum {self._seconds:.6f}"
        yield f"{self._name}_count {self._count}"


class ServerMetrics:
    """Counts and durations since the start of a server."""

    def __init__(self) -> None:
        self.requests = 0
        self.clients = 0
        self.errors: Counter[str] = Counter()
        self.rejections: Counter[str] = Counter()
        self.far: Counter[str] = Counter()
        self.inference = Durations("vlatool_inference_seconds", "Durations of the policy.")
        self.total = Durations("vlatool_request_seconds", "Durations from request to reply.")

    def text(self, gauges: Mapping[str, tuple[int, str]]) -> str:
        return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Mapping[str, tuple[int, str]]) -> Iterator[str]:
        for name, (value, text) in gauges.items():
            yield from [*_head(name, "gauge", text), f"{name} {value}"]
        counts = {
            "vlatool_clients_total": (self.clients, "Clients that connected."),
            "vlatool_requests_total": (self.requests, "Requests that were answered."),
        }
        for name, (value, text) in counts.items():
            yield from [*_head(name, "counter", text), f"{name} {value}"]
        yield from _by_code("vlatool_errors_total", "Requests that failed.", self.errors)
        yield from _by_code("vlatool_rejections_total", "Rejected connections.", self.rejections)
        text = "States far outside the training data."
        yield from _by_code("vlatool_far_states_total", text, self.far, "field")
        yield from self.inference.lines()
        yield from self.total.lines()


def _by_code(name: str, text: str, counts: Mapping[str, int], label: str = "code") -> Iterator[str]:
    yield from _head(name, "counter", text)
    for code, count in sorted(counts.items()):
        yield f'{name}{{{label}="{code}"}} {count}'


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


_MB = 1_000_000
# Images of a policy that takes any size; bytes of a request besides its arrays.
_LARGEST_IMAGE = (1080, 1920)
_ROOM = 64_000


@dataclass(frozen=True)
class Service:
    """The parts of a server, without its socket."""

    policy: Policy  # policy that acts
    config: ServeConfig  # limits of the server
    metadata: Mapping[str, Any]  # first message for each client
    new_session: "Callable[[], Session]"  # function that starts the session of a client
    max_bytes: int  # size of a request
    max_objects: int  # number of values in a request, except in arrays
    key: str | None = None  # key that clients must send; None: no key
    tls: ssl.SSLContext | None = None  # TLS; None: no TLS


def service_of(
    config: ServeConfig,
    policy: Policy,
    origin: WeightsOrigin,
    key: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Service:
    rollout = _rollout_of(config.map, policy)
    keys = KeyMap(policy, rollout) if has_mapping(rollout) else None
    if config.execute_steps is not None:
        rollout = rollout.model_copy(update={"execute_steps": config.execute_steps})
    steps_per_chunk(rollout, policy.horizon)
    options = control_options(rollout, policy)

    def new_runner() -> PolicyRunner:
        sizes = ImageSizes(policy.sees, partial(_log.warning, "%s"), config.allow)
        return PolicyRunner(policy, origin, config.seed, sizes, options, config.max_deviation)

    max_bytes = _max_bytes(policy.sees)
    if config.max_request_mb is not None:
        max_bytes = int(config.max_request_mb * _MB)
    metadata = _metadata(new_runner(), keys) | {
        "execute_steps": rollout.execute_steps,
        "pose_groups": [group.model_dump() for group in rollout.pose_groups],
        "max_request_bytes": max_bytes,
        "new_episode": {
            "request": {"reset": True},
            "idle_s": config.episode_idle_s,
            "key": config.episode_key,
        },
    }
    return Service(
        policy,
        config,
        metadata,
        lambda: Session(new_runner(), keys, rollout.execute_steps, rollout.delay_steps, config),
        max_bytes,
        messages.MAX_OBJECTS + 4 * sum(policy.sees.fields.values()),
        key,
        tls,
    )


def _rollout_of(names: ServeMap, policy: Policy) -> RolloutConfig:
    """Options of the preset or file, with the single keys of the map on top."""
    rollout = RolloutConfig()
    if names.preset is not None:
        rollout = load_config(RolloutConfig, presets=[names.preset]).config
    if names.is_empty:
        return rollout
    update: dict[str, Any] = {"map": NameMap(cameras=names.cameras, fields=names.fields)}
    if not has_mapping(rollout):
        update["fields"] = {name: FieldMap(key=name) for name in policy.sees.fields}
        update["action"] = [ActionMap(field=name) for name in policy.actions]
    return rollout.model_copy(update=update)


def _max_bytes(sees: ObservationSpec) -> int:
    """Size of a request: 1.5 times the arrays of one step, with room for names and text."""
    sizes = [view.size or _LARGEST_IMAGE for view in sees.cameras.values()]
    arrays = sum(3 * height * width for height, width in sizes) + 8 * sum(sees.fields.values())
    return int(1.5 * arrays) + _ROOM


def _metadata(runner: PolicyRunner, keys: KeyMap | None) -> dict[str, Any]:
    """Description of the policy; `cameras` and `fields` only without a mapping."""
    names = {"cameras": list(runner.cameras), "fields": runner.fields}
    return {
        "server": "vlatool",
        "protocol": messages.PROTOCOL,
        "version": vlatool.__version__,
        "observation": runner.names if keys is None else keys.names,
        **(names if keys is None else {}),
        "actions": runner.actions if keys is None else {MAPPED_ACTION: keys.action_width},
        "fps": runner.fps,
        "horizon": runner.horizon,
        "history": runner.history,
        "checkpoint": runner.checkpoint.name,
        "weights": runner.weights,
    }


_CONTROLS: Mapping[str, type] = {
    "reset": bool,
    "observe": bool,
    "seed": int,
    "executed": int,
    "delay": int,
}
_INSTRUCTION = "instruction"
# Name of the action of a client whose keys are mapped.
MAPPED_ACTION = "actions"


class Session:
    """Episode of one client."""

    def __init__(
        self,
        runner: PolicyRunner,  # runner of the policy for this client
        # Mapping of the client's keys; None if it uses the names of the policy.
        keys: KeyMap | None,
        execute_steps: int,  # steps that the client executes between two requests, unless it says
        delay_steps: int,  # steps that it executes while it waits for a plan, unless it says
        config: ServeConfig,  # rules for the start of an episode
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._execute_steps = execute_steps
        self._delay_steps = delay_steps
        self._config = config
        self._used_at = time.monotonic()
        self._poses: Mapping[str, Array] = {}

    @property
    def episode(self) -> EpisodeControl:
        return self._runner.episode

    @property
    def far(self) -> list[str]:
        """Fields of the last request that are far outside the training data."""
        return self._runner.far

    @property
    def num_far(self) -> Mapping[str, int]:
        """Number of such requests in this episode, by field."""
        return self._runner.num_far

    @property
    def warnings(self) -> list[str]:
        """Warnings that the client has not received yet."""
        texts = self._runner.sizes.messages
        self._runner.sizes.messages = []
        return texts

    def observe(self, request: Mapping[str, Any]) -> str | None:
        """Adds the observation of a request, unless it is only `reset`; returns its instruction or
        None.
        """
        control = _control(request)
        observation = {name: value for name, value in request.items() if name != messages.CONTROL}
        is_reset = list(observation) == ["reset"] and observation["reset"] is True
        if is_reset or (control.get("reset") and not observation):
            self._runner.reset(control.get("seed"))
            return None
        limit = self._config.episode_idle_s
        now = time.monotonic()
        is_late = limit is not None and now - self._used_at > limit
        self._used_at = now
        key = self._config.episode_key
        flag = observation.pop(key, False) if key is not None else False
        is_first = is_late or bool(np.any(as_array(key or "", flag)))
        if self._keys is not None:
            observation = self._mapped(self._keys, observation)
        if control.get("reset") or is_first:
            self._runner.reset(control.get("seed"))
        default = max(1, min(self._execute_steps, self.episode.num_left))
        self._runner.observe(observation, executed=control.get("executed", default))
        self.episode.delay = max(0, control.get("delay", self._delay_steps))
        return None if control.get("observe") else self._runner.instruction(observation)

    def actions(self) -> Array:
        """Action chunk as the client gets it, float64 [T, sum of C]."""
        self._used_at = time.monotonic()
        chunk = self.episode.chunk
        if self._keys is not None:
            return self._keys.action(chunk, self._poses)
        return np.concatenate([chunk[name] for name in self._runner.actions], axis=-1)

    def _mapped(self, keys: KeyMap, observation: Mapping[str, Any]) -> dict[str, Any]:
        state = keys.state(observation)
        self._poses = keys.poses(observation)
        mapped = {**state.images, **state.fields}
        if self._runner.has_instruction:
            mapped[_INSTRUCTION] = keys.instruction(observation)
        return mapped


def _control(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The control values of a request, checked; empty if the client sends none."""
    control = request.get(messages.CONTROL, {})
    if not isinstance(control, Mapping):
        raise _bad_control(f"{messages.CONTROL!r} is a {type(control).__name__}, not a map")
    for name, value in control.items():
        if name not in _CONTROLS:
            raise _bad_control(
                f"{messages.CONTROL!r} has no key {name!r}",
                did_you_mean(str(name), list(_CONTROLS)),
            )
        if type(value) is not _CONTROLS[name]:
            raise _bad_control(
                f"{messages.CONTROL}.{name} is {value!r}, not {_CONTROLS[name].__name__}"
            )
    return control


def _bad_control(reason: str, hint: str = "") -> DataError:
    return DataError(
        reason,
        hint=hint
        or "docs/reference/serving.md describes requests; the client may have another version",
        code="data.broken",
    )


# A client that holds a connection without a request, or does not answer pings, is disconnected.
# An opening lasts as long as clients wait by default, so that a stalled machine drops none of them.
_OPEN_S = 60
_PING_S = 20
_CLOSE_S = 2
# For some seconds after an invalid request, connections are opened one by one, each after a pause:
# clients that send such requests and connect again do not hold up others. Without it, the p99 of a
# good client beside 20 that send lists of lists was 349 ms instead of 26 ms.
_WARY_S = 5.0
_PAUSE_S = 0.02
# Pings, pongs and pieces of messages of a client per second; the clients of vlatool and openpi send
# a ping in 20 s, and messages whole.
_MOST_SMALL_FRAMES = 20
_SMALL_FRAME = 1000  # bytes
_SHUTDOWN = "the server is shutting down"

_log = logging.getLogger(__name__)
_event_log = logging.getLogger("asyncio")
# What asyncio logs for each write to a client that has left: megabytes, if it left amid pings.
_WRITES = ("socket.send() raised exception.", "SSL connection is closed")


class _NoLostWrites(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg not in _WRITES


class _Connection(ServerConnection):
    """Connection that is closed if its client sends many small frames that are no messages.

    Reading a frame takes the loop 60 us, however little it holds: one client of pings without a
    pause held up all others for 1.5 s.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive = self.protocol.recv_frame
        self.protocol.recv_frame = self._receive_counted
        self._second = 0
        self._frames = 0
        self._is_flood = False

    def data_received(self, data: bytes) -> None:
        """Handles bytes of the client; the rest of a flood is not read."""
        super().data_received(data)
        if self._is_flood:
            self.transport.abort()

    def _receive_counted(self, frame: Frame) -> None:
        """Handles a frame, unless it is one of too many within a second.

        Raises:
            ProtocolError: It is; the connection is closed.
        """
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._frames = 0
        is_message = frame.fin and frame.opcode in (Opcode.TEXT, Opcode.BINARY)
        if not is_message and len(frame.data) < _SMALL_FRAME:
            self._frames += 1
        if self._frames > _MOST_SMALL_FRAMES:
            self._is_flood = True
            raise ProtocolError("more than 20 small frames within a second")
        self._receive(frame)


@contextmanager
def _undisturbed() -> Generator[None]:
    """Settings of the process that keep the delays and the memory of a server small."""
    # Else each full collection, of all that is imported, holds up all clients: the p99 of a good
    # client beside 20 that send garbage was 107 ms instead of 41 ms.
    gc.freeze()
    # Full collections are short then, and more of them keep the memory small: the peak beside
    # clients that abort handshakes of TLS was 523 MB above the start instead of 119 MB.
    gc.collect()
    thresholds = gc.get_threshold()
    gc.set_threshold(700, 5, 2)
    no_lost_writes = _NoLostWrites()
    _event_log.addFilter(no_lost_writes)
    try:
        yield
    finally:
        _event_log.removeFilter(no_lost_writes)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


class PolicyServer:
    def __init__(self, service: Service) -> None:
        self.metrics = ServerMetrics()  # counts of requests, clients and errors
        self._service = service
        self._config = service.config
        self._metadata = messages.pack(service.metadata)
        self._clients: set[ServerConnection] = set()
        self._busy: set[ServerConnection] = set()
        self._planner = ChunkBatcher(service.policy, service.config, lambda: len(self._clients))
        self._stopping = asyncio.Event()
        self._opening = asyncio.Lock()
        self._failed_at = -_WARY_S
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Ends `run`, from any thread or from the handler of a signal; also before it serves."""
        self._is_stopped = True
        with suppress(RuntimeError):  # the loop has ended already
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def run(self, bound: socket.socket, on_ready: Callable[[], None]) -> None:
        """Warms the policy up, then serves until `stop` is called.

        `on_ready`: function that is called once clients can connect.

        Requests in progress still get their replies.
        """
        self._loop = asyncio.get_running_loop()
        if self._is_stopped:
            return
        async with self._planner:
            if self._is_stopped:  # while it warmed up
                return
            listen(bound)
            server = await serve(
                self._serve_client,
                sock=bound,
                ssl=self._service.tls,
                compression=None,
                process_request=self._process_request,
                max_size=self._service.max_bytes,
                # A client waits for its reply, so more than one request is never useful.
                max_queue=1,
                open_timeout=_OPEN_S,
                ping_interval=_PING_S,
                ping_timeout=_PING_S,
                close_timeout=_CLOSE_S,
                logger=SocketLog(_log),
                create_connection=_Connection,
            )
            with _undisturbed():
                on_ready()
                await self._stopping.wait()
                await self._shut_down(server)

    async def _shut_down(self, server: Server) -> None:
        """Lets busy clients get their replies, and closes all connections."""
        server.close(close_connections=False)
        idle = self._clients - self._busy
        await asyncio.gather(
            *(connection.close(CloseCode.GOING_AWAY, _SHUTDOWN) for connection in idle),
            return_exceptions=True,
        )
        try:
            await asyncio.wait_for(server.wait_closed(), self._config.request_timeout_s)
        except TimeoutError:
            for connection in server.all_connections:
                connection.transport.abort()

    async def _process_request(
        self, connection: ServerConnection, request: Request
    ) -> Response | None:
        """Answers plain HTTP requests; None for a request that opens a websocket."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        key = self._service.key
        if key is not None and not has_key(_header(request, "Authorization"), key):
            self.metrics.rejections["key"] += 1
            return connection.respond(
                HTTPStatus.UNAUTHORIZED, "send the key as 'Authorization: Api-Key KEY'\n"
            )
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self._metrics_text())
        if len(self._clients) >= self._config.max_clients:
            self.metrics.rejections["clients"] += 1
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        async with self._opening:
            if time.monotonic() - self._failed_at < _WARY_S:
                await asyncio.sleep(_PAUSE_S)
        return None

    def _metrics_text(self) -> str:
        waiting = self._planner.num_waiting
        return self.metrics.text(
            {
                "vlatool_clients": (len(self._clients), "Connected clients."),
                "vlatool_requests_waiting": (waiting, "Requests that wait for the policy."),
            }
        )

    async def _serve_client(self, connection: ServerConnection) -> None:
        if len(self._clients) >= self._config.max_clients:  # others connected in the meantime
            self.metrics.rejections["clients"] += 1
            await connection.close(CloseCode.TRY_AGAIN_LATER, "too many clients")
            return
        self._clients.add(connection)
        self.metrics.clients += 1
        try:
            await connection.send(self._metadata)
            await self._answer_all(connection)
            await connection.close(CloseCode.GOING_AWAY, _SHUTDOWN)
        except ConnectionClosed as error:
            # Closed by the server: too large, no websocket, too many frames.
            if error.sent is not None and not error.rcvd_then_sent:
                self._failed_at = time.monotonic()
            _log.info("a client at %s has left", connection.remote_address)
        except Exception as error:  # noqa: BLE001 - one client must not end the server
            await self._fail(connection, error)
        finally:
            self._busy.discard(connection)
            self._clients.discard(connection)

    async def _answer_all(self, connection: ServerConnection) -> None:
        """Answers the requests of a client until the server stops."""
        session = self._service.new_session()
        timing: dict[str, float] = {}
        while not self._stopping.is_set():
            data = await connection.recv()
            self._busy.add(connection)
            started = time.perf_counter()
            reply = await self._answer(connection, session, data)
            if warnings := session.warnings:
                reply["warnings"] = warnings
            self.metrics.far.update(session.far)
            if session.num_far:
                reply["far"] = session.num_far
            reply["server_timing"] |= timing
            await connection.send(messages.pack(reply))
            self._busy.discard(connection)
            seconds = time.perf_counter() - started
            timing["prev_total_ms"] = 1000 * seconds
            self.metrics.requests += 1
            self.metrics.total.add(seconds)
            await asyncio.sleep(max(0.0, 1 / self._config.max_rate - seconds))

    async def _answer(
        self, connection: ServerConnection, session: Session, data: str | bytes
    ) -> dict[str, Any]:
        if isinstance(data, str):
            raise DataError("the request is text, not msgpack", code="data.broken")
        instruction = session.observe(messages.unpack(data, self._service.max_objects))
        if instruction is None:
            return {"server_timing": {}}
        plan = self._planner.plan(
            session.episode, instruction, lambda: connection.state is State.OPEN
        )
        try:
            seconds = await asyncio.wait_for(plan, self._config.request_timeout_s)
        except TimeoutError:
            raise EnvironmentProblem(
                f"no reply within {self._config.request_timeout_s:g} s",
                hint="the server has too many clients, or the policy is too slow: raise "
                "--request-timeout-s",
                code="environment.server_unreachable",
            ) from None
        self.metrics.inference.add(seconds)
        return {"actions": session.actions(), "server_timing": {"infer_ms": 1000 * seconds}}

    async def _fail(self, connection: ServerConnection, error: Exception) -> None:
        self._failed_at = time.monotonic()
        if not isinstance(error, VlatoolError):
            _log.error("a request fails: %r", error, exc_info=True)
            error = EnvironmentProblem(
                f"the server failed: {type(error).__name__}",
                hint="the log of the server has the details",
                code=messages.SERVER_FAILED,
            )
        self.metrics.errors[error.code] += 1
        _log.info("a request of %s fails: %s", connection.remote_address, error)
        try:
            await connection.send(messages.error_text(error))
            await connection.close(CloseCode.INTERNAL_ERROR, "the text before has the error")
        except ConnectionClosed:
            _log.info("a client left before its error was sent")


def _header(request: Request, name: str) -> str | None:
    """Value of a header of a request; None if the header is missing or occurs twice."""
    values = request.headers.get_all(name)
    return values[0] if len(values) == 1 else None
