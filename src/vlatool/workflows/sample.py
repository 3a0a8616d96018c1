"""Writes episodes of the built-in world in one of the raw layouts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlatool.config.base import ConfigModel
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.files import FileEntry, digests_below, file_entry, folder_entry
from vlatool.jobs.inputs import InputState, plan_digest
from vlatool.jobs.job import JobOptions, JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_job
from vlatool.parallel.engines import make_executor
from vlatool.parallel.executor import default_workers
from vlatool.storage.atomic import remove_file
from vlatool.storage.uri import local_path
from vlatool.world.cameras import SQUARE_SIZES, CameraCount, SizeName, cameras_for
from vlatool.world.episodes import expert_episode
from vlatool.world.recording import RecordedEpisode, Recorder, RecordingSetup
from vlatool.world.render import View

Layout = Literal["spartan", "lerobot", "libero"]
# Our own code makes the episodes: one that fails is no bad data.
_OPTIONS = JobOptions(on_error="stop")


class SampleConfig(ConfigModel):
    """What to record."""

    no_effect_on_output: ClassVar[frozenset[str]] = frozenset({"workers"})

    layout: Layout = Field(description="Raw layout to write.")
    output: str = Field(description="Folder to create.")
    episodes: int = Field(default=10, ge=1, description="How many episodes.")
    seed: int = Field(default=0, ge=0, description="Seed; the same seed gives the same bytes.")
    frames: int | None = Field(
        default=None, ge=1, description="Frames per episode; default: as many as the expert needs."
    )
    cameras: CameraCount = Field(default=2, description="How many cameras.")
    size: SizeName = Field(
        default="small",
        description="Picture size: 64 x 64, 96 x 96, or that of the published recordings.",
    )
    depth: bool = Field(default=False, description="Also depth and label maps (spartan only).")
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Processes; default: one per processor. Never changes the bytes.",
    )


@dataclass(frozen=True)
class SampleResult:
    """What lies in the output.

    Attributes:
        layout: Raw layout.
        output: The folder.
        episodes: Number of episodes.
        frames: Number of frames in all of them.
        successes: Episodes that end with the named block in the bin.
        instructions: Episodes per instruction.
        cameras: Names of the cameras as the layout has them.
        already_complete: Whether it was all there before.
    """

    layout: Layout
    output: str
    episodes: int
    frames: int
    successes: int
    instructions: dict[str, int]
    cameras: tuple[str, ...]
    already_complete: bool = False

    def document(self) -> dict[str, Any]:
        """JSON-serialisable facts."""
        return asdict(self) | {"cameras": list(self.cameras), "next": self.next_command()}

    def text(self) -> str:
        """The result in a few lines, and what to do next."""
        done = "already complete, nothing to do" if self.already_complete else "written"
        amount = f"{self.episodes} {self.layout} episodes, {self.frames} frames"
        lines = [
            f"{self.output}: {amount}, {self.successes} successful; {done}",
            f"cameras: {', '.join(self.cameras)}",
            *(f"{count:5d} x {text!r}" for text, count in self.instructions.items()),
            f"next: {self.next_command()}",
        ]
        return "\n".join(lines)

    def next_command(self) -> str:
        """The command that makes training data of this output."""
        made = "windows" if self.layout == "libero" else "shards"
        return f"vlatool preprocess {self.layout} {self.output} --output {self.output}-{made}"


def sample(config: SampleConfig, *, reporter: Reporter = NULL) -> SampleResult:
    """Records episodes of the scripted expert.

    Running the same again leaves a complete output alone and goes on with an incomplete one.

    Raises:
        UsageError: The layout cannot hold what is asked for, or the output is in use or has
            other content.
        StorageError: A file cannot be written.
    """
    _check_layout(config)
    job = SampleJob(config)
    workers = min(config.workers or default_workers(), config.episodes)
    run = run_job(job, make_executor(workers), options=_OPTIONS, reporter=reporter)
    known = dict(run.record.result or {})
    if run.status == "already complete":
        reporter.note(f"{job.spec.output} is already complete")
        known["already_complete"] = True
    return SampleResult(**{**known, "output": config.output, "cameras": tuple(known["cameras"])})


class SampleJob:
    """Episodes of the expert on their way to disk; see `jobs.job.Job`."""

    def __init__(self, config: SampleConfig) -> None:
        options = config.model_dump(mode="json", exclude={"output", *config.no_effect_on_output})
        output = local_path(config.output)
        self._config = config
        self._recorder = _recorder(config)
        self._recorded: list[RecordedEpisode] = []
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("sample", options),
            title=f"sample {config.layout} {config.output}",
            item_name="episode",
            plan=plan_digest(options),
            work=EpisodeWriter(self._recorder, output, config.seed, config.frames),
            state=_state,
            owned=self._recorder.owned,
            locations=(output,),
            progress_count="frames",
            can_overwrite=False,
        )

    @property
    def items(self) -> Sequence[tuple[int, int]]:
        """What to play, in order."""
        return self._places

    @cached_property
    def _places(self) -> Sequence[tuple[int, int]]:
        """(episode, frames before it): playing an episode takes 2 ms, drawing it is what costs."""
        places: list[tuple[int, int]] = []
        first_row = 0
        for index in range(self._config.episodes):
            places.append((index, first_row))
            first_row += self._config.frames or len(expert_episode(self._config.seed, index))
        return places

    def name(self, item: tuple[int, int]) -> str:
        """The episode's number."""
        return f"episode_{item[0]}"

    def inputs(self) -> Mapping[str, Any]:
        """None: episodes follow from the options."""
        return {}

    def begin(self) -> None:
        """Takes away what describes the whole set."""
        for name in self._recorder.closing:
            remove_file(self.spec.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes what describes the whole set."""
        del run
        files: list[FileEntry] = []
        for receipt in receipts:
            files += receipt.files
            self._recorded.append(RecordedEpisode(**receipt.facts))
        self._recorder.finish(self._recorded)
        closing = (name for name in self._recorder.closing if (self.spec.output / name).is_file())
        return [*files, *(file_entry(self.spec.output, name) for name in closing)]

    def result(self, run: JobRun) -> Mapping[str, Any]:
        """Sums over the episodes."""
        del run
        summary = asdict(_summary(self._config, self._recorded))
        del summary["output"], summary["already_complete"]
        return summary


@dataclass(frozen=True)
class EpisodeWriter:
    """Records one episode; picklable."""

    recorder: Recorder
    output: Path
    seed: int
    frames: int | None

    def __call__(self, place: tuple[int, int]) -> Receipt:
        """What was recorded, with the files."""
        index, first_row = place
        recorded = self.recorder.write(expert_episode(self.seed, index, self.frames), first_row)
        info = asdict(recorded)
        counts = {"frames": recorded.frames}
        return Receipt("", counts=counts, files=tuple(map(self._entry, recorded.files)), facts=info)

    def _entry(self, name: str) -> FileEntry:
        path = self.output / name
        if path.is_dir():
            return folder_entry(name, digests_below(path))
        return file_entry(self.output, name)


def _state(place: tuple[int, int]) -> InputState:
    """An episode follows from the options and its place alone."""
    return InputState(f"{place[0]} {place[1]}")


def _recorder(config: SampleConfig) -> Recorder:
    # Inside: PyAV, pyarrow and SciPy load only for the layout that needs them.
    cameras = cameras_for(config.cameras)
    if config.layout == "libero":
        from vlatool.world.record_lerobot import PUBLISHED_SIZE, LiberoRecorder

        size = SQUARE_SIZES.get(config.size, PUBLISHED_SIZE)
        views = tuple(View(camera, size) for camera in cameras)
        return LiberoRecorder(RecordingSetup(local_path(config.output), views))
    views = tuple(View(camera, camera.size(config.size)) for camera in cameras)
    setup = RecordingSetup(local_path(config.output), views, config.depth)
    if config.layout == "lerobot":
        from vlatool.world.record_lerobot import LeRobotRecorder

        return LeRobotRecorder(setup)
    from vlatool.world.record_spartan import SpartanRecorder

    return SpartanRecorder(setup)


def _summary(config: SampleConfig, recorded: list[RecordedEpisode]) -> SampleResult:
    names = [camera.name for camera in cameras_for(config.cameras)]
    if config.layout == "lerobot":
        names = [f"observation.images.{name}" for name in names]
    if config.layout == "libero":
        names = ["image", "wrist_image"]
    return SampleResult(
        layout=config.layout,
        output=config.output,
        episodes=len(recorded),
        frames=sum(episode.frames for episode in recorded),
        successes=sum(episode.success for episode in recorded),
        instructions=dict(Counter(episode.instruction for episode in recorded)),
        cameras=tuple(names),
    )


def _check_layout(config: SampleConfig) -> None:
    if config.layout == "libero" and config.cameras != 2:
        raise UsageError(
            f"the libero layout has two cameras, not {config.cameras}",
            hint="leave --cameras out, or use the layout spartan or lerobot",
            code="usage.cameras",
        )
    if config.depth and config.layout != "spartan":
        raise UsageError(
            f"the {config.layout} layout holds no depth",
            hint="leave --depth out, or use the layout spartan",
            code="usage.depth",
        )
