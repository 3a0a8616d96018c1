"""Rollouts of the checkpoints of a run while it trains, as `eval rollout` makes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlatool.errors import PartialFailure
from vlatool.evaluation.config import RolloutConfig, RolloutOptions
from vlatool.evaluation.environments import environment_maker, with_mapping
from vlatool.events import Reporter
from vlatool.workflows.rollout import RolloutResult, rollout, suite_tasks

if TYPE_CHECKING:
    from vlatool.models.policy import Policy

_METRICS = ("success_rate", "episodes", "errors", "mean_steps")


class CheckpointRollouts:
    """Rollouts with the options of the section `eval`; see `training.success.RollsOut`."""

    def __init__(self, options: RolloutOptions, reporter: Reporter) -> None:
        self._options = RolloutConfig(
            **{name: getattr(options, name) for name in RolloutOptions.model_fields}
        )
        self._reporter = reporter
        self._tasks = [with_mapping(task) for task in suite_tasks(self._options).values()]
        self._makers = [environment_maker(task) for task in self._tasks]

    def check(self, policy: "Policy") -> None:
        """Checks the first observation of each environment, and the width of its actions.

        The policy computes nothing: its weights may be sharded, and are not trained yet.
        """
        from vlatool.evaluation.controllers import check_environment

        for task, make_env in zip(self._tasks, self._makers, strict=True):
            check_environment(policy, task, make_env)

    def __call__(self, checkpoint: Path, output: Path) -> Mapping[str, float]:
        """Metrics of the rollouts of a checkpoint.

        There is one of each task of a suite, or of each instruction if there are several.
        """
        update = {"checkpoint": str(checkpoint), "output": str(output)}
        try:
            result = rollout(self._options.model_copy(update=update), reporter=self._reporter)
        except PartialFailure as error:
            if not isinstance(error.result, RolloutResult):
                raise
            result = error.result
        figures = result.figures
        groups = figures.get("per_task") or figures["per_instruction"]
        rates = {f"success_rate/{text}": counts["success_rate"] for text, counts in groups.items()}
        metrics = {name: figures[name] for name in _METRICS} | (rates if len(rates) > 1 else {})
        return {name: float(value) for name, value in metrics.items()}
