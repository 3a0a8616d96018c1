"""A policy for robots and simulators over a websocket."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vlatool.config.base import check_required
from vlatool.errors import missing_package
from vlatool.events import NULL, STOP_SIGNALS, Reporter, counted
from vlatool.report.text import few_text
from vlatool.results import Result
from vlatool.serving.config import ServeConfig

if TYPE_CHECKING:
    from vlatool.serving.server import PolicyServer

__all__ = ["ServeConfig", "serve"]


@dataclass(frozen=True)
class ServeResult(Result):
    """What a server did until it was stopped."""

    checkpoint: str
    weights: str
    url: str
    clients: int
    requests: int
    errors: int

    def lines(self) -> list[str]:
        requests = counted(self.requests, "request")
        clients = counted(self.clients, "client")
        return [f"{requests} of {clients} answered, {counted(self.errors, 'error')}"]


def serve(config: ServeConfig, *, reporter: Reporter = NULL) -> ServeResult:
    """Serves a policy until Ctrl-C or SIGTERM; requests in progress are still answered.

    Raises:
        UsageError: A required key is missing, or address, key or certificate cannot be used.
        ConfigError: The mapping of keys is invalid.
        DataError: The checkpoint is missing, broken or no policy, or one of its fields is not
            mapped.
    """
    check_required(config, "vlatool serve CHECKPOINT")
    try:
        from vlatool.serving.server import PolicyServer
    except ModuleNotFoundError as error:
        raise missing_package((error.name or "").partition(".")[0]) from error
    from vlatool.evaluation.policy_runner import open_policy
    from vlatool.serving.access import bound_socket, read_key, tls_context, url_of
    from vlatool.serving.server import service_of

    key = read_key(config.key_file, config.host)
    tls = tls_context(config.certificate, config.private_key)
    with bound_socket(config.host, config.port) as bound:
        policy, trained = open_policy(config.checkpoint, config.weights, config, reporter)
        if policy.held:
            listed = [f"{name} = {value:g}" for name, value in policy.held.items()]
            reporter.note(f"never moved in the data, so sent as recorded: {few_text(listed)}")
        server = PolicyServer(service_of(config, policy, trained.origin, key, tls))
        url = url_of(bound, has_tls=tls is not None)
        with _stopped_by_signals(server):
            asyncio.run(
                server.run(bound, partial(reporter.note, f"serving at {url}; Ctrl-C stops it"))
            )
    origin = trained.origin
    return ServeResult(
        checkpoint=str(origin.checkpoint or origin.file),
        weights=origin.weights,
        url=url,
        clients=server.metrics.clients,
        requests=server.metrics.requests,
        errors=server.metrics.errors.total(),
    )


@contextmanager
def _stopped_by_signals(server: "PolicyServer") -> Iterator[None]:
    """Stops the server at the first stop signal; a second one has its usual effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, *STOP_SIGNALS)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def stop(number: int, frame: Any) -> None:
        restore()
        server.stop()

    for number, handler in usual.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        restore()
