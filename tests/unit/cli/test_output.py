"""JSON documents, text and progress lines."""

import json
import re
import time
from dataclasses import dataclass

import numpy as np
import pytest

from vlatool.cli import reporters
from vlatool.cli.options import OutputOptions
from vlatool.cli.output import to_json, write_error
from vlatool.cli.rich_reporter import RichReporter
from vlatool.errors import DataError, PartialFailure
from vlatool.report.text import pairs, text_table
from vlatool.results import Result, columns


@dataclass(frozen=True)
class Counted(Result):
    episodes: int

    def lines(self) -> list[str]:
        return [f"{self.episodes} episodes"]


def test_json_has_no_nan_and_no_arrays() -> None:
    value = {"loss": float("nan"), "mean": np.arange(2), "count": np.int64(3), 1: ("a",)}
    assert json.loads(to_json(value)) == {"loss": None, "mean": [0, 1], "count": 3, "1": ["a"]}


def test_partial_failure_prints_its_result_before_the_error_or_one_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = PartialFailure("1 of 4 episodes failed", details={"failures": [{"item": "e"}]})
    error.result = Counted(3)
    write_error(error, OutputOptions(json=True))
    document = json.loads(capsys.readouterr().out)
    assert document["episodes"] == 3
    assert document["error"]["kind"] == "partial"
    assert document["error"]["details"]["failures"]

    write_error(error, OutputOptions())
    streams = capsys.readouterr()
    assert streams.out == "3 episodes\n"
    assert streams.err.startswith("error: ")


def test_json_events_are_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = reporters.JsonReporter()
    with reporter.progress("preprocess", 2, "episodes") as bar:
        bar.advance(2, failures=1)
    reporter.metrics(10, {"loss": 0.5})
    reporter.warn("data.fallback", "no annotation")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["progress", "metrics", "warning"]
    assert events[0]["complete"]
    assert events[0]["fields"] == {"failures": 1}


def test_messages_give_the_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b]0;x\x07\x9b2J\rb\u202e\u2028\tc"
    for reporter in (reporters.LineReporter(), RichReporter()):
        reporter.note(text)
        reporter.warn("code", text)
        with reporter.progress(text, 2, "episodes") as bar:
            bar.advance(2, **{"in flight": text})
    shown = capsys.readouterr().err
    assert not set(shown) & set("\x1b\x9b\x07\r\u202e\u2028")
    assert shown.count("a\\u001b]0;x\\u0007\\u009b2J\\u000db\\u202e\\u2028") >= 5


def test_a_name_of_the_data_cannot_look_like_a_line_of_vlatool(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "front\nnext: rm x"
    for reporter in (reporters.LineReporter(), reporters.SilentReporter(), RichReporter()):
        reporter.note(name)
        reporter.warn("code", name)
    write_error(DataError.at(name, "is broken"), OutputOptions())
    shown = [
        capsys.readouterr().err,
        columns([[name, name]]),
        text_table(name, (name,), [[name]]),
        pairs({name: [name]}),
    ]
    lines = "\n".join(shown).splitlines()
    assert lines
    assert not [line for line in lines if line.strip().startswith("next:")]


def test_plain_bar_writes_one_line_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with reporters.LineReporter().progress("preprocess", 4, "episodes") as bar:
        for _ in range(4):
            bar.advance()
    streams = capsys.readouterr()
    assert streams.out == ""
    assert len(streams.err.splitlines()) == 1
    assert streams.err.startswith("preprocess: 4/4 episodes (100 %)")


def test_line_during_progress_has_the_time_left_by_a_rate_without_items_of_an_earlier_run() -> None:
    class Nowhere(reporters.LoggedReporter):
        def begin(self, count: reporters.ProgressCounter) -> None: ...
        def show(self, count: reporters.ProgressCounter, *, is_end: bool) -> None: ...

    bar = reporters.ProgressCounter("train", 10_000, "steps", Nowhere(), 1e9)
    bar.advance(5_000)
    assert bar.rate is None
    time.sleep(0.11)
    bar.advance(1, loss=0.123456)
    assert bar.rate is not None
    assert bar.rate < 100
    line = reporters.progress_line(bar, is_end=False)
    assert " left" in line
    assert line.endswith("loss 0.1235")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bar_count_and_time_left_are_not_cut_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    fields = {"samples": 12_345, "samples/s": 1234.5, "MB/s": 98.7, "failed": 3, "data.nan": 3}
    with RichReporter().progress("episodes", 1200, "episodes") as bar:
        bar.advance(400)
        time.sleep(0.05)
        bar.advance(100, **fields)
        time.sleep(0.15)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    lines = [line for line in re.split(r"[\r\n]+", shown) if "500/1200" in line]
    assert lines
    assert all(len(line.rstrip()) <= width for line in lines)
    assert any(re.match(r"episodes [^ ]{10,} 500/1200 episodes +\d*:\d\d", line) for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert reporters.format_duration(seconds) == text


def test_time_left_is_not_computed_from_the_first_unit_which_waits_for_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("vlatool.cli.reporters.time.monotonic", lambda: now[0])
    with reporters.LineReporter().progress("training", 10, "steps") as bar:
        assert isinstance(bar, reporters.ProgressCounter)
        now[0] = 60.0
        bar.advance()
        assert bar.remaining_s is None
        now[0] = 62.0
        bar.advance()
        assert bar.remaining_s == pytest.approx(8 * 2.0)
