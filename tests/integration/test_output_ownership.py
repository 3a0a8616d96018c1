"""Ownership of outputs: no command replaces files of another command, run or user."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.jobs import ToyJob, Write, run_toy
from tests.builders.jsonl_sink import ToySink
from tests.builders.preprocessing import FRAMES, contents, options_for, run
from tests.builders.spartan import spartan_task
from tests.builders.training import tiny_config
from vlatool.checkpoints.layout import RunDir
from vlatool.config.resolve import config_of, load_config
from vlatool.errors import BugError, DataError, StorageError, UsageError
from vlatool.evaluation.config import OpenLoopConfig, RolloutConfig
from vlatool.events import NullProgress, NullReporter
from vlatool.jobs.command import JobConfig
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.files import read_file_list
from vlatool.jobs.record import read_record
from vlatool.jobs.run import run_job
from vlatool.workflows.demo import DemoConfig, demo
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessJob
from vlatool.workflows.resolve_config import resolve_config
from vlatool.workflows.rollout import rollout
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.stats import StatsMergeConfig, stats_merge
from vlatool.workflows.train import train
from vlatool.world.registration import ENVIRONMENT

WORDS = "ant cat"


class Interrupting(NullReporter, NullProgress):
    """Reporter that raises KeyboardInterrupt after the first episode."""

    def progress(self, name: str, total: int | None, unit: str) -> Any:
        return self

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def trained(trained_policy: Path) -> Path:
    return trained_policy


def is_replaced(output: Path, command: Callable[[], object]) -> bool:
    """Runs a command that must fail; True if it changed the output of another command."""
    before = read_record(output), contents(output)
    with fails("usage.output_exists"):
        command()
    return (read_record(output), contents(output)) != before


def test_training_does_not_replace_a_data_set_nor_data_their_own_source(
    data: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(data, tmp_path / "data"))
    config = tiny_config(data, output, total_train_steps=1, overwrite=True)
    assert not is_replaced(output, lambda: train(config))

    raw = tmp_path / "raw"
    sample(SampleConfig(layout="spartan", output=str(raw), episodes=1, frames=4, workers=1))
    assert not is_replaced(raw, lambda: run(raw, raw, overwrite=True))


def test_run_killed_during_its_start_writes_its_files_again(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", total_train_steps=1)
    train(config)
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "run/config.yaml").unlink()

    train(config)

    assert RunDir(tmp_path / "run").read_config() is not None


def test_repaired_sample_keeps_other_recordings(tmp_path: Path) -> None:
    config = SampleConfig(layout="spartan", output=str(tmp_path), episodes=2, frames=4, workers=1)
    sample(config)
    (first,) = tmp_path.rglob("episode_0")
    shutil.copytree(first, first.with_name("episode_77"))
    shutil.rmtree(first.with_name("episode_1"))

    sample(config)

    assert len(list(tmp_path.rglob("metadata.yaml"))) == 3


def test_other_sink_removes_the_files_of_the_first(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES)
    output = tmp_path / "out"
    tree = options_for(source, output)
    config = config_of(PreprocessConfig, tree)
    toy = PreprocessJob(config, make_sink=lambda _, setup: ToySink(ToySink.Config(), setup))
    run_job(toy, SerialExecutor())
    (output / "notes.txt").write_text("mine")

    run(source, output, overwrite=True, seed=7)

    listed = {entry.path for entry in read_file_list(output) or ()}
    unlisted = {"notes.txt", "shards/processing_metadata.json"}
    present = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert {name for name in present if not name.startswith(".vlatool/")} == listed | unlisted


def test_files_left_by_a_killed_change_of_the_sink_are_removed_by_the_next_run(
    tmp_path: Path,
) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES)
    output = tmp_path / "out"
    run(source, output)
    expected = contents(output)
    (output / "toy.json").write_text("of the earlier sink")
    record = read_record(output)
    assert record is not None
    # The record while `claim_output` removes the files of the earlier sink.
    replace(record, owned=(*record.owned, "toy.json"), complete=False).save(output)

    run(source, output)

    assert contents(output) == expected


def test_report_of_earlier_rollouts_stays_until_it_is_replaced(
    trained: Path, tmp_path: Path
) -> None:
    config = RolloutConfig(
        checkpoint=str(trained), env=ENVIRONMENT, output=str(tmp_path), episodes=1, max_steps=1
    )
    rollout(config)

    with pytest.raises(KeyboardInterrupt):
        rollout(config.model_copy(update={"seed": 7}), reporter=Interrupting())

    assert (tmp_path / "report.json").exists()


@pytest.mark.parametrize("stop", [0, -20])
def test_output_with_a_damaged_file_list_is_repaired_and_partial_files_are_removed(
    tmp_path: Path, stop: int
) -> None:
    run_toy(ToyJob(tmp_path, WORDS))
    files = tmp_path / ".vlatool/files.jsonl"
    files.write_bytes(files.read_bytes()[:stop])
    (tmp_path / "words/cat").unlink()
    leftover = tmp_path / ".vlatool/.files.jsonl.77-a.partial"
    leftover.touch()

    run_toy(ToyJob(tmp_path, WORDS))

    assert (tmp_path / "words/cat").read_text() == "cat"
    assert not leftover.exists()


def test_output_inside_the_record_folder_of_another_and_an_unreadable_record_are_errors(
    tmp_path: Path,
) -> None:
    run_toy(ToyJob(tmp_path, WORDS))
    with pytest.raises(UsageError):
        run_toy(ToyJob(tmp_path / ".vlatool/inner", WORDS))

    (tmp_path / ".vlatool/run.json").unlink()
    (tmp_path / ".vlatool/run.json").mkdir()
    with pytest.raises(StorageError):
        run_toy(ToyJob(tmp_path, WORDS))


def test_item_whose_error_has_details_that_are_not_json_fails_alone_and_too_many_bugs_are_an_error(
    tmp_path: Path,
) -> None:
    error = DataError("odd", code="data.odd", details={"path": tmp_path, "row": np.int64(3)})
    run_of = run_toy(ToyJob(tmp_path, WORDS, Write(tmp_path, bad={"cat": error})))
    assert [failure["details"] for failure in run_of.failures] == [
        {"path": str(tmp_path), "row": "3"}
    ]
    assert (tmp_path / "words/ant").exists()

    bug = Write(tmp_path / "bug", bad={"cat": ZeroDivisionError("x")})
    with pytest.raises(BugError):
        run_job(
            ToyJob(tmp_path / "bug", WORDS, bug),
            SerialExecutor(),
            options=JobConfig(max_failures=0),
        )


def test_redaction_shortens_paths_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "sim/raw"
    job: Any = ToyJob(tmp_path / "out", WORDS, locations=(tmp_path / "out", source))
    run_of = run_toy(job)

    text = f"{source}/a and /data{tmp_path}/sim/bc"
    assert run_of.redact_paths(text) == f"raw/a and /data{tmp_path}/sim/bc"
    json.dumps(run_of.redact_paths([text]))


def foreign_files(folder: Path, *names: str) -> dict[str, bytes]:
    """Writes files that are not of vlatool, some like partial files; returns their contents."""
    for name in (*names, "raw/.model.17-ab.partial", "notes.txt", ".draft.3.partial"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return contents(folder)


def evaluations(folder: Path, data: Path, trained: Path) -> dict[str, Callable[[], object]]:
    checkpoint, output = str(trained), str(folder)
    closed = RolloutConfig(checkpoint=checkpoint, env=ENVIRONMENT, output=output, episodes=1)
    opened = OpenLoopConfig(checkpoint=checkpoint, data=str(data), output=output, max_samples=1)
    return {
        "eval rollout": lambda: rollout(closed),
        "eval open-loop": lambda: open_loop(opened),
    }


@pytest.mark.parametrize("command", ["eval rollout", "eval open-loop"])
def test_evaluation_does_not_touch_foreign_files_or_a_report_without_a_record(
    data: Path, trained: Path, tmp_path: Path, command: str
) -> None:
    for name, make in {
        "none": lambda folder: foreign_files(folder),
        "report": lambda folder: foreign_files(folder, "report.json"),
        "alone": lambda folder: (folder / "report.json").write_text("mine"),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        make(folder)
        before = contents(folder)
        assert not is_replaced(folder, evaluations(folder, data, trained)[command])
        assert contents(folder) == before


def test_open_loop_rewrites_its_own_report(data: Path, trained: Path, tmp_path: Path) -> None:
    evaluate = evaluations(tmp_path / "report", data, trained)["eval open-loop"]
    evaluate()
    (tmp_path / "report/report.json").write_text("damaged")

    evaluate()

    record = read_record(tmp_path / "report")
    assert record is not None
    assert record.complete
    assert json.loads((tmp_path / "report/report.json").read_text())["samples"] == 1


def test_demo_data_and_samples_do_not_touch_foreign_files(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES)
    mine = tmp_path / "mine"
    before = foreign_files(mine)
    config = SampleConfig(layout="spartan", output=str(mine), episodes=1, frames=4)
    for command in (
        lambda: sample(config),
        lambda: run(source, mine),
        lambda: run(source, mine, overwrite=True),
        lambda: demo(DemoConfig(output=str(mine))),
    ):
        assert not is_replaced(mine, command)
    assert contents(mine) == before


def test_merged_statistics_do_not_replace_a_foreign_file_or_those_of_a_run(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    target = tmp_path / "stats.json"
    config = StatsMergeConfig(sources=[str(data), str(data)], output=str(target))
    numbers = '{"observation.state": {"mean": [0.0], "std": [1.0]}}'
    for content in ("{}", '{"a": 1}', "[]", numbers, "notes"):
        target.write_text(content)
        assert not is_replaced(tmp_path, lambda: stats_merge(config))
        assert target.read_text() == content

    output = Path(shutil.copytree(trained, tmp_path / "run"))
    own = config.model_copy(update={"output": str(output / "stats.json")})
    assert not is_replaced(output, lambda: stats_merge(own))


def test_resolved_configuration_replaces_an_earlier_one_and_no_foreign_file(
    tmp_path: Path,
) -> None:
    path, resolved = tmp_path / "demo.yaml", load_config(DemoConfig)
    for content in ("mine", "a: [", "seed: 3\n", ""):
        path.write_text(content)
        assert not is_replaced(tmp_path, lambda: resolve_config(resolved, output=str(path)))
        assert path.read_text() == content

    path.unlink()
    for _ in range(2):
        resolve_config(resolved, output=str(path))
    assert "rollouts: 50" in path.read_text()
