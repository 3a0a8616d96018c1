"""Checks of a sink in complete, killed and failing runs.

The contract is `recordings.writing.Sink`.
"""

import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np

from tests.builders.world_recordings import WRITERS, record_world
from vlatool.config.resolve import config_of
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource
from vlatool.errors import DataError, EnvironmentProblem, UsageError
from vlatool.jobs.command import JobConfig
from vlatool.jobs.executor import Executor, ProcessExecutor, SerialExecutor
from vlatool.jobs.files import NAME as LIST
from vlatool.jobs.files import belongs_in_list, contains_only, output_files, remove_owned
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.jobs.run import run_job
from vlatool.media.images import encode_png
from vlatool.plugins import FORMATS
from vlatool.recordings.check import CheckOptions, check_files
from vlatool.recordings.writing import MakeSink, SinkConfig, SinkSetup, Work
from vlatool.storage.atomic import write_bytes
from vlatool.testing.readers import config_section
from vlatool.transforms.relative import stored_from
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessJob, preprocess
from vlatool.workflows.sample import Layout, SampleConfig, sample

_EPISODES = 3
_FRAMES = 6


def check_sink(
    sink_class: Any,
    config: Mapping[str, Any] | None = None,
    *,
    make_executor: Callable[[], Executor] | None = None,
) -> None:
    """Checks the contract of a sink on three small episodes.

    Its output must be complete, owned by the sink, and equal after kills and with any executor. For
    each built-in format, it must store every value of an action, or none, or refuse the episodes.
    Other values of an action must change the output.

    Args:
        sink_class: The class that the table of sinks names.
        config: Config keys of the sink that differ from the defaults. The episodes have two
            cameras of 64 x 64 pixels and 6 frames each; a sink may need smaller windows.
        make_executor: Makes the executor of one of the runs; None: two processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        checks = SinkChecks(sink_class, config_section(sink_class, config), Path(folder))
        outcomes = checks.check_quiet_run()
        for count in range(outcomes + 1):
            checks.check_killed_run(f"killed after {count}", SerialExecutor, count)
        checks.check_killed_run("killed elsewhere", make_executor or partial(ProcessExecutor, 2), 1)
        checks.check_failed_episode()
        checks.check_owned()
        checks.check_formats()


class _SimulatedKill(BaseException):
    """Stands for a kill of the run."""


class _KillingExecutor:
    """An executor that kills the run after a number of outcomes; -1: never."""

    def __init__(self, executor: Executor, outcomes: int = -1) -> None:
        self._executor = executor
        self._last = outcomes
        self.count = 0

    def __enter__(self) -> Self:
        self._executor.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._executor.__exit__(*exc)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for outcome in self._executor.map(function, items):
            if self.count == self._last:
                raise _SimulatedKill
            self.count += 1
            yield outcome


class _PatchedSink:
    """A sink with some attributes replaced."""

    def __init__(self, sink: Any, **changes: Any) -> None:
        self._sink = sink
        vars(self).update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)


@dataclass(frozen=True)
class _DamagingWork:
    """Work of a sink in which the second episode cannot be read to its end; picklable."""

    work: Work
    part: str

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        if ref.id.endswith("1"):
            cameras = {name: _DamagedCamera(camera) for name, camera in episode.cameras.items()}
            damaged = {"cameras": cameras, "lowdim": _DamagedFields(episode.lowdim)}[self.part]
            episode = replace(episode, **{self.part: damaged})
        return self.work(ref, episode)


class _ComparingWork:
    """Work of a sink that also writes the episode with other values of one dimension at a time.

    `unstored` has the field and the dimensions of each change that leaves the output as it is.
    """

    def __init__(self, work: Work, dimensions: Sequence[tuple[str, slice]]) -> None:
        self._work = work
        self._dimensions = dimensions
        self.unstored: list[tuple[str, slice]] = []

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        expected = _content(self._work(ref, episode))
        for field, dimensions in self._dimensions:
            rows = episode.lowdim[field].copy()
            values = rows[:, dimensions]
            values[:] = -values - np.arange(len(rows), dtype=rows.dtype)[:, None]
            changed = replace(episode, lowdim={**episode.lowdim, field: rows})
            if _content(self._work(ref, changed)) == expected:
                self.unstored.append((field, dimensions))
        return self._work(ref, episode)


def _content(receipt: Receipt) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
    """What a receipt says about an output: its row, with the digests of files, and its arrays."""
    arrays = {name: values.tobytes() for name, values in receipt.arrays.items()}
    return receipt.row(), arrays


class _DamagedCamera(FrameSource):
    """A camera with a last image that cannot be read."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @property
    def size(self) -> tuple[int, int]:
        return self._source.size

    def read(self, indices: Sequence[int]) -> Array:
        if len(self) - 1 in indices:
            raise DataError("the last image is damaged")
        return self._source.read(indices)


