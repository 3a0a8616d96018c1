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
        title = f"{self.env}: success of A and B over the same starts"
        yield f"A: {self.a.location} ({self.a.checkpoint})"
        yield f"B: {self.b.location} ({self.b.checkpoint})"
        yield text_table(title, _HEADER, self.rows_of_outcomes())
        for row in self.differences:
            a = value_text(row["a"])
            b = value_text(row["b"])
            yield f"differs: {row['key']} {a} in A, {b} in B"
        if self.errors:
            starts = counted(self.errors, "start")
            yield f"left out: {starts} that ended with an error of the environment in A or B"
        if self.unpaired:
            yield f"left out: {counted(self.unpaired, 'start')} that only A or only B has"
        if self.html is not None:
            yield f"page: {self.html}"

    def rows_of_outcomes(self) -> list[tuple[str, ...]]:
        """Rows below `_HEADER`: of all starts, then of each task."""
        rows = [_outcome_row("all", self.overall)]
        for task, counts in self.per_task.items():
            rows.append(_outcome_row(task, counts))
        return rows


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
    pairs: dict[Start, tuple[bool, bool]] = {}
    for start in starts:
        row_a = a.rows[start]
        row_b = b.rows[start]
        if row_a.get("error") is None and row_b.get("error") is None:
            pairs[start] = row_a["success"], row_b["success"]
    result = CompareResult(
        env=a.env,
        a=a,
        b=b,
        differences=[{"key": key, "a": old, "b": new} for key, old, new in differences],
        overall=_figures([*pairs.values()]),
        errors=len(starts) - len(pairs),
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

    starts = result.overall["starts"]
    rates: list[tuple[str, float, str]] = []
    for name, output, successes in (
        ("A", result.a, result.overall["successes_a"]),
        ("B", result.b, result.overall["successes_b"]),
    ):
        text = f"{successes} of {starts}, {output.checkpoint}"
        rates.append((f"{name}: {output.location}", successes / max(starts, 1), text))
    different: list[tuple[object, ...]] = []
    for (task, seed), (success_a, success_b) in pairs.items():
        if success_a != success_b:
            words = ("success", "failure") if success_a else ("failure", "success")
            different.append((task, seed, *words))
    settings: list[tuple[object, ...]] = []
    for row in result.differences:
        settings.append((row["key"], value_text(row["a"]), value_text(row["b"])))
    outcomes = Table(_HEADER, result.rows_of_outcomes())
    sections = [
        Section("Success over the same starts", [rate_table(rates), outcomes]),
        Section("Options that differ", [Table(("option", "A", "B"), settings)]),
        Section("Starts with different outcomes", [Table(("task", "seed", "A", "B"), different)]),
        command_section(command),
    ]
    left_out = f"{result.errors} with errors and {result.unpaired} of only one are not counted"
    subtitle = f"{counted(starts, 'start')} of both; {left_out}"
    return page(f"A and B in {result.env}", subtitle, sections, generator=_GENERATOR)


def read_rollouts(location: str) -> RolloutOutput:
    """Reads an output of `vlatool eval rollout`, or its report."""
    path = pinned(location)
    if path.suffix != ".json":
        path = path / _REPORT
    try:
        report = read_json(path)
        rows: dict[Start, Mapping[str, Any]] = {}
        for row in report["rollouts"]:
            if not isinstance(row["success"], bool):
                raise TypeError("success is not true or false")
            rows[str(row.get("task", "")), int(row["seed"])] = row
        checkpoint = str(report["checkpoint"])
        weights = str(report["weights"])
        env = str(report["env"])
    except (OSError, DocumentError, KeyError, TypeError, ValueError, AttributeError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise DataError.at(
            path,
            "no such file" if missing else "is not a report of `vlatool eval rollout`",
            hint="give an output of `vlatool eval rollout`, such as RUN/eval/rollout-...",
            code="data.no_source",
        ) from None
    record = read_record(path.parent)
    options = record.options if record is not None and record.command == "eval rollout" else {}
    return RolloutOutput(location, Path(checkpoint).name, weights, env, options, rows)


def _differences(a: RolloutOutput, b: RolloutOutput) -> list[tuple[str, Any, Any]]:
    """Each option that differs: its key and both values.

    Raises:
        DataError: The environments differ.
    """
    rows: list[tuple[str, Any, Any]] = []
    if a.options and b.options:
        rows += differing_keys(dict(a.options), dict(b.options))
    elif a.env != b.env:
        rows.append(("env", a.env, b.env))
    differences: list[tuple[str, Any, Any]] = []
    for key, old, new in rows:
        if key.partition(".")[0] in _UNCOMPARED:
            continue
        if _ENV_KEYS.intersection(key.split(".")):
            raise DataError(
                f"{a.location} and {b.location}: the environments differ: {key} "
                f"{value_text(old)} and {value_text(new)}",
                hint="compare rollouts in the same environment with the same options",
                code="data.mismatch",
                details={"key": key},
            )
        differences.append((key, old, new))
    return differences


def _per_task(
    a: RolloutOutput, pairs: Mapping[Start, tuple[bool, bool]]
) -> Mapping[str, Mapping[str, Any]]:
    """Outcomes by task or, without tasks, by instruction of a; empty for a single one."""
    groups: dict[str, list[tuple[bool, bool]]] = {}
    for start, pair in pairs.items():
        name = start[0] or str(a.rows[start].get("instruction", ""))
        groups.setdefault(name, []).append(pair)
    if len(groups) < 2 and not any(task for task, _ in pairs):
        return {}
    return {name: _figures(groups[name]) for name in sorted(groups)}


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


def _outcome_row(task: str, counts: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of a row below `_HEADER`."""
    starts = max(counts["starts"], 1)
    low, high = counts["confidence_95"]
    return (
        task,
        str(counts["starts"]),
        f"{100 * counts['successes_a'] / starts:.0f} %",
        f"{100 * counts['successes_b'] / starts:.0f} %",
        f"{100 * counts['difference']:+.0f}",
        f"{100 * low:+.0f} to {100 * high:+.0f}",
        f"{counts['p_value']:.3f}",
    )
