"""Records episodes of a simulated world in a raw layout."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlatool.config.base import ConfigModel, execution_field, option
from vlatool.errors import UsageError, missing_package
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import DRY_RUN_HELP, JobConfig, JobResult, make_executor
from vlatool.jobs.executor import default_workers
from vlatool.jobs.files import FileEntry
from vlatool.jobs.job import InputState, JobRun, JobSpec, plan_digest
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_command
from vlatool.storage.uri import local_path
from vlatool.world import recording
from vlatool.world.metaworld.simulator import VIEWS, check_tasks, load_simulator
from vlatool.world.render import (
    SQUARE_SIZES,
    CameraCount,
    SizeName,
    View,
    cameras_for,
    plain_name,
)

Layout = Literal["spartan", "lerobot", "libero", "hdf5", "folder"]
World = Literal["builtin", "metaworld"]


class SampleConfig(ConfigModel):
    """Options of `vlatool sample`."""

    # Options by the layout that has them; records of the other layouts leave them out.
    layout_options: ClassVar[Mapping[str, Layout]] = {"layout_version": "lerobot"}

    # Options of the built-in world only.
    builtin_options: ClassVar[Sequence[str]] = ("frames", "scenes", "cameras", "depth")

    layout: Layout = Field(description="Raw layout to write.")
    output: str = Field(description="Folder to create.")
    world: World = option(
        "builtin", "World to record: the built-in one, or Meta-World (lerobot only, extra sim)."
    )
    task: list[str] = option([], "Tasks of Meta-World, such as reach-v3; episodes take turns.")
    episodes: int = option(10, "Number of episodes.", ge=1)
    seed: int = option(0, "Seed; the same seed gives the same bytes.", ge=0)
    frames: int | None = option(
        None, "Frames per episode; default: until the expert is done.", ge=1
    )
    scenes: int | None = option(
        None,
        "Number of start scenes; episodes of one scene start up to 2 cm apart, as in LIBERO; "
        "default: each episode has its own scene.",
        ge=1,
    )
    cameras: CameraCount = option(2, "Number of cameras.")
    size: SizeName = option(
        "small", "Image size: 64 x 64, 96 x 96, 128 x 128, or the size of the published data."
    )
    depth: bool = option(False, "Write depth and label maps, too (spartan only).")
    layout_version: Literal["v3.0", "v2.1"] = option(
        "v3.0", "Version of the data set (lerobot only)."
    )
    workers: int | None = option(
        None,
        "Number of processes; default: one per processor. Does not change the output.",
        ge=1,
        affects_output=False,
    )
    dry_run: bool = execution_field(default=False, description=DRY_RUN_HELP)


@dataclass(frozen=True, kw_only=True)
class SampleResult(JobResult):
    """Content of the output."""

    layout: Layout
    frames: int | None  # of all episodes; None: not known before they are recorded
    successes: int  # episodes in which the expert succeeded
    instructions: dict[str, int]  # map from instruction to number of episodes
    cameras: tuple[str, ...]  # names in the layout
    world: World = "builtin"

    def document(self) -> dict[str, Any]:
        is_complete = self.status == "already complete"
        return super().document() | {"already_complete": is_complete, "next": self.next_command}

    def summary(self) -> str:
        episodes = counted(self.episodes, f"{self.layout} episode")
        counts = episodes if self.frames is None else f"{episodes}, {counted(self.frames, 'frame')}"
        if self.is_planned:
            return f"would write {counts}"
        return f"{counts}, {self.successes} successful"

    def details(self) -> list[str]:
        instructions = (f"{count:5d} x {text!r}" for text, count in self.instructions.items())
        return [f"cameras: {', '.join(self.cameras)}", *instructions]

    @property
    def next_command(self) -> str:
        if self.layout == "folder":
            return shlex.join(["vlatool", "inspect", self.output])
        words = ["vlatool", "preprocess", self.layout, self.output]
        kind = "shards"
        if self.layout == "libero":
            words += ["--preset", "future-vla-tiny-data"]
            kind = "windows"
        elif self.world == "metaworld":
            words += ["--preset", "metaworld-windows"]
        return shlex.join([*words, "--output", f"{self.output}-{kind}"])


def sample(config: SampleConfig, *, reporter: Reporter = NULL) -> SampleResult:
    """Records episodes of the scripted expert.

    A second call with the same options keeps a complete output and resumes an incomplete one.

    Raises:
        UsageError: The layout does not support the options, or the output is in use or has
            different content.
        EnvironmentProblem: The simulator is not installed, or cannot render.
        StorageError: A file cannot be written.
    """
    _check_world(config)
    if config.layout == "libero" and config.cameras != 2:
        raise UsageError(
            f"--cameras {config.cameras}: the libero layout always has two cameras",
            hint="leave --cameras out, or use the layout spartan or lerobot",
            code="usage.unsupported",
        )
    if config.depth and config.layout != "spartan":
        raise UsageError(
            f"--depth: the {config.layout} layout has no depth",
            hint="leave --depth out, or use the layout spartan",
            code="usage.unsupported",
        )
    job = SampleJob(config)
    # vlatool generates the episodes: a failure is never bad data.
    options = JobConfig(on_error="stop", dry_run=config.dry_run)
    workers = 1 if config.dry_run else min(config.workers or default_workers(), config.episodes)
    return run_command(job, SampleResult, options, make_executor(workers), reporter=reporter)


class SampleJob:
    """Job that records episodes of the expert; see `jobs.job.Job`."""

    def __init__(self, config: SampleConfig) -> None:
        others = {key for key, name in config.layout_options.items() if name != config.layout}
        excluded = {"output", *others, *config.no_effect_on_output}
        if config.scenes is None:
            excluded.add("scenes")
        if config.world == "builtin":
            excluded |= {"world", "task"}
        options = config.model_dump(mode="json", exclude=excluded)
        output = local_path(config.output)
        parts: list[Any] = [options]
        if config.layout in ("lerobot", "folder"):  # videos have another encoder than in 0.3
            parts.append("veryfast")
        self._config = config
        self._recorder = _recorder(config)
        self._expert = _expert(config)
        self._recorded: list[recording.RecordedEpisode] = []
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("sample", options),
            item_name="episode",
            plan=plan_digest(*parts),
            work=ExpertWriter(self._recorder.write, self._expert),
            state=_state,
            owned=self._recorder.owned,
            temporary=self._recorder.temporary,
            has_arrays=bool(self._recorder.temporary),
            locations=(output,),
            progress_count="frames",
            replaced="never",
            shown={"output": config.output},
        )

    @property
    def items(self) -> Sequence[tuple[int, int]]:
        """Pairs (episode, frames before it), in order."""
        return self._episodes

    @cached_property
    def _episodes(self) -> Sequence[tuple[int, int]]:
        """Items of the job. Simulation takes 2 ms per episode; rendering is the slow part."""
        items: list[tuple[int, int]] = []
        first_row = 0
        for index in range(self._config.episodes):
            items.append((index, first_row))
            first_row += self._num_frames(index)
        return items

    def _num_frames(self, index: int) -> int:
        """Number of frames of an episode; 0 if finding out would take long."""
        if self._config.world != "builtin":
            return 0
        return self._config.frames or len(self._expert(index))

    def name(self, item: tuple[int, int]) -> str:
        return f"episode_{item[0]}"

    def begin(self) -> None:
        self._recorder.begin()

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        return self._recorder.finish(self._noted(receipts), run)

    def _noted(self, receipts: Iterator[Receipt]) -> Iterator[Receipt]:
        for receipt in receipts:
            self._recorded.append(recording.recorded_of(receipt))
            yield receipt

    def result(self, run: JobRun) -> SampleResult:
        names = [camera.name for camera in cameras_for(self._config.cameras)]
        if self._config.world == "metaworld":
            names = [*VIEWS]
        if self._config.layout == "lerobot":
            names = [f"observation.images.{name}" for name in names]
        if self._config.layout == "libero":
            names = ["image", "wrist_image"]
        if self._config.layout == "hdf5":
            names = [f"{name}_image" for name in names]
        if self._config.layout == "folder":
            names = [plain_name(name) for name in names]
        summary = SampleResult(
            layout=self._config.layout,
            frames=sum(episode.frames for episode in self._recorded),
            successes=sum(episode.success for episode in self._recorded),
            instructions=dict(Counter(episode.instruction for episode in self._recorded)),
            cameras=tuple(names),
            world=self._config.world,
        )
        if run.status != "planned":
            return summary
        if self._config.world != "builtin":
            return replace(summary, frames=None)
        last, frames = self._episodes[-1]
        return replace(summary, frames=frames + self._num_frames(last))


@dataclass(frozen=True)
class ExpertWriter:
    """Picklable function that records one episode."""

    # Writes an episode; its second argument is the number of frames before it.
    write: Callable[[Any, int], Receipt]
    # Function from the number of an episode to the episode.
    expert: Callable[[int], recording.RecordableEpisode]

    def __call__(self, item: tuple[int, int]) -> Receipt:
        index, first_row = item
        return self.write(self.expert(index), first_row)


def _state(item: tuple[int, int]) -> InputState:
    """State of the input; only the options and the item determine an episode."""
    return InputState(f"{item[0]} {item[1]}")


def _expert(config: SampleConfig) -> Callable[[int], recording.RecordableEpisode]:
    """Picklable function that takes the number of an episode and returns the episode."""
    if config.world == "builtin":
        return partial(
            recording.expert_episode,
            config.seed,
            frames=config.frames,
            shared_scenes=config.scenes,
        )
    from vlatool.world.metaworld.episodes import simulated_episode

    return partial(simulated_episode, config.task, SQUARE_SIZES[config.size], config.seed)


def _recorder(config: SampleConfig) -> recording.Recorder:
    # Imports inside: only the layouts that need PyAV, pyarrow or SciPy load them.
    if config.world == "metaworld":
        from vlatool.workflows.sample_lerobot import metaworld_recorder

        size = SQUARE_SIZES[config.size]
        output = local_path(config.output)
        return metaworld_recorder(output, size, config.layout_version, config.episodes)
    cameras = cameras_for(config.cameras)
    if config.layout == "libero":
        from vlatool.world.record_lerobot import PUBLISHED_SIZE, LiberoWriter

        size = SQUARE_SIZES.get(config.size, PUBLISHED_SIZE)
        views = tuple(View(camera, size) for camera in cameras)
        return recording.LayoutRecorder(
            LiberoWriter(recording.RecordingSetup(local_path(config.output), views))
        )
    views = tuple(View(camera, camera.size(config.size)) for camera in cameras)
    setup = recording.RecordingSetup(
        local_path(config.output), views, config.depth, config.episodes
    )
    if config.layout == "lerobot":
        from vlatool.workflows.sample_lerobot import world_recorder

        return world_recorder(setup, config.layout_version, config.episodes)
    return recording.LayoutRecorder(_writer(config.layout, setup))


def _writer(layout: Layout, setup: recording.RecordingSetup) -> recording.LayoutWriter:
    if layout == "spartan":
        from vlatool.world.record_spartan import SpartanWriter

        return SpartanWriter(setup)
    from vlatool.world.record_files import WRITERS

    return WRITERS[layout](setup)


def _check_world(config: SampleConfig) -> None:
    if config.world == "builtin":
        if config.task:
            raise UsageError(
                "--task: the built-in world has one task",
                hint="add --world metaworld",
                code="usage.unknown_name",
            )
        return
    if config.layout != "lerobot" or config.size == "published":
        raise UsageError(
            "Meta-World can only be recorded as a LeRobot data set with square images",
            hint="vlatool sample lerobot OUTPUT --world metaworld --task reach-v3 --size large",
            code="usage.unsupported",
        )
    for name in config.builtin_options:
        if getattr(config, name) != SampleConfig.model_fields[name].default:
            raise UsageError(
                f"--{name}: Meta-World has no such option",
                hint=f"leave --{name} out",
                code="usage.unknown_name",
            )
    if not config.task:
        raise UsageError(
            "you have not named a task of Meta-World",
            hint="give one or more, such as --task reach-v3",
            code="usage.missing_key",
        )
    check_tasks(config.task)
    try:
        load_simulator()
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "metaworld") from None
