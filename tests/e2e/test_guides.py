"""Pipelines of README, Getting started and the guides, each a script with less work per line."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.metaworld import skip_without_metaworld
from vlatool.cli import app
from vlatool.training.start import rank_arguments

ROOT = Path(__file__).parents[2]
# Pipelines: their page and the line that they begin with; here a line may come before it.
PIPELINES = {
    "readme": ("README.md", "vlatool sample folder demos ", ""),
    "started": ("docs/getting-started.md", "vlatool sample spartan raw ", ""),
    "lbm": ("docs/guides/lbm.md", "vlatool sample spartan raw-4 ", ""),
    "lerobot": (
        "docs/guides/lbm.md",
        "vlatool inspect my_dataset",
        "vlatool sample lerobot my_dataset --episodes 50",
    ),
    "future-vla": ("docs/guides/future-vla.md", "vlatool sample libero libero ", ""),
    "metaworld": ("docs/guides/metaworld.md", "vlatool sample lerobot raw-button ", ""),
}
# Files that the last lines of a pipeline leave.
LEFT = {
    "readme": ["data/frames.json"],
    "started": ["data.html", "runs/pick/latest.json", "runs/tuned/latest.json"],
    "lbm": ["runs/small/latest.json", "runs/smaller/latest.json"],
    "lerobot": ["runs/mine/latest.json"],
    "future-vla": [
        *("look/report.html", "look/future-image.png", "look/futures.mp4"),
        "exported/future_vla.json",
    ],
    "metaworld": ["runs/button/latest.json"],
}
# Commands that their predecessors name as the next ones.
NEXT = {
    "future-vla": [
        *("preprocess", "preprocess", "tokenizer train", "tokenizer eval"),
        *("build-dataset", "eval", "eval", "serve", "serve"),
    ]
}
# Commands of the pipelines that have --dry-run.
DRY_RUNS = {
    *("preprocess", "encode", "tokenizer train", "tokenizer fit-fast", "build-dataset"),
    *("compose", "train", "export"),
}
# Added to the lines that begin with these words; a budget is shortened in its own unit.
SHORTER = {
    "vlatool sample spartan": "--episodes 4 --frames 24",
    "vlatool sample folder": "--episodes 6",
    "vlatool sample libero": "--episodes 4",
    "vlatool sample lerobot my_dataset": "--frames 12",
    "vlatool sample lerobot raw-button": "--episodes 1 --size small",
    "vlatool tokenizer train": "--total-train-steps 2",
    "vlatool train --preset world-pick": "--total-train-steps 2",
    "vlatool train --preset metaworld": "--total-train-steps 2",
    "python examples/tiny_start.py": "--scenes 4 --steps 1 1 1 --batch-size 2",
    "vlatool train --preset future-vla-tiny": "--total-train-steps 2 "
    "--hparams.global_batch_size 4 --total-val-samples 4",
    "vlatool train --preset policy-tiny": "--total-train-steps 2 --num-checkpoints 1",
    "vlatool train --preset diffusion-policy-tiny": "--num-epochs 1 --hparams.global_batch_size 16",
    "vlatool train --preset diffusion-policy-bellpepper": "--num-checkpoints 2 "
    "--total-train-samples 8 --hparams.global_batch_size 4 --hparams.per_gpu_batch_size 2",
    "vlatool finetune --from runs/pick": "--total-train-steps 1",
    "vlatool finetune --from runs/small": "--total-train-samples 4 "
    "--hparams.global_batch_size 4 --hparams.per_gpu_batch_size 2",
    "vlatool eval open-loop": "--max-samples 3",
    "vlatool eval open-loop runs/vla": "--future-samples 1",
    "vlatool eval rollout": "--episodes 1 --max-steps 2",
}


def pipeline(page: str, start: str) -> list[str]:
    """Lines of the pipeline that begins with `start`, without those that replace others.

    `serve` would wait for robots; test_serve has it.
    """
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.S | re.M)
    blocks = [block for language, block in fenced if not language]
    block = next(text for text in blocks if f"{text.splitlines()[0]} ".startswith(start))
    return [line for line in block.splitlines() if not line.startswith(("#", "vlatool serve"))]


def shortened(line: str) -> list[str]:
    """Arguments of a line with less work."""
    more = [words for start, words in SHORTER.items() if line.startswith(start)]
    return shlex.split(" ".join([line, *more]))


def run(line: str) -> int:
    """Exit code of a line, in one process: test_guide_policy and test_nproc have several."""
    program, *arguments = shortened(line)
    if program == "python":
        command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
        done = subprocess.run(command, capture_output=True)
        sys.stderr.write(done.stderr.decode())
        return done.returncode
    return app.run(rank_arguments(arguments))


def next_commands(text: str) -> list[str]:
    """Commands that a line names as the next ones."""
    lines = re.findall(r"^next: (.*)$", text, re.M)
    return [command for line in lines for command in line.split(" && ")]


def name_of(command: str) -> str:
    """`tokenizer train` for `vlatool tokenizer train ...`."""
    words = command.split()[1:3]
    return " ".join(words[: 2 if words[0] == "tokenizer" else 1])


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_runs_as_one_script_and_its_next_lines_are_accepted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "metaworld":
        skip_without_metaworld()
    page, start, before = PIPELINES[name]
    named: list[str] = []
    for line in filter(None, [before, *pipeline(page, start)]):
        assert run(line) == 0, f"{line}\n{capsys.readouterr().err}"
        commands = next_commands(capsys.readouterr().out)
        named += map(name_of, commands)
        for command in commands[:1]:  # the second needs what the first writes
            if name_of(command) in DRY_RUNS:
                assert run(f"{command} --dry-run") == 0, f"{command}\n{capsys.readouterr().err}"
        capsys.readouterr()
    assert [path for path in LEFT[name] if not (tmp_path / path).is_file()] == []
    if name in NEXT:
        assert named == NEXT[name]


@pytest.mark.slow
def test_each_next_line_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed: list[str] = []
    lines = ["vlatool sample spartan raw"]
    while lines:
        line = lines.pop(0)
        typed.append(name_of(line))
        if typed[-1] == "serve":  # runs until it is stopped; test_serving starts it
            break
        assert run(line) == 0, f"{line}\n{capsys.readouterr().err}"
        lines += next_commands(capsys.readouterr().out)
    assert typed == ["sample", "preprocess", "train", "eval", "serve"]
