"""Comparison of the bytes that two commits write, over small runs of every writing command.

    python benchmarks/equal_bytes.py --write before.json
    PYTHONPATH=/path/of/another/checkout/src python benchmarks/equal_bytes.py --against before.json

Commands run as `sys.executable -m vlatool`, so PYTHONPATH chooses the code; inputs that no command
writes are built from the tree of this file. Compared are exit codes, JSON results, the SHA-256 of
every file, and text: stderr, output that is not JSON, messages, pages and plots. `--no-text` leaves
text out. Times are left out; the program's version, the path of the folder and line numbers of YAML
files are replaced by names; `.vlatool/` is ignored.

`--only 'spartan*'` compares the runs whose name matches (the runs they need are made too), and
`--keep DIR` keeps what was written.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import equal_bytes_runs
from equal_bytes_runs import BUCKET, OUTPUTS, RUNS, SAMPLES

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # for tests.builders

# First words of commands whose output is a folder that `-o` names.
WRITING = ("preprocess", "tokenizer", "encode", "decode", "build-dataset", "export")
WRITING += ("train", "finetune", "eval", "demo")
OUTPUT_OPTIONS = ("-o", "--output", "--html")
# Keys of JSON documents whose values are times, or prose.
TIMES = ("*seconds", "stages", "samples_per_second", "step_ms", "data_wait", "memory_gb")
TIMES += ("created_at", "timestamp_*")
SPEEDS = ("rate", "bound")  # of results, and which stage was slowest
PROSE = ("message", "hint", "next", "not_measured")
# Files that are prose: pages, and plots with titles and labels.
TEXT_FILES = ("*.html", "*episodes.png", "*rollouts.png", "*wrong-instruction.png")
FINDING_CODE = re.compile(r"[a-z_]+\.[a-z_]+(?=: )")
SHOWN = 12  # differences printed for one part of a run
MOST_VALUES = 3000  # of a result; of a larger one the digest is recorded
Record = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """Values that all runs share.

    Attributes:
        folder: Working folder of all commands.
        client: Client of the S3 server.
        version: Version of the program.
    """

    folder: Path
    client: Any
    version: str

    def normalized(self, text: str) -> str:
        """Text with names for the folder, the version and the lines of YAML files."""
        text = re.sub(r"(\.ya?ml:)\d+", r"\1LINE", text.replace(str(self.folder), "FOLDER"))
        return re.sub(rf"(?<![\w.]){re.escape(self.version)}(?![\w.])", "VERSION", text)


def main(arguments: argparse.Namespace) -> int:
    """Makes the runs, then writes their records or compares them; returns the exit code."""
    started = time.perf_counter()
    before = json.loads(arguments.against.read_text()) if arguments.against else {}
    target = arguments.write.resolve() if arguments.write else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        records = make_records(folder, arguments.only, arguments.parallel)
    print(f"{len(records)} runs, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if target is not None:
        target.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
        return 0
    expected = {name: record for name, record in before.items() if fnmatch(name, arguments.only)}
    ignored = ("text",) if arguments.no_text else ()
    lines = list(differences(expected, records, ignored))
    print("\n".join(lines) or "equal")
    return 1 if lines else 0


def make_records(folder: Path, only: str, parallel: int) -> dict[str, Record]:
    """Records of all runs whose name matches, by name."""
    from tests.builders.s3_server import s3_server

    if path := os.environ.get("PYTHONPATH"):  # still right in the other working folder
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    os.environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    os.chdir(folder)
    records: dict[str, Record] = {}
    with s3_server() as server, ThreadPoolExecutor(parallel) as pool:
        os.environ |= server.env
        context = Context(folder, server.client(), program_version())
        context.client.create_bucket(Bucket=BUCKET)

        def make(runs: dict[str, str]) -> None:
            made = pool.map(lambda item: make_record(*item, context), runs.items())
            records.update(zip(runs, made, strict=True))

        make(SAMPLES)
        records |= build_inputs(context)
        upload(context.client, Path("raw/spartan"), "raw/spartan")
        for runs in stages(only):
            make(runs)
    return {name: record for name, record in records.items() if fnmatch(name, only)}


def program_version() -> str:
    """Version of the program that PYTHONPATH chooses; prints where it is."""
    code = "import vlatool; print(vlatool.__file__, vlatool.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(done.stdout.strip(), file=sys.stderr)
    return done.stdout.split()[-1]


def build_inputs(context: Context) -> dict[str, Record]:
    """Builds the other inputs with the code of this file's tree; returns their records."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, equal_bytes_runs.__file__, "raw"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True)
    built = sorted(Path("raw").glob("built-*"))
    return {folder.name: file_digests(str(folder), context) for folder in built}


