"""Writes episodes of the built-in world in one of the raw layouts."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlatool.config.base import ConfigModel
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.parallel.engines import make_executor
from vlatool.parallel.executor import default_workers
from vlatool.storage.atomic import remove_partials, write_json
from vlatool.storage.lock import output_lock
from vlatool.world.cameras import SQUARE_SIZES, CameraCount, SizeName, cameras_for
from vlatool.world.episodes import expert_episode
from vlatool.world.recording import RecordedEpisode, Recorder, RecordingSetup
from vlatool.world.render import View

Layout = Literal["spartan", "lerobot", "libero"]


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
        """The command that makes training shards of this output."""
        reader = "spartan" if self.layout == "spartan" else "lerobot"
        command = f"vlatool preprocess {reader} {self.output} --output {self.output}-shards"
        if self.layout == "libero":
            columns = "--camera-names image,wrist_image --observation-keys state"
            return f"{command} {columns} --action-keys actions"
        return command


def sample(config: SampleConfig, *, reporter: Reporter = NULL) -> SampleResult:
    """Records episodes of the scripted expert.

    Running the same again leaves a complete output alone and starts an incomplete one over.

    Raises:
        UsageError: The layout cannot hold what is asked for, or the output is in use or has
            other content.
        StorageError: A file cannot be written.
    """
    _check_layout(config)
    output = Path(config.output)
    options = config.model_dump(mode="json", exclude={"output", *config.no_effect_on_output})
    earlier = _earlier_run(output, options)
    if earlier is not None and earlier["complete"]:
        reporter.note(f"{output} is already complete")
        return _earlier_result(config.output, earlier["result"])
    with output_lock(output, f"vlatool sample {config.layout} {output}"):
        remove_partials(output)
        _write_run(output, options, None)
        recorder = _recorder(config)
        result = _summary(config, _record(config, recorder, reporter))
        _write_run(output, options, result)
    return result


def _record(config: SampleConfig, recorder: Recorder, reporter: Reporter) -> list[RecordedEpisode]:
    workers = min(config.workers or default_workers(), config.episodes)
    work = partial(_write_episode, recorder, config.seed, config.frames)
    recorded: list[RecordedEpisode] = []
    with reporter.progress("sample", config.episodes, "episodes") as bar:
        for outcome in make_executor(workers).map(work, _numbered_rows(config)):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None
            recorded.append(outcome.value)
            bar.advance()
    recorder.finish(recorded)
    return recorded


def _numbered_rows(config: SampleConfig) -> Iterator[tuple[int, int]]:
    """(episode, frames before it): playing an episode takes 2 ms, drawing it is what costs."""
    first_row = 0
    for index in range(config.episodes):
        yield index, first_row
        first_row += config.frames or len(expert_episode(config.seed, index))


def _write_episode(
    recorder: Recorder, seed: int, frames: int | None, place: tuple[int, int]
) -> RecordedEpisode:
    index, first_row = place
    return recorder.write(expert_episode(seed, index, frames), first_row)


def _recorder(config: SampleConfig) -> Recorder:
    # Inside: PyAV, pyarrow and SciPy load only for the layout that needs them.
    cameras = cameras_for(config.cameras)
    if config.layout == "libero":
        from vlatool.world.record_libero import PUBLISHED_SIZE, LiberoRecorder

        size = SQUARE_SIZES.get(config.size, PUBLISHED_SIZE)
        views = tuple(View(camera, size) for camera in cameras)
        return LiberoRecorder(RecordingSetup(Path(config.output), views))
    views = tuple(View(camera, camera.size(config.size)) for camera in cameras)
    setup = RecordingSetup(Path(config.output), views, config.depth)
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


def _earlier_run(output: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the run that made `output`; None when there is nothing yet.

    Raises:
        UsageError: Something else is there, or it was made with other options.
    """
    record = output / ".vlatool" / "run.json"
    if not record.exists():
        if output.exists() and (not output.is_dir() or _has_content(output)):
            raise UsageError(
                f"{output}: already exists and was not made by this command",
                hint="choose another output",
                code="usage.output_exists",
            )
        return None
    earlier: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    before: dict[str, Any] = earlier["options"]
    keys = sorted({*before, *options})
    changed = [key for key in keys if before.get(key) != options.get(key)]
    if changed:
        told = ", ".join(f"{key} {before.get(key)} (now {options.get(key)})" for key in changed)
        raise UsageError(
            f"{output}: already made with other options: {told}",
            hint="choose another output, or use the same options",
            code="usage.output_exists",
            details={"changed": changed},
        )
    return earlier


def _earlier_result(output: str, recorded: dict[str, Any]) -> SampleResult:
    cameras = tuple(recorded["cameras"])
    changes = {"output": output, "cameras": cameras, "already_complete": True}
    return SampleResult(**(recorded | changes))


def _has_content(folder: Path) -> bool:
    return any(path.name != ".vlatool" for path in folder.iterdir())


def _write_run(output: Path, options: dict[str, Any], result: SampleResult | None) -> None:
    summary = None
    if result is not None:
        summary = asdict(result)
        del summary["output"], summary["already_complete"]
    run = {"command": "sample", "options": options, "complete": result is not None}
    write_json(output / ".vlatool" / "run.json", run | {"result": summary})
