"""Client of a policy server; it has the same methods as the policy of `load_policy`.

Part of the client package, too: no torch, nothing newer than Python 3.8, relative imports.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import operator
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_connection
from websockets.exceptions import (
    ConnectionClosed,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)

from ..errors import DataError, EnvironmentProblem, UsageError, VlatoolError, image_error
from .messages import CONTROL, PROTOCOL, error_of, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from typing import Self

    from numpy.typing import NDArray

Value = TypeVar("Value")

_log = logging.getLogger(__name__)

# `LoggerAdapter` takes a type parameter from Python 3.11 on.
if TYPE_CHECKING:
    _LoggerAdapter = logging.LoggerAdapter[logging.Logger]
else:
    _LoggerAdapter = logging.LoggerAdapter

KEY_SCHEME = "Api-Key "
# Pause between two attempts to connect.
_RETRY_S = 0.5
# Errors after which it may succeed soon.
_UNAUTHORIZED = 401
_BUSY = 503
_CLOSE_S = 2.0


class SocketLog(_LoggerAdapter):
    """Log of connections at the level DEBUG, because an invalid request is the fault of a client.

    The library logs headers, with the key, and messages only if DEBUG is enabled, so it is not.
    """

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        """True for all levels above DEBUG."""
        return level > logging.DEBUG

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Logs at the level DEBUG, whatever `level` above it is."""
        if self.isEnabledFor(level):
            self.logger.debug(msg, *args, **kwargs)


def authorization(key: str) -> str:
    """Header `Authorization` of a client with a key."""
    if not is_usable_key(key):
        raise UsageError(
            "the key cannot be sent",
            hint="give one line of printable ASCII characters, without the line break of its file",
            code="usage.bad_value",
        )
    return f"{KEY_SCHEME}{key}"


