"""Counts and durations of a server, in the text format of Prometheus."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

# Upper limits of the buckets, in seconds.
_LIMITS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_CODE = "code"


class Histogram:
    """Durations by bucket."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._counts = [0] * (len(_LIMITS) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Counts a duration."""
        self._counts[bisect_left(_LIMITS, seconds)] += 1
        self._seconds += seconds

    def lines(self) -> Iterator[str]:
        """Lines of the text format."""
        yield from _head(self._name, "histogram", self._text)
        total = 0
        for limit, count in zip((*_LIMITS, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self._name}_bucket{{le="{limit}"}} {total}'
        yield f"{self._name}_sum {self._seconds:.6f}"
        yield f"{self._name}_count {total}"


class ServerMetrics:
    """Counts and durations since the start of a server."""

    def __init__(self) -> None:
        self.requests = 0
        self.clients = 0
        self.errors: Counter[str] = Counter()
        self.rejections: Counter[str] = Counter()
        self.inference = Histogram("vlatool_inference_seconds", "Durations of the policy.")
        self.total = Histogram("vlatool_request_seconds", "Durations from request to reply.")

    def text(self, gauges: Mapping[str, tuple[int, str]]) -> str:
        """Text format of Prometheus."""
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
        yield from self.inference.lines()
        yield from self.total.lines()


def _by_code(name: str, text: str, counts: Mapping[str, int]) -> Iterator[str]:
    yield from _head(name, "counter", text)
    for code, count in sorted(counts.items()):
        yield f'{name}{{{_CODE}="{code}"}} {count}'


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
