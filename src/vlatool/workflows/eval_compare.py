"""Comparison of the success rates of two policies over the same starts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatool.config.base import check_required, typed_command
from vlatool.config.coerce import value_text
from vlatool.errors import DataError
from vlatool.evaluation.config import CompareConfig
from vlatool.evaluation.success import PairCounts
from vlatool.events import NULL, Reporter, counted
from vlatool.inspection import check_target
from vlatool.jobs.ownership import differing_keys
from vlatool.jobs.record import read_record
from vlatool.report.facts import Section, Table
from vlatool.report.page import page
from vlatool.report.text import text_table
from vlatool.results import MERGED, OPTIONAL, UNLISTED, Result
from vlatool.storage.atomic import write_text
from vlatool.storage.documents import DocumentError, read_json
from vlatool.storage.uri import local_path, pinned

__all__ = ["CompareConfig", "compare"]

_REPORT = "report.json"
_GENERATOR = "vlatool eval compare"
_HEADER = ("task", "starts", "A", "B", "B - A", "95 % interval", "p-value")
# Options that may differ between two policies or do not change what they do.
_UNCOMPARED = frozenset({"checkpoint", "versions", "videos", "contact_sheet_episodes"})
_ENV_KEYS = frozenset({"env", "env_options"})

# Task, empty without a suite; seed.
Start = tuple[str, int]


@dataclass(frozen=True)
class RolloutOutput:
    location: str  # as it was given
    checkpoint: str
    weights: str  # `ema` or `raw`
    # Id of the environment, or name of the suite.
    env: str = field(metadata=UNLISTED)
    # Recorded options; empty without a record.
    options: Mapping[str, Any] = field(metadata=UNLISTED)
    # Map from start to the row of the report.
    rows: Mapping[Start, Mapping[str, Any]] = field(metadata=UNLISTED)


@dataclass(frozen=True)
class CompareResult(Result):
    """Comparison of two policies, a and b, over the same starts."""

    env: str
    a: RolloutOutput
    b: RolloutOutput
    # Options that differ, besides the checkpoint: `key`, and the values of `a` and `b`.
    differences: Sequence[Mapping[str, Any]]
    overall: Mapping[str, Any] = field(metadata=MERGED)  # outcomes over all common starts
    errors: int  # common starts that an error of the environment ended, in a or b
    unpaired: int  # starts that only one of them has
    # Outcomes by task of a suite, or by instruction; empty for a single one.
    per_task: Mapping[str, Mapping[str, Any]]
    html: str | None = field(default=None, metadata=OPTIONAL)  # page that was written

    def lines(self) -> Iterator[str]:
        rows = [(name, *_cells(counts)) for name, counts in self.per_task.items()]
        title = f"{self.env}: success of A and B over the same starts"
        yield f"A: {self.a.location} ({self.a.checkpoint})"
        yield f"B: {self.b.location} ({self.b.checkpoint})"
        yield text_table(title, _HEADER, [("all", *_cells(self.overall)), *rows])
        for row in self.differences:
            a = value_text(row["a"])
            b = value_text(row["b"])
            yield f"differs: {row['key']} {a} in A, {b} in B"
        if self.errors:
            starts = counted(self.errors, "start")
            yield f"left out: {starts} that an error of the environment ended in A or B"
        if self.unpaired:
            yield f"left out: {counted(self.unpaired, 'start')} that only A or only B has"
        if self.html is not None:
            yield f"page: {self.html}"


def compare(config: CompareConfig, *, reporter: Reporter = NULL) -> CompareResult:
    """Compares two policies over the starts that both were evaluated on.

    Raises:
        UsageError: A location is not given.
        DataError: A location has no report of rollouts, the environments differ, or no start is in
            both.
    """
    check_required(config, "vlatool eval compare A B")
    target = None if config.html is None else local_path(config.html)
    if target is not None:
        check_target(target, _GENERATOR)
    a = read_rollouts(config.a)
    b = read_rollouts(config.b)
    differences = _differences(a, b)
    starts = [start for start in a.rows if start in b.rows]
    if not starts:
        raise DataError(
            f"{config.a} and {config.b}: no start is in both",
            hint="evaluate both with the same --seed and --episodes, or the same --suite",
            code="data.no_samples",
        )
    valid = [start for start in starts if _is_valid(a.rows[start]) and _is_valid(b.rows[start])]
    pairs = {start: (a.rows[start]["success"], b.rows[start]["success"]) for start in valid}
    result = CompareResult(
        env=a.env,
        a=a,
        b=b,
        differences=[{"key": key, "a": old, "b": new} for key, old, new in differences],
        overall=_figures([*pairs.values()]),
        errors=len(starts) - len(valid),
        unpaired=len(a.rows) + len(b.rows) - 2 * len(starts),
        per_task=_per_task(a, pairs),
        html=config.html,
    )
    if target is not None:
        command = typed_command("eval compare", config, ("a", "b"))
        write_text(target, _page(result, pairs, command))
    return result


def _page(result: CompareResult, pairs: Mapping[Start, tuple[bool, bool]], command: str) -> str:
    from vlatool.evaluation.facts import command_section, rate_table

    names = {"A": result.a, "B": result.b}
    counts = result.overall
    rows = [
        (
            f"{name}: {each.location}",
            counts[f"successes_{name.lower()}"] / max(counts["starts"], 1),
            f"{counts[f'successes_{name.lower()}']} of {counts['starts']}, {each.checkpoint}",
        )
        for name, each in names.items()
    ]
    tasks = [(name, *_cells(each)) for name, each in result.per_task.items()]
    different = [
        (*start, *("success" if success else "failure" for success in pair))
        for start, pair in pairs.items()
        if pair[0] != pair[1]
    ]
    settings = [
        (row["key"], value_text(row["a"]), value_text(row["b"])) for row in result.differences
    ]
    outcomes = Table(_HEADER, [("all", *_cells(counts)), *tasks])
    sections = [
        Section("Success over the same starts", [rate_table(rows), outcomes]),
        Section("Options that differ", [Table(("option", "A", "B"), settings)]),
        Section("Starts with different outcomes", [Table(("task", "seed", "A", "B"), different)]),
        command_section(command),
    ]
    left_out = f"{result.errors} with errors and {result.unpaired} of only one are left out"
    subtitle = f"{counted(counts['starts'], 'start')} of both; {left_out}"
    return page(f"A and B in {result.env}", subtitle, sections, generator=_GENERATOR)


def read_rollouts(location: str) -> RolloutOutput:
    """Reads an output of `vlatool eval rollout`, or its report."""
    path = pinned(location)
    path = path if path.suffix == ".json" else path / _REPORT
    try:
        report = read_json(path)
        rows = dict(map(_row, report["rollouts"]))
        checkpoint, weights, env = (str(report[key]) for key in ("checkpoint", "weights", "env"))
    except (OSError, DocumentError, KeyError, TypeError, ValueError, AttributeError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise DataError.at(
            path,
            "no such file" if missing else "is not a report of rollouts",
            hint="give an output of `vlatool eval rollout`, such as RUN/eval/rollout-...",
            code="data.no_source",
        ) from None
    record = read_record(path.parent)
    options = record.options if record is not None and record.command == "eval rollout" else {}
    return RolloutOutput(location, Path(checkpoint).name, weights, env, options, rows)


def _row(row: Mapping[str, Any]) -> tuple[Start, Mapping[str, Any]]:
    """Start and row of an episode; raises LookupError, TypeError, ValueError for others."""
    if not isinstance(row["success"], bool):
        raise TypeError("success is no boolean")
    return (str(row.get("task", "")), int(row["seed"])), row


def _differences(a: RolloutOutput, b: RolloutOutput) -> list[tuple[str, Any, Any]]:
    pairs = iter([("env", a.env, b.env)] if a.env != b.env else [])
    if a.options and b.options:
        pairs = differing_keys(dict(a.options), dict(b.options))
    differences = [row for row in pairs if row[0].partition(".")[0] not in _UNCOMPARED]
    for key, old, new in differences:
        if _ENV_KEYS.intersection(key.split(".")):
            raise DataError(
                f"{a.location} and {b.location}: the environments differ: {key} "
                f"{value_text(old)} and {value_text(new)}",
                hint="compare rollouts in the same environment with the same options",
                code="data.mismatch",
                details={"key": key},
            )
    return differences


def _is_valid(row: Mapping[str, Any]) -> bool:
    return row.get("error") is None


def _per_task(
    a: RolloutOutput, pairs: Mapping[Start, tuple[bool, bool]]
) -> Mapping[str, Mapping[str, Any]]:
    """Outcomes by task or, without tasks, by instruction of a; empty for a single one."""
    groups: dict[str, list[tuple[bool, bool]]] = {}
    for start, pair in pairs.items():
        name = start[0] or str(a.rows[start].get("instruction", ""))
        groups.setdefault(name, []).append(pair)
    is_single = len(groups) < 2 and not any(task for task, _ in pairs)
    return {} if is_single else {name: _figures(groups[name]) for name in sorted(groups)}


def _figures(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    counts = PairCounts.of(pairs)
    low, high = counts.confidence_95()
    return {
        "starts": counts.total,
        "successes_a": counts.both + counts.only_a,
        "successes_b": counts.both + counts.only_b,
        "only_a": counts.only_a,
        "only_b": counts.only_b,
        "difference": counts.difference,
        "confidence_95": [round(low, 4), round(high, 4)],
        "p_value": counts.p_value(),
    }


def _cells(counts: Mapping[str, Any]) -> Iterator[str]:
    low, high = counts["confidence_95"]
    yield str(counts["starts"])
    for name in ("successes_a", "successes_b"):
        yield f"{100 * counts[name] / max(counts['starts'], 1):.0f} %"
    yield f"{100 * counts['difference']:+.0f}"
    yield f"{100 * low:+.0f} to {100 * high:+.0f}"
    yield f"{counts['p_value']:.3f}"
