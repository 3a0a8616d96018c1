"""Runs of a sink in the real loop, quiet and disturbed, of which `testing.check_sink` is made."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from vlatool.episode import Array, Episode, EpisodeRef, FrameSource
from vlatool.errors import DataError
from vlatool.jobs.files import NAME as LIST
from vlatool.jobs.files import contains_only, is_listed, output_files, remove_owned
from vlatool.jobs.job import JobOptions, JobRun
from vlatool.jobs.journal import Receipt
from vlatool.jobs.run import run_job
from vlatool.parallel.executor import Executor, SerialExecutor
from vlatool.sinks.base import MakeSink, SinkConfig, SinkSetup, Work
from vlatool.verification.check import CheckOptions
from vlatool.verification.output import check_files
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessJob
from vlatool.workflows.sample import SampleConfig, sample

_EPISODES, _FRAMES = 3, 6


class _SimulatedKill(BaseException):
    """The end of a run from outside."""


class _KillingExecutor:
    """An executor whose run is killed before it learns of one more outcome."""

    def __init__(self, executor: Executor, outcomes: int = -1) -> None:
        self._executor, self._last = executor, outcomes
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


class _Changed:
    """A sink of which some attributes are others."""

    def __init__(self, sink: Any, **changes: Any) -> None:
        self._sink = sink
        vars(self).update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)


@dataclass(frozen=True)
class _Damaging:
    """Hands a sink a second episode that cannot be read to its end; picklable."""

    work: Work
    part: str

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        if ref.id.endswith("1"):
            cameras = {name: _DamagedCamera(one) for name, one in episode.cameras.items()}
            damaged = {"cameras": cameras, "lowdim": _DamagedFields(episode.lowdim)}[self.part]
            episode = replace(episode, **{self.part: damaged})
        return self.work(ref, episode)


class _DamagedCamera:
    """Pictures of which the last cannot be read."""

    def __init__(self, source: FrameSource) -> None:
        self._source, self.size = source, source.size

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> Array:
        if len(self) - 1 in indices:
            raise DataError("the last picture is damaged")
        return self._source.read(indices)


class _DamagedFields(Mapping[str, Array]):
    """Fields of which the last cannot be read."""

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


@dataclass(frozen=True)
class SinkChecks:
    """Runs of a sink over `raw`, each with an output of its own in `folder`."""

    make: MakeSink
    section: SinkConfig
    folder: Path

    def __post_init__(self) -> None:
        raw = {"layout": "spartan", "episodes": _EPISODES, "frames": _FRAMES, "workers": 1}
        sample(SampleConfig.model_validate({**raw, "output": str(self.folder / "raw")}))

    def job(self, name: str, **changes: Callable[[Any], Any]) -> PreprocessJob:
        """One whose sink has other attributes, made of the sink."""

        def make(section: Any, setup: SinkSetup) -> Any:
            sink = self.make(section, setup)
            return _Changed(sink, **{key: change(sink) for key, change in changes.items()})

        raw, output = (str(self.folder / one) for one in ("raw", name))
        config = PreprocessConfig(format="spartan", sources=[raw], output=output)
        return PreprocessJob(config.model_copy(update={"sink": self.section}), make)

    def contents(self, name: str) -> dict[str, bytes]:
        """What must not depend on how often a run was killed, nor on where it worked."""
        output, unlisted = self.folder / name, self.job(name).spec.volatile
        names = [file.name for file in output_files(output) if is_listed(file.name, unlisted)]
        return {one: (output / one).read_bytes() for one in (*names, LIST)}

    def check_quiet_run(self) -> int:
        """One run without a disturbance, and again; how many outcomes it had."""
        job, executor = self.job("quiet"), _KillingExecutor(SerialExecutor())
        try:
            pickle.dumps(job.spec.work)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(f"work cannot be pickled: {error}") from error
        assert not job.spec.output.exists(), "__init__ writes"
        job.command_result(run_job(job, executor, options=JobOptions(dry_run=True)))
        assert not job.spec.output.exists(), "estimate writes"
        run = run_job(job, executor)
        assert not run.failures, f"an episode fails: {run.failures}"
        told, samples = run.sums, job.command_result(run).samples
        expected = {"frames": _EPISODES * _FRAMES, "samples": samples}
        assert told == {**told, **expected}, f"receipts count {told}, there are {expected}"
        self._check_files(job)
        again = run_job(self.job("quiet"), SerialExecutor())
        assert again.status == "already complete", f"the same run again is {again.status}"
        return executor.count

    def check_killed_run(
        self, name: str, make_executor: Callable[[], Executor], outcomes: int
    ) -> None:
        """One that is killed, at the end of `finish` if not before, and goes on."""

        def finish_and_die(sink: Any) -> Callable[..., None]:
            def finish(receipts: Iterator[Receipt], run: JobRun) -> None:
                sink.finish(receipts, run)
                raise _SimulatedKill

            return finish

        with suppress(_SimulatedKill), _KillingExecutor(make_executor(), outcomes) as executor:
            run_job(self.job(name, finish=finish_and_die), executor)
        with make_executor() as executor:
            run = run_job(self.job(name), executor)
        kept = min(outcomes, _EPISODES)
        assert run.resumed >= kept, f"{name}: {run.resumed} episodes are kept, not {kept}"
        self._check_equal(name)

    def check_failed_episode(self) -> None:
        """Runs whose second episode fails in the midst of it, where the sink reads so far."""
        failed = [self._failures(part) for part in ("cameras", "lowdim")]
        assert max(failed) == 1, "an episode whose last field is damaged does not fail"

    def _failures(self, part: str) -> int:
        """How many episodes fail when a part of one is damaged; it is repaired later."""
        job = self.job(part, work=lambda sink: _Damaging(sink.work, part))
        run = run_job(job, SerialExecutor())
        self._check_files(job)
        run_job(self.job(part), SerialExecutor())
        self._check_equal(part)
        return len(run.failures)

    def check_owned(self) -> None:
        """Whether the patterns say what is the sink's."""
        spec = self.job("quiet").spec
        files = [file.name for file in output_files(spec.output)]
        assert contains_only(spec.output, spec.owned), f"owned does not match all of {files}"
        remove_owned(spec.output, spec.owned)
        left = [file.name for file in output_files(spec.output)]
        assert not left, f"owned does not find {left}: `**` must be a part of its own"

    def _check_equal(self, name: str) -> None:
        found, expected = self.contents(name), self.contents("quiet")
        other = [one for one in found | expected if found.get(one) != expected.get(one)]
        assert not other, f"{name}: other bytes than those of a quiet run in {other}"

    def _check_files(self, job: PreprocessJob) -> None:
        """Whether the list is that of what was written."""
        found = [one.message for one in check_files(job.spec.output, CheckOptions())]
        assert not found, f"finish does not tell of its files as they are: {found}"
