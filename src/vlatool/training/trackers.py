"""Trackers: programs that also get the metrics and images of a run. They wrap the reporter."""

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vlatool.checkpoints.layout import RunDir
from vlatool.episode import UInt8Array
from vlatool.errors import missing_package
from vlatool.events import Progress, Reporter
from vlatool.jobs.record import read_record
from vlatool.training.config import TrainConfig

if TYPE_CHECKING:
    from wandb import Run

# Below the run folder; W&B itself adds the folder `wandb`.
_TENSORBOARD = "tensorboard"
_PROJECT = "vlatool"
# A server that does not respond in this time is away; the run is recorded on disk instead.
_INIT_TIMEOUT_S = 30.0
# Time at the end of a run to send what is not sent yet; the rest stays on disk.
_FINISH_TIMEOUT_S = 120.0


class Tracker(Protocol):
    """Receiver of metrics and images."""

    name: str  # name for messages

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Stores the metrics of a step."""
        ...

    def images(self, step: int, images: Mapping[str, UInt8Array]) -> None:
        """Stores images of a step, uint8 [N, H, W, 3] by name."""
        ...

    def close(self, exit_code: int) -> None:
        """Stores what is left; the exit code of the run is 0 unless it failed."""
        ...


class TrackedReporter:
    """Reporter that passes everything to another one, and also metrics and images to trackers.

    A tracker that fails never ends a run: it is left out from then on, with a warning.
    """

    def __init__(self, reporter: Reporter, trackers: Iterable[Tracker]) -> None:
        self._reporter = reporter
        self._trackers = list(trackers)

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        """Starts a bar of the other reporter."""
        return self._reporter.progress(name, total, unit)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._reporter.metrics(step, values)
        self._each(lambda tracker: tracker.metrics(step, values))

    def images(self, step: int, images: Mapping[str, UInt8Array]) -> None:
        self._reporter.images(step, images)
        shown = {name: batch for name, batch in images.items() if len(batch)}
        if shown:
            self._each(lambda tracker: tracker.images(step, shown))

    def note(self, message: str) -> None:
        self._reporter.note(message)

    def warn(self, code: str, message: str) -> None:
        self._reporter.warn(code, message)

    def close(self, exit_code: int) -> None:
        self._each(lambda tracker: tracker.close(exit_code))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001 - other programs; none may end a run
                self._trackers.remove(tracker)
                self.warn("tracker_failed", _failure(tracker.name, error))


def check_trackers(names: Iterable[str]) -> None:
    """Raises EnvironmentProblem if the package of a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise missing_package(name)


@contextmanager
def tracked(
    reporter: Reporter, config: TrainConfig, run: RunDir, last_step: int
) -> Generator[Reporter]:
    """Reporter that also passes the metrics of a run to its trackers. `last_step`: last step that
    is not repeated; 0 at the start of a run.
    """
    if not config.trackers:
        yield reporter
        return
    reporters = TrackedReporter(reporter, _opened(reporter, config, run, last_step))
    exit_code = 1
    try:
        yield reporters
        exit_code = 0
    except (KeyboardInterrupt, SystemExit):
        exit_code = 0  # stopped on request, with a checkpoint
        raise
    finally:
        reporters.close(exit_code)


def _opened(
    reporter: Reporter, config: TrainConfig, run: RunDir, last_step: int
) -> Generator[Tracker]:
    open_by_name: Mapping[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoardTracker(run.root / _TENSORBOARD, last_step),
        "wandb": lambda: _open_wandb(reporter, config, run.root),
    }
    for name in config.trackers:
        try:
            yield open_by_name[name]()
        except Exception as error:  # noqa: BLE001 - another program; it may not end a run
            reporter.warn("tracker_failed", _failure(name, error))


def _failure(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{name}: {reason}; the run continues without it; metrics.jsonl still gets all metrics"


class TensorBoardTracker:
    """Event files of TensorBoard in a folder of the run.

    A resumed run starts a new file, which replaces all steps that are repeated.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a scalar per metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # A killed run repeats only the steps after its last checkpoint.
        self._writer.flush()

    def images(self, step: int, images: Mapping[str, UInt8Array]) -> None:
        """Writes the images of each name as one grid."""
        for name, batch in images.items():
            self._writer.add_images(name, batch, step, dataformats="NHWC")
        self._writer.flush()

    def close(self, exit_code: int) -> None:
        self._writer.close()


class WandbTracker:
    """Run of Weights & Biases, which keeps the first row of a step that a resumed run repeats."""

    name = "wandb"

    def __init__(self, run: "Run") -> None:
        self._run = run

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step}, step=step)

    def images(self, step: int, images: Mapping[str, UInt8Array]) -> None:
        """Logs the images as panels."""
        from wandb import Image

        panels = {name: [Image(image) for image in batch] for name, batch in images.items()}
        self._run.log(panels, step=step)

    def close(self, exit_code: int) -> None:
        """Waits until everything is sent, for a limited time."""
        self._run.finish(exit_code=exit_code)


def _open_wandb(reporter: Reporter, config: TrainConfig, folder: Path) -> WandbTracker:
    """The run in W&B; recorded on disk if you are not logged in or the server does not answer."""
    import wandb

    record = read_record(folder)
    run_id = (record.run_id if record else "") or None

    def start(mode: Literal["offline"] | None = None) -> "Run":
        return wandb.init(
            id=run_id,
            resume="allow" if run_id else None,
            project=config.wandb_project_name or os.environ.get("WANDB_PROJECT") or _PROJECT,
            entity=config.wandb_entity,
            name=config.name,
            tags=config.wandb_tags or None,
            config=config.model_dump(mode="json"),
            dir=str(folder),
            settings=_wandb_settings(),
            mode=mode,
        )

    # A silent session asks for no login on the terminal.
    wandb.setup(_wandb_settings())
    try:
        run = start()
    except Exception as error:  # noqa: BLE001 - no server, no login; none may end a run
        wandb.teardown()  # it still holds the id of the run
        wandb.setup(_wandb_settings())
        run = start("offline")
        reason = " ".join(str(error).split())
        reporter.warn(
            "tracker_offline",
            f"W&B: {reason}: the run is recorded in {run.settings.sync_dir}; `wandb sync` sends it",
        )
    return WandbTracker(run)


def _wandb_settings() -> Any:
    """Settings with which W&B records neither terminal nor code nor the names of the machine."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        symlink=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", _INIT_TIMEOUT_S)),
        finish_timeout=_FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
    )
