"""Success in an environment while a run trains: rollouts of its checkpoints.

A checkpoint is written before it is rolled out, so a run that is stopped or killed meanwhile loses
no step: it rolls out its newest checkpoint when it resumes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from vlatool.artifacts.run.best import EVALUATION
from vlatool.artifacts.run.format import RunDir, read_metrics
from vlatool.errors import BugError, VlatoolError
from vlatool.models.base import Policy
from vlatool.training.metrics import MetricsLogger
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState
from vlatool.training.trainer import StopRequest, exit_stopped


class RollsOut(Protocol):
    """Rollouts of the checkpoints of a run; evaluation defines them."""

    def check(self, policy: Policy) -> None:
        """Raises a VlatoolError if a policy cannot act in the environment."""
        ...

    def __call__(self, checkpoint: Path, output: Path) -> Mapping[str, float]:
        """Rolls out a checkpoint with its averaged weights, if there are any.

        Args:
            checkpoint: The checkpoint.
            output: Folder for the report.

        Returns:
            Map from name of a metric to value, `success_rate` among them.

        Raises:
            VlatoolError: The rollouts could not be made.
        """
        ...


def is_pending(run: RunDir, step: int, steps: tuple[int, ...]) -> bool:
    """True if the checkpoint of a step is to be rolled out, and no row of the metrics has it."""
    rows = read_metrics(run.metrics) if step in steps and run.metrics.is_file() else []
    measured = [row for row in rows if any(name.startswith(EVALUATION) for name in row)]
    return step in steps and all(row["step"] != step for row in measured)


@dataclass(frozen=True)
class SuccessRate:
    """Rolls out the checkpoint of the present step on rank 0, while the others wait. Collective.

    Attributes:
        run: The run folder.
        runtime: The ranks of the run.
        roll_out: The rollouts; None on ranks that only wait, and if none are planned.
        logger: Logs the metrics, and a warning if the rollouts fail; the run continues.
        stop: A request to stop ends the rollouts at once.
        resume_hint: Rest of the note on a run that was stopped.
    """

    run: RunDir
    runtime: Runtime
    roll_out: RollsOut | None
    logger: MetricsLogger
    stop: StopRequest
    resume_hint: str

    def __call__(self, state: TrainState) -> None:
        """Writes the metrics of the rollouts, and the best checkpoint.

        Raises:
            KeyboardInterrupt: Ctrl-C; the checkpoint is there.
            SystemExit: SIGTERM (143); the checkpoint is there.
        """
        started = time.perf_counter()
        metrics = self._measured(state.step) if self.runtime.is_main else {}
        metrics, signal = self.runtime.broadcast((metrics, self.stop.received()))
        if signal is not None:
            self._exit(state.step, signal)
        self.logger.meter.leave_out(time.perf_counter() - started)
        if metrics:
            values = {f"{EVALUATION}{name}": value for name, value in metrics.items()}
            self.logger.metrics.write(state.step, {"samples": float(state.samples), **values})
        if self.runtime.is_main:
            self.run.update_best()

    def _measured(self, step: int) -> Mapping[str, float]:
        """Metrics of the rollouts; empty if a request to stop ended them, or if they failed."""
        assert self.roll_out is not None
        try:
            with self.stop.interrupting():
                return self.roll_out(self.run.checkpoint(step), self.run.rollouts(step))
        except KeyboardInterrupt:
            if self.stop.received() is None:
                raise
        except BugError:
            raise
        except VlatoolError as error:
            self.logger.reporter.warn(
                "rollouts_failed",
                f"the rollouts of step {step} failed, and the run continues: {error.message}",
            )
        return {}

    def _exit(self, step: int, signal: int) -> NoReturn:
        self.logger.reporter.note(f"stopped in the rollouts of step {step}{self.resume_hint}")
        exit_stopped(signal)
