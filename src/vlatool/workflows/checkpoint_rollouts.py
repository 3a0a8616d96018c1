"""Rollouts of the checkpoints of a run while it trains, as `eval rollout` makes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlatool.evaluation.config import RolloutConfig, RolloutOptions
from vlatool.evaluation.environments import environment_maker, with_mapping
from vlatool.events import Reporter
from vlatool.workflows.rollout import rollout

if TYPE_CHECKING:
    from vlatool.models.policy import Policy

_METRICS = ("success_rate", "episodes", "errors", "mean_steps")


class CheckpointRollouts:
    """Rollouts with the options of the section `eval`; see `training.success.RollsOut`."""

    def __init__(self, options: RolloutOptions, reporter: Reporter) -> None:
        """Creates the environment once, as a check.

        Raises:
            UsageError: There is no such environment, or it does not accept the options.
            EnvironmentProblem: A package is not installed.
        """
        self._options = RolloutConfig(
            **{name: getattr(options, name) for name in RolloutOptions.model_fields}
        )
        self._reporter = reporter
        self._make_env = environment_maker(options)

    def check(self, policy: "Policy") -> None:
        """Checks the first observation of the environment, and the width of its actions.

        The policy computes nothing: its weights may be sharded, and are not trained yet.

        Raises:
            DataError: The policy cannot act in the environment.
        """
        from vlatool.evaluation.controllers import check_environment

        check_environment(policy, with_mapping(self._options), self._make_env)

    def __call__(self, checkpoint: Path, output: Path) -> Mapping[str, float]:
        """Metrics of the rollouts of a checkpoint, with one per instruction if there are several.

        Raises:
            DataError: The checkpoint is damaged.
            PartialFailure: An error of the environment ended every episode.
            StorageError: The report cannot be written.
        """
        update = {"checkpoint": str(checkpoint), "output": str(output)}
        figures = rollout(self._options.model_copy(update=update), reporter=self._reporter).figures
        groups = figures["per_instruction"]
        rates = {f"success_rate/{text}": counts["success_rate"] for text, counts in groups.items()}
        metrics = {name: figures[name] for name in _METRICS} | (rates if len(rates) > 1 else {})
        return {name: float(value) for name, value in metrics.items()}
