"""Damaged files of all kinds: correct exit code, two lines of error, no process left.

`VLATOOL_MUTATIONS=5000` tries more than the default few.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.encoding import encoded, image_tree, write_tokenizer
from tests.builders.forks import Forks, Outcome
from tests.builders.lerobot import lerobot_dataset
from tests.builders.mutations import mutate_file
from tests.builders.preprocessing import has_message_and_hint
from tests.builders.spartan import spartan_task
from tests.builders.training import tiny_arguments

CASES = int(os.environ.get("VLATOOL_MUTATIONS", "8"))  # per damaged input
SEED = int(os.environ.get("VLATOOL_MUTATIONS_SEED", "0"))
OURS_TO_TELL = {0, 2, 3, 4, 5, 6}
WINDOW = ("--past-lowdim-steps", "1", "--future-lowdim-steps", "2")


def preprocess(source: Path, output: Path) -> list[str]:
    words = ["preprocess", source.name, source, "-o", output, *WINDOW, "--workers", "1"]
    return [str(word) for word in words]


def problem(outcome: Outcome) -> str:
    """Description of wrong behavior of a command; empty if there is none."""
    if outcome.code not in OURS_TO_TELL:
        return f"exit {outcome.code}: {outcome.stderr[-600:]}"
    if outcome.left:
        return f"{outcome.left} processes left"
    if outcome.code and "whole" not in outcome.document:  # of `verify`
        error = outcome.document["error"]
        return "" if has_message_and_hint(error) else f"not two lines: {error}"
    return ""


def problems(
    thing: Path,
    warm: Forks,
    tmp_path: Path,
    commands: Callable[[Path], list[list[str]]],
    *,
    step: int = 1,
) -> list[str]:
    """Wrong behavior of the commands on copies with a damaged file, in every `step`th case."""
    results: list[str] = []
    for case in range(SEED, SEED + CASES, step):
        rng = random.Random(case)
        copy = tmp_path / str(case) / thing.name
        shutil.copytree(thing, copy)
        damaged = mutate_file(copy, rng).relative_to(copy)
        words = rng.choice(commands(copy))
        message = problem(warm.run([*words, "--json", "-q"]))
        if message:
            results.append(f"case {case}, {damaged}, {' '.join(words[:2])}: {message}")
        shutil.rmtree(copy.parent)
    return results


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("spartan", spartan_task),
        ("lerobot", lerobot_dataset),
    ],
)
@pytest.mark.slow
def test_damaged_source_is_reported(
    name: str, build: Callable[[Path], Path], warm: Forks, tmp_path: Path
) -> None:
    source = build(tmp_path / "whole" / name)

    def commands(copy: Path) -> list[list[str]]:
        output = copy.parent / "out"
        return [["verify", str(copy)], ["inspect", str(copy)], preprocess(copy, output)]

    assert problems(source, warm, tmp_path, commands) == []


@pytest.mark.slow  # test_verify has each defect
def test_damaged_output_is_reported(data: Path, warm: Forks, tmp_path: Path) -> None:
    def commands(copy: Path) -> list[list[str]]:
        raw = str(data.parent / "raw")
        again = ["preprocess", "spartan", raw, "-o", str(copy), "--workers", "1"]
        train = [*tiny_arguments(copy, copy.parent / "run", total_train_steps=1)]
        return [["verify", str(copy)], ["inspect", str(copy)], again, train]

    assert problems(data, warm, tmp_path, commands) == []


def test_damaged_statistics_are_reported(data: Path, warm: Forks, tmp_path: Path) -> None:
    published = tmp_path / "whole" / "published"
    shutil.copytree(data / "shards", published)
    (published / "stats.json").unlink()
    compute = ["stats", "compute", "--workers", "1"]
    assert warm.run([*compute, str(published), "--json", "-q"]).code == 0

    def commands(copy: Path) -> list[list[str]]:
        again = [*compute, str(copy)]
        return [["verify", str(copy)], again, [*again, "--overwrite"], [*again, "--dry-run"]]

    assert problems(published, warm, tmp_path, commands) == []


@pytest.mark.slow  # so do test_policy_export and test_verify_samples
def test_damaged_export_and_codes_are_reported(warm: Forks, tmp_path: Path) -> None:
    (whole := tmp_path / "whole").mkdir()
    source = write_tokenizer(whole / "source")
    exported, codes, images = whole / "exported", whole / "codes", whole / "images"
    export = ["tokenizer", "export", source, "-o"]
    assert warm.run([*export, exported, "--json"]).code == 0
    encoded(image_tree(whole / "frames", 1), source, codes, layout="packed")
    decode = ["decode", str(codes), "--tokenizer"]
    assert warm.run([*decode, exported, "-o", images, "--json"]).code == 0

    def of_export(copy: Path) -> list[list[str]]:
        out = str(copy.parent / "out")
        reading = [["verify", str(copy)], ["inspect", str(copy)], [*decode, str(copy), "-o", out]]
        return [*reading, [*export, str(copy)], ["tokenizer", "export", str(copy), "-o", out]]

    def of_codes(copy: Path) -> list[list[str]]:
        again = ["decode", str(copy), "--tokenizer", str(exported), "-o", str(copy.parent / "out")]
        return [["verify", str(copy)], again]

    def of_images(copy: Path) -> list[list[str]]:
        return [["verify", str(copy)], [*decode, str(exported), "-o", str(copy)]]

    assert problems(exported, warm, tmp_path / "export", of_export, step=3) == []
    assert problems(codes, warm, tmp_path / "codes", of_codes, step=3) == []
    assert problems(images, warm, tmp_path / "images", of_images, step=3) == []


@pytest.mark.slow  # test_verify_run has each defect
def test_damaged_run_is_reported(
    trained_policy: Path, data: Path, warm: Forks, tmp_path: Path
) -> None:
    def commands(copy: Path) -> list[list[str]]:
        on = tiny_arguments(data, copy, total_train_steps=7)
        evaluate = ["eval", "open-loop", str(copy), str(data), "--max-samples", "2"]
        return [["verify", str(copy)], ["inspect", str(copy)], evaluate, on]

    assert problems(trained_policy, warm, tmp_path, commands) == []
