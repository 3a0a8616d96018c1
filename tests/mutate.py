"""Mutation run: one value, sign, comparison or mask is changed at a time, and tests must notice.

`python -m tests.mutate --number 200 --hours 4` mutates published presets and the code of models,
losses, optimization, loading and transforms, each in a copy of the tree, and runs the tests that
import the module or name the preset, and those of parity and presets. Outcomes are lines of
`out/mutations.jsonl`; a repeated command does the mutations that it lacks. Survivors are printed.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "out/mutations.jsonl"
LIMIT_S = 60.0  # of the tests of a mutation
BUDGET_S = 30.0  # of their times without a mutation, so that a busy machine ends none of them
ALWAYS = (
    "tests/unit/config/test_published_presets.py",
    "tests/unit/config/test_shipped_presets.py",
    "tests/unit/config/test_parity.py",
    "tests/unit/models/test_published_parity.py",
)
PRESETS = (
    *("**/*-published.yaml", "preprocess/lbm-*.yaml", "preprocess/future-vla.yaml"),
    *("runs/future-vla-libero.yaml", "models/titok-[bls]*.yaml", "hparams/titok-*.yaml"),
)
CODE = (
    *("models/**/objective.py", "models/**/model.py", "models/**/batch.py", "models/**/config.py"),
    *("models/future_vla/vision.py", "models/future_vla/policy.py", "models/perceptual.py"),
    *("models/future_vla/decoding.py", "models/future_vla/frame_cache.py"),
    *("models/**/noise.py", "models/**/losses.py", "models/backbones/*.py", "models/inception.py"),
    *("models/codebook.py", "models/images.py", "models/policy.py"),
    *("models/rng.py", "training/step.py", "training/plan.py", "training/config.py"),
    *("training/state.py", "loading/order.py", "loading/shard_reader.py"),
    *("loading/robotics/reader.py", "loading/robotics/statistics.py", "transforms/*.py"),
)
# Each is replaced by the other.
WORDS = (
    *("cosine const", "center random", "per_timestep global", "rising ema", "amp_bf16 float32"),
    *("legacy plain", "proxy pixels", "lanczos bicubic", "amp_bfloat16 float16", "jpeg png"),
    *(
        "percentile_1_99 percentile_5_95",
        "base large",
        "resize_no_crop resize_crop",
        "convnext_s lpips",
    ),
)
OPERATORS = (
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr)),
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq)),
)
OTHER: dict[Any, Any] = {
    a: b for pair in (*OPERATORS, *map(str.split, WORDS)) for a, b in (pair, pair[::-1])
}


@dataclass(frozen=True)
class Mutation:
    """Replacement of the characters `start` to `end` of a file."""

    path: str
    line: int
    start: int
    end: int
    before: str
    after: str

    @property
    def key(self) -> str:
        return f"{self.path}:{self.line}:{self.start}: {self.before} -> {self.after}"


def preset_mutations(path: Path) -> Iterator[Mutation]:
    """Another value for each number, switch and known word of a preset."""
    for node in _scalars(yaml.compose(path.read_text(), yaml.SafeLoader)):
        after = OTHER.get(node.value)
        with suppress(yaml.YAMLError):
            after = after or _other(yaml.safe_load(node.value))
        if after and not node.tag.startswith("!") and not node.value.isspace():
            start, end = node.start_mark, node.end_mark
            name, line = str(path.relative_to(ROOT)), start.line + 1
            yield Mutation(name, line, start.index, end.index, node.value, after)


def _scalars(node: Any) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value not in ("type", "<<"):
                yield from _scalars(value)
    elif isinstance(node, yaml.SequenceNode):
        yield from chain.from_iterable(map(_scalars, node.value))
    elif isinstance(node, yaml.ScalarNode):
        yield node


def _other(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, str) and re.fullmatch(r"-?[\d.]+e-?\d+", value):
        value = float(value)  # a text in YAML 1.1
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return repr(value * 2 or 1.0)
    return "1" if value is None else None


def code_mutations(path: Path) -> Iterator[Mutation]:
    """Another number, sign, operator, comparison or mask for each of a module."""
    text = path.read_text()
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    tree = ast.parse(text)
    types = {id(part) for node in ast.walk(tree) for part in _annotation(node)}
    for node in ast.walk(tree):
        after = None if id(node) in types else _mutated(node)
        if after and isinstance(node, ast.expr) and node.end_lineno and node.end_col_offset:
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            name = str(path.relative_to(ROOT))
            yield Mutation(name, node.lineno, start, end, text[start:end], after)


def _annotation(node: ast.AST) -> Iterator[ast.AST]:
    parts = (getattr(node, name, None) for name in ("annotation", "returns"))
    yield from chain.from_iterable(ast.walk(part) for part in parts if isinstance(part, ast.AST))


def _mutated(node: ast.AST) -> str | None:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return _other(node.value)
        case ast.UnaryOp(op=ast.USub() | ast.Invert()):
            return f"({ast.unparse(node.operand)})"
        case (
            ast.BinOp(ast.JoinedStr() | ast.Constant(value=str()))
            | ast.BinOp(right=ast.JoinedStr() | ast.Constant(value=str()))
        ):
            return None  # joined texts and paths
        case ast.BinOp(op=operator) if type(operator) in OTHER:
            return f"({ast.unparse(ast.BinOp(node.left, OTHER[type(operator)](), node.right))})"
        case ast.Compare(ops=[operator, *more]) if type(operator) in OTHER:
            operators = [OTHER[type(operator)](), *more]
            return f"({ast.unparse(ast.Compare(node.left, operators, node.comparators))})"
        case _:
            return None


def mutations(number: int, seed: int) -> list[Mutation]:
    """The chosen mutations: presets and code in turn, as many of each file as of the others."""
    rng = random.Random(seed)
    presets = (preset_mutations(path) for path in _files(ROOT / "presets", PRESETS))
    code = (code_mutations(path) for path in _files(ROOT / "src/vlatool", CODE))
    turns = zip_longest(_round_robin(presets, rng), _round_robin(code, rng))
    return [mutation for mutation in chain.from_iterable(turns) if mutation][:number]


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _round_robin(files: Iterable[Iterable[Mutation]], rng: random.Random) -> Iterator[Mutation]:
    lists = [rng.sample(of_file, len(of_file)) for of_file in map(list, files) if of_file]
    for row in zip_longest(*rng.sample(lists, len(lists))):
        yield from (mutation for mutation in row if mutation)


@cache
def imports(path: Path) -> frozenset[str]:
    """Names of the modules, and of what is imported from them, of a Python file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


