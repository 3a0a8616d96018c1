"""Do two commits write the same bytes? Digests of everything that small runs of many options write.

    python benchmarks/equal_bytes.py --write before.json
    PYTHONPATH=/path/of/another/checkout/src python benchmarks/equal_bytes.py --against before.json

The commands are run by `sys.executable -m vlatool`, so that PYTHONPATH chooses the code. Left out:
`.vlatool/`, `processing_metadata.json` (both hold times) and indices of shards. Of what `--json`
prints, keys and types are compared, and a few values. `--only 'spartan-*'` makes some of the runs
(those of AFTER need the run whose output they name); `--keep DIR` keeps what was written.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from equal_bytes_runs import AFTER, BUCKET, RUNS, SAMPLES, make_inputs

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for tests.builders

LEFT_OUT = ("*.vlatool/*", "*processing_metadata.json", "*shards/*.index.npz")
KEPT = ("status", "samples", "shards", "dropped", "warnings", "failures", "counts", "codes")
KEPT_OF_ERRORS = ("kind", "code", "message", "hint")
Record = dict[str, Any]


def main(arguments: argparse.Namespace) -> int:
    """Makes the runs in a folder of their own, then writes or compares what was found."""
    started = time.perf_counter()
    before = json.loads(arguments.against.read_text()) if arguments.against else {}
    target = arguments.write.resolve() if arguments.write else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        found = records(folder, arguments.only, arguments.parallel)
    print(f"{len(found)} runs, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if target is not None:
        target.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        return 0
    wanted = {name: one for name, one in before.items() if fnmatch(name, arguments.only)}
    lines = list(differences(wanted, found))
    print("\n".join(lines) or "equal")
    return 1 if lines else 0


def records(folder: Path, only: str, parallel: int) -> dict[str, Record]:
    """Every run's exit code, result and digests, by name."""
    from tests.builders.s3_server import s3_server

    os.chdir(folder)
    found: dict[str, Record] = {}
    with s3_server() as server, ThreadPoolExecutor(parallel) as pool:
        os.environ |= server.env
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        for runs in (SAMPLES, RUNS, AFTER):
            chosen = {n: w for n, w in runs.items() if runs is SAMPLES or fnmatch(n, only)}
            made = pool.map(lambda item: record(*item, client), chosen.items())
            found |= dict(zip(chosen, made, strict=True))
            if runs is SAMPLES:
                make_inputs(Path("raw"))
                upload(client, Path("raw/spartan"), "raw/spartan")
                for path in sorted(Path("raw").glob("built-*")):
                    found[path.name] = {"files": digests(path, client)}
    return {name: one for name, one in found.items() if fnmatch(name, only)}


def record(name: str, line: str, client: Any) -> Record:
    """Runs one command."""
    words = shlex.split(line)
    if words[0] == "preprocess":
        words += [] if "-o" in words else ["-o", f"out/{name}"]
        words += [] if "--workers" in line or "ray" in words else ["--workers", "1"]
    words += [] if name.endswith("-text") else ["--json"]
    command = [sys.executable, "-m", "vlatool", *words, "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"{name}: {done.returncode}", file=sys.stderr)
    option = next((one for one in ("-o", "--html") if one in words), "")
    target = words[words.index(option) + 1] if option else ""
    return {
        "exit_code": done.returncode,
        **result(done.stdout),
        "stderr": sorted(done.stderr.splitlines()),
        "files": digests(target, client) if is_there(target) else {},
    }


def result(stdout: str) -> Record:
    """What can be compared of a result; all of one that is no JSON."""
    try:
        document = json.loads(stdout)
    except ValueError:
        return {"stdout": stdout}
    return {"shape": shape(document), "values": kept(document)}


def shape(value: Any) -> Any:
    """Keys and types of a JSON document; a list is the different shapes in it."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        shapes = [shape(item) for item in value]
        return [one for number, one in enumerate(shapes) if one not in shapes[:number]]
    return type(value).__name__


def kept(document: dict[str, Any]) -> dict[str, Any]:
    """The values of a result that are the same every time."""
    error = document.get("error", {})
    values = {key: document[key] for key in KEPT if key in document}
    return values | {f"error.{key}": error[key] for key in KEPT_OF_ERRORS if key in error}


def is_there(target: str) -> bool:
    """Whether a command was told to write something, and has."""
    return bool(target) and ("s3://" in target or Path(target).exists())


def digests(target: str | Path, client: Any) -> dict[str, str]:
    """SHA-256 of every file of an output that must not depend on time."""
    contents = remote(client, str(target)) if "s3://" in str(target) else local(Path(target))
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in contents
        if not any(fnmatch("/" + name, f"*/{part}") for part in LEFT_OUT)
    }


def local(target: Path) -> Iterator[tuple[str, bytes]]:
    """Relative name and content of every file below a folder, or of the one file."""
    for path in sorted(target.rglob("*")) if target.is_dir() else [target]:
        if path.is_file():
            yield (
                path.relative_to(target if target.is_dir() else "out").as_posix(),
                path.read_bytes(),
            )


def remote(client: Any, target: str) -> Iterator[tuple[str, bytes]]:
    """The same for a place in the bucket."""
    prefix = target.removeprefix(f"s3://{BUCKET}/") + "/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    for key in (one["Key"] for page in pages for one in page.get("Contents", [])):
        body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        yield key.removeprefix(prefix), body


def upload(client: Any, source: Path, prefix: str) -> None:
    """Copies a folder into the bucket."""
    for name, content in local(source):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=content)


def differences(before: dict[str, Record], now: dict[str, Record]) -> Iterator[str]:
    """One line per run and file, or part of a result, that is not the same."""
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now:
            yield f"{name}: run only {'now' if name in now else 'before'}"
            continue
        old, new = before[name], now[name]
        for part in sorted((old.keys() | new.keys()) - {"files"}):
            if old.get(part) != new.get(part):
                yield f"{name}: {part}: {json.dumps(old.get(part))} -> {json.dumps(new.get(part))}"
        was, now_is = old.get("files", {}), new.get("files", {})
        for path in sorted(was.keys() | now_is.keys()):
            if was.get(path) != now_is.get(path):
                how = "new" if path not in was else "changed" if path in now_is else "gone"
                yield f"{name}: {path}: {how}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", type=Path)
    group.add_argument("--against", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--parallel", type=int, default=2)
    sys.exit(main(parser.parse_args()))