class _DamagedFields(Mapping[str, Array]):
    """Fields, the last of which cannot be read."""

    def __init__(self, fields: Mapping[str, Array]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> Array:
        if name == [*self][-1]:
            raise DataError("the last field is damaged")
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def _source(format_name: str, folder: Path) -> Path:
    """A source with one episode of a built-in format."""
    source = folder / format_name
    if source.exists():
        return source
    if format_name in get_args(Layout):
        tree = {"layout": format_name, "output": str(source), "episodes": 1, "frames": _FRAMES}
        sample(SampleConfig.model_validate({**tree, "workers": 1}))
    elif format_name in WRITERS:
        record_world(format_name, source, 1, _FRAMES)
    elif format_name == "images":
        png = encode_png(np.zeros((64, 64, 3), np.uint8))
        for frame in range(_FRAMES):
            write_bytes(source / f"episode_000000/{frame}.png", png)
    else:
        is_frames = format_name == "frames"
        first = "spartan" if is_frames else "images"
        # Windows that fit the short episode.
        windows = {"past_lowdim_steps": 0, "future_lowdim_steps": 1} if is_frames else {}
        tree = {"format": first, "sources": [str(_source(first, folder))]}
        tree |= {"output": str(source), "workers": 1, "sink": {"type": format_name, **windows}}
        preprocess(config_of(PreprocessConfig, tree))
    return source


@dataclass(frozen=True)
class SinkChecks:
    """Contract checks of a sink with runs over the folder `raw`, each with its own output."""

    make: MakeSink
    section: SinkConfig
    folder: Path

    def __post_init__(self) -> None:
        raw = {"layout": "spartan", "episodes": _EPISODES, "frames": _FRAMES, "workers": 1}
        sample(SampleConfig.model_validate({**raw, "output": str(self.folder / "raw")}))

    def job(self, name: str, **changes: Callable[[Any], Any]) -> PreprocessJob:
        """A job whose sink has attributes replaced; `changes` make them from the sink."""

        def make(section: Any, setup: SinkSetup) -> Any:
            sink = self.make(section, setup)
            return _PatchedSink(sink, **{key: change(sink) for key, change in changes.items()})

        return self._job("spartan", self.folder / "raw", name, make)

    def _job(self, format_name: str, source: Path, name: str, make: MakeSink) -> PreprocessJob:
        output = str(self.folder / name)
        config = PreprocessConfig(format=format_name, sources=[str(source)], output=output)
        return PreprocessJob(config.model_copy(update={"sink": self.section}), make)

    def contents(self, name: str) -> dict[str, bytes]:
        """Content of the files that must be equal after kills and with any executor."""
        output = self.folder / name
        volatile = self.job(name).spec.volatile
        names = [file.name for file in output_files(output) if belongs_in_list(file.name, volatile)]
        return {file_name: (output / file_name).read_bytes() for file_name in (*names, LIST)}

    def check_quiet_run(self) -> int:
        """Checks an undisturbed run and its repetition; returns the number of outcomes."""
        job = self.job("quiet")
        executor = _KillingExecutor(SerialExecutor())
        try:
            pickle.dumps(job.spec.work)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(f"work cannot be pickled: {error}") from error
        assert not job.spec.output.exists(), "`__init__` of the sink must not write files"
        job.result(run_job(job, executor, options=JobConfig(dry_run=True)))
        assert not job.spec.output.exists(), "`estimate` must not write files"
        run = run_job(job, executor)
        assert not run.failures, f"an episode fails: {run.failures}"
        counts = run.sums
        samples = job.result(run).samples
        expected = {"frames": _EPISODES * _FRAMES, "samples": samples}
        assert counts == {**counts, **expected}, (
            f"receipts count {counts}, but must count {expected}"
        )
        self._check_files(job)
        again = run_job(self.job("quiet"), SerialExecutor())
        assert again.status == "already complete", (
            f"the repeated run is {again.status}, not already complete"
        )
        return executor.count

    def check_killed_run(
        self, name: str, make_executor: Callable[[], Executor], outcomes: int
    ) -> None:
        """Checks a run that is killed, at the latest at the end of `finish`, and then resumed."""

        def finish_and_die(sink: Any) -> Callable[..., None]:
            def finish(receipts: Iterator[Receipt], run: JobRun) -> None:
                sink.finish(receipts, run)
                raise _SimulatedKill

            return finish

        with suppress(_SimulatedKill), _KillingExecutor(make_executor(), outcomes) as executor:
            run_job(self.job(name, finish=finish_and_die), executor)
        with make_executor() as executor:
            run = run_job(self.job(name), executor)
        expected = min(outcomes, _EPISODES)
        assert run.resumed >= expected, (
            f"{name}: {run.resumed} episodes are resumed, but must be {expected}"
        )
        self._check_equal(name)

    def check_failed_episode(self) -> None:
        """Checks runs in which the second episode fails at its last frame or last field."""
        failed = [self._failures(part) for part in ("cameras", "lowdim")]
        assert max(failed) == 1, "an episode whose last field is damaged must fail, but does not"

    def _failures(self, part: str) -> int:
        """Number of episodes that fail if `part` of one is damaged; then repairs and resumes."""
        job = self.job(part, work=lambda sink: _DamagingWork(sink.work, part))
        run = run_job(job, SerialExecutor())
        self._check_files(job)
        run_job(self.job(part), SerialExecutor())
        self._check_equal(part)
        return len(run.failures)

    def check_owned(self) -> None:
        """Checks that the patterns `owned` match all files of the sink."""
        spec = self.job("quiet").spec
        files = [file.name for file in output_files(spec.output)]
        assert contains_only(spec.output, spec.owned), f"`owned` does not match all files {files}"
        remove_owned(spec.output, spec.owned)
        left = [file.name for file in output_files(spec.output)]
        assert not left, f"`owned` does not match {left}: `**` must be a path component of its own"

    def check_formats(self) -> None:
        """Checks the stored actions of an episode of every built-in format that is installed."""
        for format_name in (entry.name for entry in FORMATS.entries() if entry.origin == "vlatool"):
            with suppress(EnvironmentProblem):
                self._check_actions(format_name, _source(format_name, self.folder / "formats"))

    def _check_actions(self, format_name: str, source: Path) -> None:
        made: list[tuple[Any, SinkSetup, _ComparingWork]] = []

        def make(section: Any, setup: SinkSetup) -> Any:
            sink = self.make(section, setup)
            comparing = _ComparingWork(sink.work, self._changes(format_name, sink, setup))
            made.append((sink, setup, comparing))
            return _PatchedSink(sink, work=comparing)

        try:
            job = self._job(format_name, source, f"from-{format_name}", make)
        except (DataError, UsageError):
            return  # refused by name
        failures = run_job(job, SerialExecutor()).failures
        assert not failures, f"an episode of the format {format_name} fails: {failures}"
        sink, setup, comparing = made[-1]
        unknown = [name for name in sink.action_fields if name not in sink.fields]
        assert not unknown, f"`action_fields` has {unknown}, which are not in `fields`"
        known = setup.survey.fields
        recorded = sum(known[stored_from(name, known)].width for name in setup.survey.action_fields)
        stored = sum(sink.fields[name] for name in sink.action_fields)
        assert stored in (0, recorded), (
            f"stores {stored} of the {recorded} values of an action of the format {format_name}"
        )
        for field, dimensions in comparing.unstored:
            raise AssertionError(
                f"does not store the values of {field!r} {dimensions} of the format {format_name}"
            )

    def _changes(
        self, format_name: str, sink: Any, setup: SinkSetup
    ) -> Sequence[tuple[str, slice]]:
        """Fields and dimensions of an action whose values must change the output."""
        # A sink may copy rows of its own format from the files of the reference.
        is_own = self.section.type in (format_name, FORMATS.get(format_name).base_format)
        if is_own or not sink.action_fields:
            return []
        known = setup.survey.fields
        rotations = {group.rotation_key for group in setup.survey.pose_groups}
        changes: list[tuple[str, slice]] = []
        for name in setup.survey.action_fields:
            field = stored_from(name, known)
            if field in rotations:
                # Three of its six values are free: a sink may store the rotation.
                changes.append((field, slice(None)))
                continue
            for index in range(known[field].width):
                changes.append((field, slice(index, index + 1)))
        return changes

    def _check_equal(self, name: str) -> None:
        files = self.contents(name)
        expected = self.contents("quiet")
        different = [key for key in files | expected if files.get(key) != expected.get(key)]
        assert not different, f"{name}: files differ from an undisturbed run: {different}"

    def _check_files(self, job: PreprocessJob) -> None:
        """Checks that the file list matches the files that were written."""
        messages = [finding.message for finding in check_files(job.spec.output, CheckOptions())]
        assert not messages, (
            f"the files that `finish` returns do not match the files on disk: {messages}"
        )