@cache
def tests_of(path: str) -> list[str]:
    """Test files for a file: those that import it or name it, else those of its importers."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    if path.endswith(".yaml"):
        named = [test for test in tests if Path(path).stem in test.read_text()]
    else:
        modules, named = {_module(ROOT / path)}, list[Path]()
        sources = list((ROOT / "src").rglob("*.py"))
        while not named:
            named = [test for test in tests if modules & imports(test)]
            modules |= {_module(source) for source in sources if modules & imports(source)}
    return list(dict.fromkeys([*(str(test.relative_to(ROOT)) for test in named), *ALWAYS]))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)


def run_tests(copy: Path, tests: Iterable[str]) -> tuple[str, float, str]:
    """Outcome, seconds and the first failed test of a run of pytest in a fork of this process."""
    log, started = copy.with_name("pytest.log"), time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(copy)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        own = {"", str(ROOT), str(ROOT / "src")}
        sys.path[:] = [str(copy / "src"), str(copy), *(p for p in sys.path if p not in own)]
        sys.modules.pop("tests", None)
        os.environ["PYTHONPATH"] = str(copy / "src")
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--rootdir", str(copy)]
        temporary = ["--basetemp", str(copy.with_name("basetemp"))]
        os._exit(pytest.main([*options, *temporary, *tests]))
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > started + LIMIT_S:
            break
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    seconds = round(time.monotonic() - started, 2)
    if ended[0] == 0:
        os.waitpid(pid, 0)
        return "timeout", seconds, ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
    outcome = "survived" if os.waitstatus_to_exitcode(ended[1]) == 0 else "killed"
    return outcome, seconds, failed[1] if failed else ""


def run(copy: Path, chosen: Iterable[Mutation], results: Path, deadline: float) -> None:
    """Runs the mutations that the results lack, until the deadline."""
    rows = read(results)
    done = {row["key"] for row in rows if "key" in row}
    times = {row["test"]: row["seconds"] for row in rows if row.get("baseline") == "survived"}
    known = {row["test"] for row in rows if "baseline" in row}
    for number, mutation in enumerate(chosen):
        if mutation.key in done or time.monotonic() > deadline:
            continue
        tests = tests_of(mutation.path)
        for test in tests:
            if test not in known:
                outcome, seconds, failed = run_tests(copy, [test])
                row = {"test": test, "baseline": outcome, "seconds": seconds, "failed": failed}
                append(results, row)
                known.add(test)
                if outcome == "survived":
                    times[test] = seconds
        affordable = within_budget({test: times[test] for test in tests if test in times})
        path = copy / mutation.path
        original, status = path.read_text(), path.stat()
        path.write_text(original[: mutation.start] + mutation.after + original[mutation.end :])
        os.utime(path, (10**9 + number, 10**9 + number))  # or bytecode of another one may be used
        outcome, seconds, failed = run_tests(copy, affordable)
        path.write_text(original)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        row = {"key": mutation.key, "outcome": outcome, "seconds": seconds, "by": failed}
        append(results, {**row, "tests": len(affordable), "of": len(tests), **asdict(mutation)})


def within_budget(times: Mapping[str, float]) -> list[str]:
    """The quickest tests whose times together are within the budget; those of units first."""
    chosen, total = list[str](), 0.0
    for test in sorted(times, key=lambda name: (not name.startswith("tests/unit"), times[name])):
        total += times[test]
        if total < BUDGET_S or not chosen:
            chosen.append(test)
    return chosen


def read(results: Path) -> list[dict[str, Any]]:
    """Rows of the results: outcomes of mutations, and times of tests without one."""
    lines = results.read_text().splitlines() if results.is_file() else []
    return [json.loads(line) for line in lines]


def append(results: Path, row: Mapping[str, Any]) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")


def main() -> None:
    """Runs the mutations and prints those that no test noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    deadline = time.monotonic() + 3600 * options.hours
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch  # forks share it

    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "tree"
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "out", "runs.*", "*.log")
        shutil.copytree(ROOT, copy, ignore=ignored)
        run(copy, mutations(options.number, options.seed), options.results, deadline)
    rows = [row for row in read(options.results) if "key" in row]
    lived = [f"{row['outcome']}: {row['key']}" for row in rows if row["outcome"] != "killed"]
    sys.stdout.write("\n".join([*lived, f"{len(rows)} mutations, {len(lived)} not killed\n"]))


if __name__ == "__main__":
    main()
