"""Websocket server of a policy: one task per client, one thread that computes.

The protocol is in docs/serving.md.
"""

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.protocol import State

from vlatool.errors import DataError, EnvironmentProblem, VlatoolError
from vlatool.serving.access import SocketLog, has_key, listen
from vlatool.serving.messages import SERVER_FAILED, error_text, pack, unpack
from vlatool.serving.metrics import ServerMetrics
from vlatool.serving.planner import Planner
from vlatool.serving.service import Service
from vlatool.serving.session import Session

# A client that holds a connection without a request, or does not answer pings, is disconnected.
_OPEN_S, _PING_S, _CLOSE_S = 10, 20, 2
# Wait between reads of the rest of a message that is too large, which is thrown away.
_DISCARD_S = 0.1
# For some seconds after an invalid request, connections are opened one by one, each after a pause:
# clients that send such requests and connect again do not hold up others.
_WARY_S, _PAUSE_S = 5.0, 0.02
_SHUTDOWN = "the server is shutting down"

_log = logging.getLogger(__name__)


class _Connection(ServerConnection):
    """Connection that slows down and soon ends after a message that is too large."""

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with the next bytes."""
        super().data_received(data)
        if self.protocol.parser_exc is not None:
            self.transport.pause_reading()
            self.loop.call_later(_DISCARD_S, self.transport.resume_reading)
            self.loop.call_later(_CLOSE_S, self.transport.abort)


class PolicyServer:
    def __init__(self, service: Service) -> None:
        self.metrics = ServerMetrics()  # counts of requests, clients and errors
        self._service = service
        self._config = service.config
        self._metadata = pack(service.metadata)
        self._clients: set[ServerConnection] = set()
        self._busy: set[ServerConnection] = set()
        self._planner = Planner(service.policy, service.config, lambda: len(self._clients))
        self._stopping = asyncio.Event()
        self._opening = asyncio.Lock()
        self._failed_at = -_WARY_S
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Ends `run`, from any thread or from the handler of a signal; also before it serves."""
        self._is_stopped = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def run(self, bound: socket.socket, on_ready: Callable[[], None]) -> None:
        """Warms the policy up, then serves until `stop` is called.

        `on_ready`: function that is called once clients can connect.

        Requests that are computed then still get their replies.
        """
        self._loop = asyncio.get_running_loop()
        if self._is_stopped:
            return
        async with self._planner:
            if self._is_stopped:  # while it warmed up
                return
            gc.freeze()  # else each full collection, of all that is imported, holds up all clients
            listen(bound)
            server = await serve(
                self._serve_client,
                sock=bound,
                ssl=self._service.tls,
                compression=None,
                process_request=self._process_request,
                create_connection=_Connection,
                max_size=self._service.max_bytes,
                # A client waits for its reply, so more than one request is never useful.
                max_queue=1,
                open_timeout=_OPEN_S,
                ping_interval=_PING_S,
                ping_timeout=_PING_S,
                close_timeout=_CLOSE_S,
                logger=SocketLog(_log),
            )
            on_ready()
            await self._stopping.wait()
            await self._shut_down(server)
            gc.unfreeze()

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
        """Answers requests of HTTP; None for those that open a websocket."""
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
            if error.rcvd_then_sent is False:  # closed by the server: too large, no websocket
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
            reply["server_timing"] |= timing
            await connection.send(pack(reply))
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
            raise DataError("the request is text, not msgpack", code="data.bad_message")
        instruction = session.observe(unpack(data, self._service.max_objects))
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
                hint="the server has too many clients, or the policy is too slow for "
                "--request-timeout-s",
                code="environment.server_timeout",
            ) from None
        self.metrics.inference.add(seconds)
        return {"actions": session.actions(), "server_timing": {"infer_ms": 1000 * seconds}}

    async def _fail(self, connection: ServerConnection, error: Exception) -> None:
        """Sends an error as text and closes the connection."""
        self._failed_at = time.monotonic()
        if not isinstance(error, VlatoolError):
            _log.error("a request fails: %r", error, exc_info=True)
            error = EnvironmentProblem(
                f"the server fails: {type(error).__name__}",
                hint="the log of the server has the details",
                code=SERVER_FAILED,
            )
        self.metrics.errors[error.code] += 1
        _log.info("a request of %s fails: %s", connection.remote_address, error)
        try:
            await connection.send(error_text(error))
            await connection.close(CloseCode.INTERNAL_ERROR, "the text before has the error")
        except ConnectionClosed:
            _log.info("a client has left before its error was sent")


def _header(request: Request, name: str) -> str | None:
    """Header of a request; None without one, or with several."""
    values = request.headers.get_all(name)
    return values[0] if len(values) == 1 else None