def stages(only: str) -> Iterator[dict[str, str]]:
    """Runs whose name matches and the runs they need, in groups that can run at once."""
    needed: set[str] = set()
    added = {name for name in RUNS if fnmatch(name, only)}
    while added:
        needed |= added
        added = {source for name in added for source in sources(name)} - needed
    done: set[str] = set()
    while done != needed:
        ready = {
            name: line
            for name, line in RUNS.items()
            if name in needed - done and sources(name) <= done
        }
        if not ready:
            raise ValueError(f"runs that need each other: {sorted(needed - done)}")
        yield ready
        done |= ready.keys()


def sources(name: str) -> set[str]:
    """Names of the runs whose outputs a run uses."""
    return (set(re.findall(r"\bout/([\w-]+)", RUNS[name])) & RUNS.keys()) - {name}


def make_record(name: str, line: str, context: Context) -> Record:
    """Runs one command."""
    words = shlex.split(line)
    option = next((word for word in OUTPUT_OPTIONS if word in words), "")
    if not option and words[0] in WRITING:
        option = "-o"
        words += [option, f"out/{name}"]
    if words[0] == "preprocess" and not {"--workers", "ray"} & set(words):
        words += ["--workers", "1"]
    words += [] if name.endswith("-text") else ["--json"]
    command = [sys.executable, "-m", "vlatool", *words, "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"{name}: {done.returncode}", file=sys.stderr)
    record = {"exit_code": done.returncode, **parsed(context.normalized(done.stdout))}
    record["text"]["stderr"] = sorted(context.normalized(done.stderr).splitlines())
    target = words[words.index(option) + 1] if option else OUTPUTS.get(name, "")
    if not target or ("s3://" not in target and not Path(target).exists()):
        return record
    digests = file_digests(target, context)
    record["text"] |= digests.pop("text")
    return record | digests


def parsed(stdout: str) -> Record:
    """Values of a JSON result, with prose apart; output that is not JSON is prose."""
    try:
        leaves = dict(leaves_of(json.loads(stdout)))
    except ValueError:
        return {"text": {"stdout": stdout.splitlines()}}
    prose = {path: value for path, value in leaves.items() if is_prose(path, value)}
    values = {path: masked(value) if path in prose else value for path, value in leaves.items()}
    if len(values) > MOST_VALUES:
        digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        values = {"number of values": len(values), "sha256": digest}
    return {"result": values, "text": {"result": prose}}


def leaves_of(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each leaf of a JSON document; of times and speeds the type alone."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        where = f"{path}/{key}"
        if isinstance(item, dict | list) and item:
            yield from leaves_of(item, where)
        else:
            yield where, type(item).__name__ if is_time(where) else item


def is_time(path: str) -> bool:
    """True if a key on the path stands for times or speeds."""
    return any(matches(key, TIMES + SPEEDS) for key in path.split("/"))


def is_prose(path: str, value: Any) -> bool:
    """True for sentences: strings with a space, and all values of the keys for prose."""
    return isinstance(value, str) and (" " in value or any(key in PROSE for key in path.split("/")))


def masked(prose: str) -> str:
    """Type of a sentence, and the finding code it starts with."""
    code = FINDING_CODE.match(prose)
    return f"str {code[0]}" if code else "str"


def file_digests(target: str, context: Context) -> Record:
    """Digests of the files of an output, and those of their text."""
    contents = remote_files(context.client, target) if "s3://" in target else local_files(target)
    files: dict[str, str] = {}
    text: dict[str, str] = {}
    for name, content in contents:
        if fnmatch("/" + name, "*/.vlatool/*"):
            continue
        data, prose = comparable(name, content, context)
        if data is not None:
            files[name] = hashlib.sha256(data).hexdigest()
        if prose is not None:
            text[name] = hashlib.sha256(prose).hexdigest()
    return {"files": files, "text": {"files": text}}


def comparable(name: str, content: bytes, context: Context) -> tuple[bytes | None, bytes | None]:
    """Bytes of a file that two runs share, without prose; and with it, where there is any."""
    suffix = Path(name).suffix
    if suffix in (".json", ".jsonl", ".yaml", ".txt", ".html"):
        content = context.normalized(content.decode()).encode()
    if matches(name, TEXT_FILES):
        return None, without_page_times(content) if suffix == ".html" else content
    if suffix == ".yaml":
        bare = re.sub(rb"(?m)(^|[ \t]+)#.*\n?", lambda m: b"\n" if m[1] else b"", content)
        return (bare, content) if bare != content else (content, None)
    if suffix in (".json", ".jsonl"):
        return comparable_json(content, is_lines=suffix == ".jsonl")
    return content, None


def comparable_json(content: bytes, *, is_lines: bool) -> tuple[bytes, bytes | None]:
    """JSON without times; its own bytes if it holds neither times nor prose."""
    rows = [json.loads(row) for row in (content.splitlines() if is_lines else [content])]
    timeless = [with_types_of(row, TIMES) for row in rows]
    if timeless != rows:  # a digest at the top is that of the document, its times included
        rows = [{**row, **({"digest": ""} if "digest" in row else {})} for row in timeless]
        content = json.dumps(rows).encode()
    data = [with_types_of(row, PROSE) for row in rows]
    return (content, None) if data == rows else (json.dumps(data).encode(), content)


def with_types_of(value: Any, keys: tuple[str, ...], *, is_below: bool = False) -> Any:
    """JSON value in which all values below some keys are replaced by their types."""
    if isinstance(value, dict):
        return {
            key: with_types_of(item, keys, is_below=is_below or matches(key, keys))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [with_types_of(item, keys, is_below=is_below) for item in value]
    return type(value).__name__ if is_below else value


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    """True if a key matches a pattern."""
    return any(fnmatch(key, pattern) for pattern in patterns)


def without_page_times(content: bytes) -> bytes:
    """A page without dates, durations and rates."""
    return re.sub(rb"\d+([-:.,]\d+)*", b"N", content)


def local_files(target: str) -> Iterator[tuple[str, bytes]]:
    """Relative name and content of every file of a folder, or of those named like a file."""
    path = Path(target)
    root, pattern = (path, "**/*") if path.is_dir() else (path.parent, f"{path.stem}*")
    for file in sorted(root.glob(pattern)):
        if file.is_file():
            yield file.relative_to(root).as_posix(), file.read_bytes()


def remote_files(client: Any, target: str) -> Iterator[tuple[str, bytes]]:
    """Relative name and content of every object below a location in the bucket."""
    prefix = target.removeprefix(f"s3://{BUCKET}/") + "/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    for key in (item["Key"] for page in pages for item in page.get("Contents", [])):
        body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        yield key.removeprefix(prefix), body


def upload(client: Any, source: Path, prefix: str) -> None:
    """Copies a folder into the bucket."""
    for name, content in local_files(str(source)):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=content)


def differences(
    before: dict[str, Record], now: dict[str, Record], ignored: tuple[str, ...]
) -> Iterator[str]:
    """One line per difference: its run, part, path or file, and both values."""
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now:
            yield f"{name}: run only {'now' if name in now else 'before'}"
            continue
        old, new = before[name], now[name]
        for part in sorted((old.keys() | new.keys()) - set(ignored)):
            lines = list(part_differences(old.get(part), new.get(part)))
            yield from (f"{name}: {part}{line}" for line in lines[:SHOWN])
            if len(lines) > SHOWN:
                yield f"{name}: {part}: {len(lines) - SHOWN} more"


def part_differences(old: Any, new: Any) -> Iterator[str]:
    """The differences of one part."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if key not in old or key not in new:
                yield f": {key}: {'new' if key in new else 'gone'}"
            else:
                yield from (f": {key}{line}" for line in part_differences(old[key], new[key]))
    elif json.dumps(old) != json.dumps(new):
        yield f": {json.dumps(old)} -> {json.dumps(new)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", type=Path)
    group.add_argument("--against", type=Path)
    parser.add_argument("--no-text", action="store_true", help="compare no prose")
    parser.add_argument("--only", default="*")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--parallel", type=int, default=2)
    sys.exit(main(parser.parse_args()))