def is_usable_key(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable()


class RemotePolicy:
    """A policy on a server, for one robot: the methods of `load_policy`; use it in a `with` block.

    An error ends the connection. `reset` connects again and starts a new episode.

    Attributes:
        cameras: Cameras that the policy takes; empty if the server maps keys.
        fields: Measured fields that an observation needs, name to width; empty if the server maps
            keys.
        names: Keys that an observation needs.
        actions: Action fields, name to width; `actions` if the server maps keys.
        fps: Steps per second.
        horizon: Steps of an action chunk.
        history: Number of steps before the current one that the policy sees.
        checkpoint: Name of the checkpoint or file from which the weights were read.
        weights: `ema` or `raw`.
        timing: Durations at the server: `infer_ms` of the policy in the last request, and
            `prev_total_ms` of the complete request before it.
        num_far: Number of observations in this episode that were far outside the training data, by
            field.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        timeout: float,  # longest wait for a connection and for a reply, in seconds
        wait: float,  # how long a server that is not there is tried again, in seconds
    ) -> None:
        self._url = url
        self._headers = headers
        self._tls = tls
        self._timeout = timeout
        self._wait = wait
        self._control: dict[str, Any] = {}
        self._open = ExitStack()
        self._connection: ClientConnection | None = None
        self.timing: dict[str, float] = {}
        self.num_far: dict[str, int] = {}
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reset(self, seed: int | None = None) -> None:
        """Starts a new episode, on a new connection if the old one is lost.

        Args:
            seed: Seed of the sampled noise; None: the seed of the server.

        Raises:
            EnvironmentProblem: The server cannot be reached.
        """
        if self._connection is None:
            self._connect()
        self._control = {"reset": True, **({} if seed is None else {"seed": seed})}
        self.num_far = {}

    def act(
        self, observation: Mapping[str, Any], *, executed: int = 1, delay: int = 0
    ) -> dict[str, NDArray[Any]]:
        """Returns the action chunk for an observation, as the method of `load_policy` does.

        Args:
            observation: Each of `names` to its value.
            executed: Steps executed since the last call of `act` or `observe`.
            delay: Steps of the last chunk that are executed while this chunk is computed.

        Returns:
            Each of `actions` to float64 [T, C], T = `horizon`.

        Raises:
            DataError: A value is missing, unknown, or has another type, shape or width.
            UsageError: `executed` exceeds the steps left in the last chunk.
            EnvironmentProblem: The connection is lost, or the server failed.
        """
        steps = {"executed": _count(executed), "delay": _count(delay)}
        reply = self._request(observation, steps)
        chunk = reply["actions"]
        start = 0
        fields: dict[str, NDArray[Any]] = {}
        for name, width in self.actions.items():
            fields[name] = chunk[:, start : start + width].copy()
            start += width
        return fields

    def observe(self, observation: Mapping[str, Any], *, executed: int = 1) -> None:
        """Adds an observation without computing a chunk; arguments and errors as for `act`."""
        self._request(observation, {"executed": _count(executed), "observe": True})

    def close(self) -> None:
        self._connection = None
        self._open.close()

    def _request(
        self, observation: Mapping[str, Any], control: Mapping[str, Any]
    ) -> dict[str, Any]:
        if self._connection is None:
            raise _lost(self._url, "you closed it")
        arrays = _arrays(observation)
        data = pack({**arrays, CONTROL: {**self._control, **control}})
        if len(data) > self._max_bytes:
            _check_images(arrays)
            raise DataError(
                f"the request has {len(data):,} bytes, but the server accepts {self._max_bytes:,}",
                hint="resize the images to the size of the training data, or start the server "
                "with a larger --max-request-mb",
                code="data.bad_request",
            )
        try:
            reply = self._run(_reply(self._connection, data, self._timeout))
        except BaseException as error:  # Ctrl-C, too: a later request would get this reply
            self.close()
            # Python has three of them before 3.11.
            if isinstance(error, (TimeoutError, asyncio.TimeoutError, FutureTimeoutError)):
                raise _lost(self._url, "the server did not reply in time") from None
            if isinstance(error, (ConnectionClosed, OSError)):
                raise _lost(self._url, str(error)) from error
            raise
        if isinstance(reply, str):
            self.close()
            raise error_of(reply)
        self._control = {}
        message = unpack(reply)
        self.timing = message["server_timing"]
        self.num_far = message.get("far", {})
        for text in message.get("warnings", ()):
            _log.warning("%s: %s", self._url, text)
        return message

    def _connect(self) -> None:
        """Connects; tries again for a while if the server is away or has too many clients."""
        end = time.monotonic() + self._wait
        while True:
            try:
                self._connect_once()
            except EnvironmentProblem as error:
                left = end - time.monotonic()
                if left <= 0 or error.code != "environment.server_unreachable":
                    raise
                _log.info("%s: %s; trying again", self._url, error.message)
                time.sleep(min(_RETRY_S, left))
            else:
                return

    def _connect_once(self) -> None:
        """Opens the connection and reads the metadata: the server may have another policy now."""
        try:
            connection, first = self._opened()
        except InvalidURI as error:
            raise UsageError(
                f"{self._url!r} is not the address of a server",
                hint="give ws://HOST:PORT or wss://HOST:PORT",
                code="usage.bad_value",
            ) from error
        except InvalidStatus as error:
            raise _status_error(self._url, error) from error
        except (WebSocketException, OSError, EOFError) as error:
            raise EnvironmentProblem(
                f"cannot connect to {self._url}: {error}",
                hint="is `vlatool serve` running there, and can this machine reach it?",
                code="environment.server_unreachable",
                details={"url": self._url},
            ) from error
        metadata = self._metadata(first)
        self._connection = connection
        self.cameras: tuple[str, ...] = tuple(metadata.get("cameras", ()))
        self.fields: dict[str, int] = metadata.get("fields", {})
        self.names: list[str] = metadata["observation"]
        self.actions: dict[str, int] = metadata["actions"]
        self.fps: float = metadata["fps"]
        # Poses of the robot that the server converts, as `serve --map` declares them.
        self.pose_groups: list[dict[str, Any]] = metadata.get("pose_groups", [])
        self.horizon: int = metadata["horizon"]
        self.history: int = metadata["history"]
        self.checkpoint: str = metadata["checkpoint"]
        self.weights: str = metadata["weights"]
        self._max_bytes: int = metadata["max_request_bytes"]

    def _opened(self) -> tuple[ClientConnection, str | bytes]:
        """A new connection, and the first message on it."""
        self._loop = self._open.enter_context(_event_loop())
        try:
            connection = self._run(self._open_connection())
            self._open.callback(lambda: self._run(connection.close()))
            return connection, self._run(_reply(connection, b"", self._timeout))
        except BaseException:  # Ctrl-C, too: the thread ends
            self.close()
            raise

    async def _open_connection(self) -> ClientConnection:
        options: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls}
        # Before version 15, websockets knows no proxies.
        if "proxy" in inspect.signature(open_connection).parameters:
            options["proxy"] = None
        return await open_connection(
            self._url,
            additional_headers=self._headers,
            compression=None,
            max_size=None,
            open_timeout=self._timeout,
            close_timeout=_CLOSE_S,
            logger=SocketLog(_log, {}),
            **options,
        )

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Runs a coroutine in the thread of the connection."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _metadata(self, first: str | bytes) -> dict[str, Any]:
        metadata: Mapping[str, Any] = {}
        with suppress(DataError):  # not msgpack, so no server of ours
            metadata = unpack(first) if isinstance(first, bytes) else {}
        if metadata.get("protocol") != PROTOCOL or metadata.get("server") != "vlatool":
            self.close()
            raise EnvironmentProblem(
                f"{self._url} is not a server of this version of vlatool",
                hint="run the same version of vlatool on both machines; for other servers, "
                "use their own client",
                code="environment.server_unreachable",
                details={"url": self._url, "version": metadata.get("version")},
            )
        return dict(metadata)


@contextmanager
def _event_loop() -> Generator[asyncio.AbstractEventLoop]:
    """Event loop in a thread of its own.

    The connections of `websockets.sync` read and write in two threads, which OpenSSL does not
    allow: of some thousand connections with TLS, one got no answer.
    """
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    loop, stop = started.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(_CLOSE_S)


async def _reply(connection: ClientConnection, data: bytes, timeout: float | None) -> str | bytes:
    """The next message, after a request has been sent unless it is empty."""

    async def exchange() -> str | bytes:
        if data:
            await connection.send(data)
        return await connection.recv()

    return await asyncio.wait_for(exchange(), timeout)


def _arrays(observation: Mapping[str, Any]) -> dict[str, Any]:
    # Callers are not type-checked: a control loop gets a clear error, not a traceback.
    if not isinstance(observation, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(
            f"the observation is of type {type(observation).__name__}, not a mapping",
            hint="give a dict with images, fields and the instruction",
            code="data.bad_request",
        )
    return {str(name): _sendable(str(name), value) for name, value in observation.items()}


def _check_images(arrays: Mapping[str, Any]) -> None:
    """Raises the error of images that are not uint8, which makes a request too large."""
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            _check_images(value)
        elif isinstance(value, np.ndarray) and value.ndim > 2 and value.dtype != np.uint8:
            raise image_error(name, value.dtype, value.shape)


def _sendable(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _arrays(value)
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, on a GPU, with a gradient
        raise DataError(
            f"{name!r} is a {type(value).__name__} that cannot become an array: {error}",
            hint="give a numpy array, or a tensor as tensor.detach().cpu().numpy()",
            code="data.missing",
            details={"name": name},
        ) from None


def _count(executed: Any) -> int:
    try:
        return operator.index(executed)
    except TypeError:
        raise UsageError(
            f"executed={executed!r} is not an integer",
            hint="give the number of steps executed since the last call of act or observe",
            code="usage.bad_value",
        ) from None


def _lost(url: str, reason: str) -> VlatoolError:
    return EnvironmentProblem(
        f"the connection to {url} is lost: {reason}",
        hint="call reset() to connect again and start a new episode",
        code="environment.server_unreachable",
        details={"url": url},
    )


def _status_error(url: str, error: InvalidStatus) -> VlatoolError:
    status = error.response.status_code
    known = {
        _UNAUTHORIZED: ("environment.credentials", "give its key: connect(url, api_key=...)"),
        _BUSY: ("environment.server_unreachable", "wait, or raise --max-clients of the server"),
    }
    code, hint = known.get(
        status, ("environment.server_unreachable", "is `vlatool serve` running there?")
    )
    text = (error.response.body or b"").decode(errors="replace").strip()
    return EnvironmentProblem(
        f"{url} answers {status}: {text}", hint=hint, code=code, details={"url": url}
    )


def connect(
    url: str,
    *,
    api_key: str | None = None,
    timeout: float = 60.0,
    wait: float = 0.0,
    certificate: str | None = None,
) -> RemotePolicy:
    """Connects to a server of `vlatool serve`, for one robot.

        import vlatool

        with vlatool.connect("ws://gpu-machine:8000", api_key=key) as policy:
            chunk = policy.act({"front": image, "pose": pose, "instruction": "lift the cube"})

    Args:
        url: Address, `ws://HOST:PORT`, or `wss://HOST:PORT` for a server with TLS.
        api_key: Key of the server, if it has one.
        timeout: Seconds to wait at most for the connection, and for a reply.
        wait: Seconds to keep trying while the server does not answer or has too many clients. With
            `wait=30` you can start robot and server in any order.
        certificate: File with the certificates to trust, in PEM form; None: the certificates of the
            system.

    Raises:
        UsageError: The address, the key or the certificate cannot be used.
        EnvironmentProblem: The server cannot be reached, needs another key, has too many clients,
            or is of another version.
    """
    headers = {} if api_key is None else {"Authorization": authorization(api_key)}
    tls = None
    if certificate is not None:
        try:
            tls = ssl.create_default_context(cafile=certificate)
        except OSError as error:
            raise UsageError(
                f"{certificate}: no certificates: {error}",
                hint="give a file in PEM form",
                code="usage.bad_value",
            ) from error
    return RemotePolicy(url, headers, tls, timeout, wait)
