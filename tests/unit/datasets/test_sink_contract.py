"""Contract of `recordings/writing.py`, checked on a built-in sink and one of 60 lines."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import vlatool
from tests.builders.jsonl_sink import INDEX, Lines, ToySink
from tests.builders.sink_checks import check_sink
from tests.builders.spartan import spartan_task
from vlatool.datasets.lbm.writer import LbmSink
from vlatool.episode import Episode, EpisodeRef
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.plugins import FORMATS, SINKS
from vlatool.recordings.writing import Estimate, SinkSummary
from vlatool.workflows.preprocess import PreprocessConfig

WINDOWS = {"past_lowdim_steps": 0, "future_lowdim_steps": 1, "image_indices": [0]}
TOY = Path(__file__).parents[2] / "builders/jsonl_sink.py"


@pytest.mark.slow  # that of the toy is quicker, and test_preprocess_disturbed has its kills
def test_lbm_fulfills_the_sink_contract() -> None:
    check_sink(LbmSink, {**WINDOWS, "samples_per_shard": 16}, make_executor=SerialExecutor)


def test_toy_fulfills_the_sink_contract() -> None:
    check_sink(ToySink, {"every": 2})


class Forgetful(ToySink):
    """Sink that does not list its index."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        summary = super().finish(receipts, run)
        return replace(summary, files=summary.files[:-1])


class Greedy(ToySink):
    """Sink whose `owned` does not match all its files."""

    owned: ClassVar[Sequence[str]] = ["episodes/*.jsonl"]


class Careless(ToySink):
    """Sink that does not count samples."""

    def __init__(self, config: Any, setup: Any) -> None:
        super().__init__(config, setup)
        self.work = Uncounted(self.work.output, self.work.every)


class Uncounted(Lines):
    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        return replace(super().__call__(ref, episode), counts={"frames": episode.num_frames})


class Local(ToySink):
    """Sink whose work cannot be pickled."""

    def __init__(self, config: Any, setup: Any) -> None:
        super().__init__(config, setup)
        lines = self.work
        self.work = lambda ref, episode: lines(ref, episode)


class Eager(ToySink):
    """Sink whose estimate writes."""

    def estimate(self) -> Estimate:
        (self._setup.output / "episodes").mkdir(parents=True)
        return super().estimate()


class Torn(ToySink):
    """Sink that leaves a partial file of a failed episode."""

    def __init__(self, config: Any, setup: Any) -> None:
        super().__init__(config, setup)
        self.work = Leaving(self.work.output, self.work.every)


class Leaving(Lines):
    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        path = self.output / f"episodes/{ref.id}.part.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        receipt = super().__call__(ref, episode)
        path.unlink()
        return receipt


class Changing(ToySink):
    """Sink whose output depends on the number of resumed episodes."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        first = next(receipts)
        files = [file for receipt in (first, *receipts) for file in receipt.files]
        self._every += run.resumed
        return super().finish(iter([replace(first, files=tuple(files[run.resumed :]))]), run)


class Lossy(ToySink):
    """Sink that leaves out the action fields that it does not store."""

    def __init__(self, config: Any, setup: Any) -> None:
        super().__init__(config, setup)
        self.action_fields = tuple(
            name for name in setup.survey.action_fields if name in self.fields
        )


class Empty(ToySink):
    """Sink that stores zeros in place of one action field."""

    def __init__(self, config: Any, setup: Any) -> None:
        super().__init__(config, setup)
        self.work = Zeros(self.work.output, self.work.every)


class Zeros(Lines):
    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        lowdim = {name: rows.copy() for name, rows in episode.lowdim.items()}
        lowdim["robot__action__grippers__left::panda_hand"][:] = 0
        return super().__call__(ref, replace(episode, lowdim=lowdim))


@pytest.mark.parametrize(
    ("sink", "sentence"),
    [
        (Forgetful, "the files that `finish` returns"),
        (Greedy, "`owned` does not match"),
        (Careless, "receipts count"),
        (Local, "work cannot be pickled"),
        (Eager, "`estimate` must not write"),
        (Torn, "the files that `finish` returns"),
        (Changing, "files differ from an undisturbed run"),
        (Lossy, "stores 2 of the 20 values of an action"),
        (Empty, "does not store the values of 'robot__action__grippers"),
    ],
)
def test_violation_of_the_sink_contract_is_reported(sink: type[ToySink], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_sink(sink, make_executor=SerialExecutor)


def built_in(registry: Any) -> list[str]:
    return [entry.name for entry in registry.entries() if entry.origin == "vlatool"]


@pytest.mark.parametrize("sink", built_in(SINKS))
@pytest.mark.parametrize("source", built_in(FORMATS))
def test_no_key_is_owned_twice_by_root_format_and_sink(source: str, sink: str) -> None:
    root = {*PreprocessConfig.model_fields, *PreprocessConfig.NAMES} - {"type"}
    sections = [FORMATS.get(source).Config.model_fields, SINKS.get(sink).Config.model_fields]
    of_format, of_sink = ({*fields} - {"type"} for fields in sections)

    assert [root & of_format, root & of_sink, of_format & of_sink] == [set(), set(), set()]


@pytest.fixture(scope="module")
def contributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source tree with the toy added as in CONTRIBUTING: a file, and a row in the table."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(Path(vlatool.__file__).parent, root / "vlatool")
    shutil.copy(TOY, root / "vlatool/formats/toy.py")
    plugins = root / "vlatool/plugins.py"
    table = '"sink",\n    {'
    text = plugins.read_text()
    assert table in text
    plugins.write_text(text.replace(table, f'{table}"toy": "vlatool.formats.toy:ToySink", '))
    return root


def command(root: Path, *words: str) -> dict[str, Any]:
    """Result of a command of that tree."""
    done = subprocess.run(
        [sys.executable, "-m", "vlatool", "--json", *words],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_contributed_sink_is_chosen_by_its_name(contributed: Path, tmp_path: Path) -> None:
    raw = spartan_task(tmp_path / "raw", 2, 5)
    words = ["preprocess", "spartan", str(raw), "-o", str(tmp_path / "out"), "--workers", "2"]

    answer = command(contributed, *words, "--sink", "toy", "--sink.every", "2")

    assert answer["samples"] == 6
    assert sorted(json.loads((tmp_path / "out" / INDEX).read_text()).values()) == [3, 3]
