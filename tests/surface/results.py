"""Keys and types of JSON results of cheap commands, and of the files that they write."""

import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.builders.spartan import session_folder, spartan_task
from tests.surface.invoke import in_folder, run_vlatool

WINDOWS = (
    "--sink",
    "lbm",
    "--past-lowdim-steps",
    "1",
    "--future-lowdim-steps",
    "3",
    "--max-padding-right",
    "3",
)
MAKE = ("preprocess", "spartan", "raw", *WINDOWS, "--workers", "1")
IMAGES = ("preprocess", "spartan", "raw", "--sink", "image-shards", "--workers", "1")
# Name to arguments; later commands use the outputs of earlier ones.
COMMANDS: dict[str, tuple[str, ...]] = {
    "version": ("version",),
    "plugins": ("plugins",),
    "presets": ("presets",),
    "doctor": ("doctor",),
    "sample": ("sample", "spartan", "raw", "--episodes", "2", "--frames", "6", "--workers", "1"),
    "preprocess-dry-run": (*MAKE, "-o", "data", "--dry-run"),
    "preprocess": (*MAKE, "-o", "data"),
    "preprocess-again": (*MAKE, "-o", "data"),
    "preprocess-partial": (
        "preprocess",
        "spartan",
        "broken",
        *WINDOWS,
        "-o",
        "b",
        "--workers",
        "1",
    ),
    "preprocess-image-shards": (*IMAGES, "-o", "pictures"),
    "split": ("split", "pictures", "--val-ratio", "0.5"),
    "inspect-image-shards": ("inspect", "pictures"),
    "inspect-source": ("inspect", "raw"),
    "inspect-output": ("inspect", "data"),
    "inspect-shard": ("inspect", "data/shards/shard_000000.tar"),
    "verify-output": ("verify", "data"),
    "verify-source": ("verify", "broken"),
    "verify-codes": ("verify", "--codes"),
    "stats-merge": ("stats", "merge", "data", "data", "--output", "merged.json"),
    "resolve-config-explain": ("resolve-config", "--preset", "world-pick", "--explain"),
}
# Written files: name to output and pattern of tars, of which one is read.
WRITTEN = {
    "artifacts": (Path("data"), "shards/shard_000000.tar"),
    "image-shards": (Path("pictures"), "*episode_0.tar"),
}
# Commands that fail.
ERRORS: dict[str, tuple[str, ...]] = {
    "no command": ("--json",),
    "unknown command": ("trian",),
    "unknown option": ("preprocess", "spartan", "raw", "--nothing"),
    "unknown progress": ("version", "--progress", "loud"),
    "surplus argument": ("version", "surplus"),
    "missing keys": ("preprocess",),
    "unknown format": ("preprocess", "rlds", "raw", "-o", "x"),
    "bad value": ("preprocess", "spartan", "raw", "-o", "x", "--stride", "0"),
    "other options": (*MAKE, "-o", "data", "--seed", "1"),
    "missing source": ("preprocess", "spartan", "nothing", "-o", "x"),
    "no episodes": ("preprocess", "lerobot", "raw", "-o", "x"),
    "some failed": ("preprocess", "spartan", "broken", *WINDOWS, "-o", "b", "--workers", "1"),
    "unknown preset": ("resolve-config", "--preset", "wrold-pick"),
    "unknown key": ("resolve-config", "--set", "hparams.rl=1"),
    "nothing to inspect": ("inspect", "nothing"),
    "nothing to verify": ("verify", "nothing"),
    "nothing to merge": ("stats", "merge", "nothing", "nowhere"),
    "not a file": ("version", "--log-file", "nothing/log"),
}


def recorded() -> dict[str, str]:
    """File name to text."""
    with tempfile.TemporaryDirectory() as folder, in_folder(Path(folder)):
        _break(spartan_task(Path("broken"), 2, 6))
        files = {f"{name}.json": _text(shape(_result(words))) for name, words in COMMANDS.items()}
        errors = {name: _error(words) for name, words in ERRORS.items()}
        written = {
            name: dict(sorted(_written(output, next(output.glob(tars)))))
            for name, (output, tars) in WRITTEN.items()
        }
    files |= {f"{name}.json": _text(documents) for name, documents in written.items()}
    return files | {"refusals.json": _text(errors)}


def _break(source: Path) -> None:
    path = session_folder(source) / "episode_1/processed/observations.npz"
    path.write_bytes(path.read_bytes()[:500])


def _text(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _result(words: tuple[str, ...]) -> Any:
    return json.loads(run_vlatool(*words, "--json", "-q")[1])


def _error(words: tuple[str, ...]) -> dict[str, Any]:
    code, text = run_vlatool(*words, "--json", "-q")
    return {"exit_code": code, "code": json.loads(text)["error"]["code"]}


def _written(output: Path, tar_path: Path) -> Iterator[tuple[str, Any]]:
    """Name and shape of each file, with the values of format versions."""
    yield (
        "files",
        sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()),
    )
    for path in (*output.rglob("*.json"), *output.rglob("*.jsonl"), *output.rglob("*.yaml")):
        text = path.read_text()
        rows = map(json.loads, text.splitlines()) if path.suffix == ".jsonl" else ()
        document = list(rows) or yaml.safe_load(text)
        entry = shape(document)
        if isinstance(document, dict) and "metadata_version" in document:
            entry["metadata_version"] = document["metadata_version"]
        if isinstance(document, dict) and str(document.get("format")).startswith("vlatool."):
            entry |= {key: document[key] for key in ("format", "version")}
        yield path.relative_to(output).as_posix(), entry
    with tarfile.open(tar_path) as tar:
        yield "members of a sample", dict(_members(tar))


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, Any]]:
    first = tar.getnames()[0].partition(".")[0]
    for info in (member for member in tar if member.name.startswith(first)):
        suffix, file = info.name.removeprefix(first + "."), tar.extractfile(info)
        assert file is not None
        if suffix.endswith(".json"):
            yield suffix, shape(json.load(file))
        elif suffix.endswith(".npz"):
            arrays = np.load(file, allow_pickle=False)
            yield suffix, {name: f"{arrays[name].dtype} {arrays[name].shape}" for name in arrays}
        else:
            yield suffix, "bytes"


def shape(value: Any) -> Any:
    """Keys and types of a document; a mapping of many objects is one entry `*`."""
    if isinstance(value, list):
        return [_merged([shape(item) for item in value])] if value else []
    if not isinstance(value, dict):
        return "null" if value is None else type(value).__name__
    inner = {key: shape(item) for key, item in value.items()}
    if len(inner) > 4 and all(isinstance(item_shape, dict) for item_shape in inner.values()):
        return {"*": _merged(list(inner.values()))}
    return inner


def _merged(shapes: list[Any]) -> Any:
    """One shape for all; a key that some lack ends with a question mark."""
    if all(isinstance(entry, dict) for entry in shapes):
        keys = list(dict.fromkeys(key for entry in shapes for key in entry))
        return {
            key if all(key in entry for entry in shapes) else f"{key}?": _merged(
                [entry[key] for entry in shapes if key in entry]
            )
            for key in keys
        }
    if all(isinstance(entry, list) for entry in shapes):
        items = [item for entry in shapes for item in entry]
        return [_merged(items)] if items else []
    kinds = sorted({entry if isinstance(entry, str) else json.dumps(entry) for entry in shapes})
    return " | ".join(kinds)
