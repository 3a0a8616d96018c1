"""Time and memory of `build-dataset` against a plain script that reads a JSON file per image.

    python benchmarks/build_dataset.py [--episodes 10,100] [--frames 160] [--repeat 3]

The plain script follows the description of the published step: for each line and each of its future
images, it opens and parses a JSON file; one process, the same action tokenizer in batches of 128.
It reads the same windows and writes the same texts. Windows, codes and an action tokenizer without
merges are made first and are not timed; start-up is timed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from machine import describe  # noqa: E402 - the path above
from process_stats import ProcessStats, run  # noqa: E402

from tests.builders.codes import plain_fast, published_windows, write_tree_codes  # noqa: E402
from vlatool.datasets.fast.layout import read_fast  # noqa: E402
from vlatool.datasets.samples.profile import read_profile  # noqa: E402

VLATOOL = [sys.executable, "-m", "vlatool"]
BATCH = 128


def main(arguments: argparse.Namespace) -> None:
    """Prints a row for each variant and number of episodes."""
    print(describe())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        work_dir = Path(folder)
        plain_fast(work_dir / "fast")
        for count in arguments.episodes:
            tree = published_windows(work_dir / f"A{count}", count, arguments.frames)
            for layout in ("json", "packed"):
                write_tree_codes(tree, layout)
            rows(work_dir, tree, count, arguments)


def rows(work_dir: Path, tree: Path, count: int, arguments: argparse.Namespace) -> None:
    """Measures one number of episodes."""
    lines = count * arguments.frames * 2
    variants = {
        "plain": [sys.executable, __file__, "--plain", str(tree), str(work_dir / "fast")],
        **{
            f"{tokens}{' '.join(['', *more])}, {workers} workers": [
                *VLATOOL, "build-dataset", str(tree), "--fast", str(work_dir / "fast"), "-q", *more,
                "--tokens", str(tree / tokens), "--workers", str(workers),
            ]
            for workers in (1, 2)
            for tokens, more in (("TiToken", []), ("tokens", []), ("tokens", ["--packed"]))
        },
    }  # fmt: skip
    base = 0.0
    for name, command in variants.items():
        if name == "plain" and count > arguments.plain_up_to:
            continue
        runs = [timed(work_dir, command, name, number) for number in range(arguments.repeat)]
        seconds = statistics.median(stats.seconds for stats in runs)
        base = base or seconds
        driver = max(stats.driver_mib for stats in runs)
        worker = max(stats.worker_mib for stats in runs)
        cpu_us = 1e6 * statistics.median(stats.cpu_s for stats in runs) / lines
        print(
            f"{count} episodes, {lines} lines, {name}: {seconds:.2f} s, "
            f"{lines / seconds:.0f} lines/s, {base / seconds:.1f} x, "
            f"{cpu_us:.0f} CPU us per line, "
            f"driver {driver:.0f} MiB, worker {worker:.0f} MiB",
            flush=True,
        )


def timed(work_dir: Path, command: Sequence[str], name: str, number: int) -> ProcessStats:
    """Statistics of one run into a new folder."""
    output = work_dir / f"out-{number}"
    words = [*command, str(output)] if name == "plain" else [*command, "-o", str(output)]
    stats = run(words)
    subprocess.run(["rm", "-rf", str(output)], check=True)
    return stats


def plain(tree: Path, fast: Path, output: Path) -> None:
    """Plain script: one line after the other, one file after the other."""
    tokenizer, profile = read_fast(fast), read_profile("libero")
    started = time.perf_counter()
    (output / "data").mkdir(parents=True)
    for path in sorted(tree.glob("data/episode_*.jsonl")):
        with path.open(encoding="utf-8") as file, (output / "data" / path.name).open("w") as out:
            parsed = map(json.loads, file)
            while batch := list(islice(parsed, BATCH)):
                chunks = profile.normalize([row["actions"] for row in batch])
                for row, ids in zip(batch, tokenizer.encode(chunks), strict=True):
                    out.write(json.dumps(built(tree, row, ids), ensure_ascii=False) + "\n")
    print(time.perf_counter() - started)


def built(tree: Path, row: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """A line, with the codes of each image read from their own file."""
    act = f"<Act>{' '.join(map(str, ids))}</Act>"
    segments = "".join(
        f"<Rec>{' '.join(map(str, codes_of_image))}</Rec>" for codes_of_image in codes(tree, row)
    )
    messages: list[dict[str, str]] = []
    for message in row["messages"]:
        text = message["content"].replace("\n\n", ". ", 1)
        text = text.replace("Based on the observation,", "Based on the images,")
        text = text.replace("If we execute", "Based on the images, If we execute", 1)
        text = text.replace("<Act><action></Act>", act)
        before, opened, behind = text.partition("<Rec>")
        text = before + segments + behind.partition("</Rec>")[2] if opened else text
        messages.append({"role": message["role"], "content": text})
    return {"messages": messages, "images": [str(tree / image) for image in row["images"]]}


def codes(tree: Path, row: dict[str, Any]) -> Iterator[list[int]]:
    """Codes of each future image."""
    for image in row["Recimage"]:
        name = Path(image.removeprefix("images/")).with_suffix(".json")
        with (tree / "TiToken" / name).open() as file:
            yield [values[0] for values in json.load(file)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", default="10,100")
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--plain-up-to", type=int, default=10)
    parser.add_argument("--folder")
    parser.add_argument("--plain", nargs=3, metavar=("TREE", "FAST", "OUT"))
    arguments = parser.parse_args()
    if arguments.plain:
        plain(*map(Path, arguments.plain))
    else:
        arguments.episodes = [int(part) for part in arguments.episodes.split(",")]
        main(arguments)
