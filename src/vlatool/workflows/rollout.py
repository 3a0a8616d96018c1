"""Runs a trained policy in Gymnasium environments, in closed loop."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vlatool.config.base import typed_command
from vlatool.config.resolve import load_config
from vlatool.errors import PartialFailure, UsageError
from vlatool.evaluation.config import RolloutConfig, RolloutOptions, RolloutTask, SuiteConfig
from vlatool.evaluation.environments import (
    EnvironmentMaker,
    Environments,
    EnvProcesses,
    LocalEnvironments,
    environment_maker,
    with_mapping,
)
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import JobConfig
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.ownership import versions_of
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_job
from vlatool.models.published import Trained
from vlatool.results import MERGED, Result
from vlatool.workflows.evaluate import checkpoint_of, folder_of, results_folder, weights_text

if TYPE_CHECKING:
    from vlatool.models.base import Policy

__all__ = ["RolloutConfig", "rollout"]


@dataclass(frozen=True)
class RolloutResult(Result):
    """Success rates of a policy in an environment, or in all environments of a suite."""

    checkpoint: str
    weights: str
    env: str
    picture: str | None
    page: str  # HTML page
    report: str
    figures: Mapping[str, Any] = field(metadata=MERGED)

    @property
    def next_command(self) -> str:
        return shlex.join(["vlatool", "serve", self.checkpoint])

    def lines(self) -> Iterator[str]:
        figures = self.figures
        weights = weights_text(self.weights)
        yield f"{self.env}: {_rate(figures)} success ({_interval(figures)}), {weights}"
        for task, counts in figures.get("per_task", {}).items():
            yield f"   {_rate(counts)}  {task} ({_interval(counts)})"
        for instruction, counts in figures["per_instruction"].items():
            yield f"   {_rate(counts)}  {instruction or '(no instruction)'}"
        reward = figures["mean_max_reward"]
        if reward not in (None, figures["success_rate"]):
            yield f"highest reward of an episode, on average: {reward:.3f}"
        errors = [row["error"] for row in figures["rollouts"] if row["error"] is not None]
        if errors:
            yield f"episodes ended by an error of the environment: {len(errors)}"
            for error in dict.fromkeys(errors):
                yield f"   {errors.count(error)}  {error}"
        times = figures["plan_ms"]
        if times["batches"]:
            points = [f"{times[f'p{share}']:.1f} ms (p{share})" for share in (50, 90, 99)]
            yield f"planning takes {', '.join(points)} per batch"
        yield f"page: {self.page}"


def rollout(config: RolloutConfig, *, reporter: Reporter = NULL) -> RolloutResult:
    """Runs a policy in Gymnasium environments and counts its successes.

    An interrupted run continues with the next group of episodes; a complete run is repeated.

    Raises:
        UsageError: An environment does not exist, or the output has different content.
        ConfigError: The file of the suite is invalid.
        DataError: The observations of an environment lack an input of the policy.
        EnvironmentProblem: A package of an environment is not installed.
        PartialFailure: An error of the environment ended an episode; `result` of the error has the
            figures of the other episodes, or None if all failed.
    """
    from vlatool.evaluation.control import ImageSizes
    from vlatool.evaluation.policy_runner import open_policy
    from vlatool.evaluation.rollouts import RolloutJob, RolloutProgress, RolloutSetup

    tasks = {name: with_mapping(task) for name, task in suite_tasks(config).items()}
    makers = {name: environment_maker(task) for name, task in tasks.items()}
    with _environments(config, [*makers.values()]) as environments:
        infos = {name: environments.info(maker) for name, maker in makers.items()}
        policy, trained = open_policy(config.checkpoint, config.weights, config, reporter)
        header = {
            "checkpoint": str(checkpoint_of(trained)),
            "weights": trained.origin.weights,
            "env": PurePosixPath(config.suite or "").stem if config.suite else config.env,
        }
        name = f"rollout-{header['env'].replace('/', '-')}"
        output = results_folder(config.output, trained, name)
        total = sum(task.episodes for task in tasks.values())
        with reporter.progress("rollouts", total, "episodes") as bar:
            setup = RolloutSetup(
                environments,
                policy,
                RolloutProgress(bar),
                ImageSizes(policy.sees, reporter.note, config.allow),
                typed_command("eval rollout", config, ("checkpoint",)),
            )
            rollouts = {name: setup.rollouts(task, infos[name]) for name, task in tasks.items()}
            job = RolloutJob(output, _record(config, tasks, trained), rollouts, setup, header)
            run_job(job, SerialExecutor(), options=JobConfig(overwrite=True, on_error="stop"))
    report = job.report()
    if not report["episodes"]:
        raise _episodes_failed(report)
    figures = dict(report)
    facts = {name: figures.pop(name) for name in (*header, "picture", "page", "report")}
    figures |= {"plan_ms": job.plan_ms(), "videos": job.videos()}
    result = RolloutResult(**facts, figures=figures)
    if report["errors"]:
        raise _episodes_failed(report, result)
    return result


def suite_tasks(config: RolloutConfig) -> dict[str, RolloutConfig]:
    """Config of each task of a suite, by name; without a suite, the config under the name ""."""
    if config.suite is None:
        return {"": config}
    suite = load_config(SuiteConfig, files=[config.suite]).config
    if not suite.tasks:
        raise UsageError(
            f"{config.suite}: the suite has no tasks",
            hint="name some, such as `tasks: {red: {env: vlatool/PickPlace-v0, seed: 7}}`",
            code="usage.bad_value",
        )
    rows = math.ceil(config.contact_sheet_episodes / len(suite.tasks))
    tasks: dict[str, RolloutConfig] = {}
    for name, task in suite.tasks.items():
        of_task = {key: getattr(task, key) for key in task.model_fields_set}
        tasks[name] = config.model_copy(update={"contact_sheet_episodes": rows, **of_task})
    return tasks


def _environments(config: RolloutConfig, makers: Sequence[EnvironmentMaker]) -> Environments:
    if config.env_processes is None:
        count = min(maker.default_processes() for maker in makers)
    else:
        count = config.env_processes
    for maker in makers:
        if count > 1 and not maker.is_portable:
            raise UsageError(
                f"the environment {maker.name!r} cannot be made in other processes: its "
                "registration or its options cannot be pickled",
                hint="use --env-processes 1, which runs it in this process",
                code="usage.unsupported",
            )
    return EnvProcesses(count, config.env_timeout_s) if count > 1 else LocalEnvironments()


def _record(
    config: RolloutConfig, tasks: Mapping[str, RolloutConfig], trained: Trained
) -> OutputRecord:
    """Record of the output; inputs are recorded by name, without their paths."""
    single = tasks.get("", config)
    options = single.model_dump(mode="json", exclude={*config.no_effect_on_output})
    options["checkpoint"] = checkpoint_of(trained).name
    if config.suite is not None:
        keys = {*RolloutTask.model_fields}
        suite = {name: task.model_dump(mode="json", include=keys) for name, task in tasks.items()}
        options["suite"] = suite
    return OutputRecord("eval rollout", options | versions_of([folder_of(trained)]))


def _episodes_failed(
    report: Mapping[str, Any], result: RolloutResult | None = None
) -> PartialFailure:
    rows = [row for row in report["rollouts"] if row["error"] is not None]
    ended = "every episode" if result is None else counted(len(rows), "episode")
    error = PartialFailure(
        f"{report['env']}: an error of the environment ended {ended}; "
        f"the first: {rows[0]['error']}",
        hint=f"{report['report']} lists all; the rates count the other episodes",
        code="partial.failed",
        details={"failures": rows},
    )
    error.result = result
    return error


def _rate(counts: Mapping[str, Any]) -> str:
    return f"{counts['successes']} of {counts['episodes']} ({100 * counts['success_rate']:.0f} %)"


def _interval(counts: Mapping[str, Any]) -> str:
    low, high = counts["confidence_95"]
    return f"95 % interval {100 * low:.0f} to {100 * high:.0f} %"


_METRICS = ("success_rate", "episodes", "errors", "mean_steps")


class EnvironmentRollouts:
    """Rollouts with the options of the section `eval`, for `training.validation`."""

    def __init__(self, options: RolloutOptions, reporter: Reporter) -> None:
        self._options = RolloutConfig(
            **{name: getattr(options, name) for name in RolloutOptions.model_fields}
        )
        self._reporter = reporter
        self._tasks = [with_mapping(task) for task in suite_tasks(self._options).values()]
        self._makers = [environment_maker(task) for task in self._tasks]

    def check(self, policy: "Policy") -> None:
        """Checks the first observations and the widths of actions. The policy computes nothing,
        because its weights may be sharded.
        """
        from vlatool.evaluation.controllers import check_environment

        for task, make_env in zip(self._tasks, self._makers, strict=True):
            check_environment(policy, task, make_env)

    def __call__(self, checkpoint: Path, output: Path) -> Mapping[str, float]:
        """Metrics of the rollouts of a checkpoint: overall, and by task or instruction if there are
        several.
        """
        update = {"checkpoint": str(checkpoint), "output": str(output)}
        try:
            result = rollout(self._options.model_copy(update=update), reporter=self._reporter)
        except PartialFailure as error:
            if not isinstance(error.result, RolloutResult):
                raise
            result = error.result
        figures = result.figures
        metrics = {name: float(figures[name]) for name in _METRICS}
        groups = figures.get("per_task") or figures["per_instruction"]
        if len(groups) > 1:
            for text, counts in groups.items():
                metrics[f"success_rate/{text}"] = float(counts["success_rate"])
        return metrics
