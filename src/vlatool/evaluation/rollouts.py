"""Closed-loop rollouts in Gymnasium environments, several of them in lockstep."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from vlatool.episode import UInt8Array
from vlatool.evaluation.controllers import Controller, EnvObservation, check_action_shape
from vlatool.evaluation.plots import SheetRow, save_contact_sheet
from vlatool.events import Progress, counted
from vlatool.jobs.command import JobResult
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.inputs import input_state, plan_digest
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.storage.atomic import remove_file, write_json

Env = Any
_SHEET_FRAMES = 7
REPORT, SHEET = "report.json", "episodes.png"
_Z_95 = 1.959963985

_log = logging.getLogger(__name__)


@dataclass
class Rollout:
    """Rollout of one episode.

    Attributes:
        seed: Seed of the initial state.
        instruction: Instruction that the controller got.
        success: True if the environment reported success.
        steps: Number of executed actions.
        info: Last info of the environment, JSON values only.
        frames: Rendered images uint8 [H, W, 3]; empty if the episode is not rendered.
        error: Exception of the environment that ended the episode; None if it raised none.
    """

    seed: int
    instruction: str = ""
    success: bool = False
    steps: int = 0
    info: dict[str, Any] = field(default_factory=dict[str, Any])
    frames: list[UInt8Array] = field(default_factory=list[UInt8Array])
    error: str | None = None


@dataclass(frozen=True)
class RolloutPlan:
    """Episodes to run, and when they end and count as success.

    Attributes:
        seeds: Seed of each episode; all different.
        choose_instruction: Function of (observation, info) that returns the instruction for the
            controller.
        success_key: Info key of success; if absent, termination with a reward counts as success.
        max_steps: Maximum number of steps per episode; None: the environment's limit.
        num_rendered: Number of episodes that are rendered, counted from the first.
        parallel: Number of environments that step together.
        options: Function of the seed that returns the options of the environment's reset.
        is_over: Function of (info, instruction) that returns True to end an episode before the
            environment does.
    """

    seeds: Sequence[int]
    choose_instruction: Callable[[EnvObservation, Mapping[str, Any]], str]
    success_key: str
    max_steps: int | None = None
    num_rendered: int = 0
    parallel: int = 25
    options: Callable[[int], dict[str, Any] | None] = lambda seed: None
    is_over: Callable[[Mapping[str, Any], str], bool] = lambda info, instruction: False


class Rollouts:
    """Context manager that runs the episodes of a plan in groups that reuse the same environments.

    Groups are independent: each has its own controller. An environment that raised an exception is
    replaced.
    """

    def __init__(
        self,
        make_env: Callable[[], Env],
        make_controller: Callable[[Env], Controller],
        plan: RolloutPlan,
        bar: Progress,
    ) -> None:
        self._make_env = make_env
        self._make_controller = make_controller
        self._plan = plan
        self._bar = bar
        self._envs: list[Env] = []
        self._num_reported, self._successes = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for env in self._envs:
            _close(env)

    @property
    def groups(self) -> list[range]:
        """For each group, indices of its episodes in the plan."""
        size, count = self._plan.parallel, len(self._plan.seeds)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def run(self, group: range) -> list[Rollout]:
        """Runs the episodes of one group."""
        while len(self._envs) < len(group):
            self._envs.append(self._make_env())
        seeds = [self._plan.seeds[index] for index in group]
        envs = dict(zip(seeds, self._envs, strict=False))
        rendered = seeds[: max(0, self._plan.num_rendered - group.start)]
        lockstep = _Lockstep(envs, self._plan, rendered, self._report_episode)
        rollouts = lockstep.run(self._make_controller(self._envs[0]))
        for rollout in rollouts:
            if rollout.error is not None:
                self._envs.remove(envs[rollout.seed])
                _close(envs[rollout.seed])
        return rollouts

    def advance_resumed(self, episodes: int) -> None:
        """Advances the bar to `episodes`, which include those that an earlier run finished."""
        if episodes > self._num_reported:
            self._bar.advance(episodes - self._num_reported)

    def _report_episode(self, rollout: Rollout) -> None:
        self._num_reported += 1
        self._successes += rollout.success
        self._bar.advance(1, successes=self._successes)


def run_rollouts(
    make_env: Callable[[], Env],
    make_controller: Callable[[Env], Controller],
    plan: RolloutPlan,
    bar: Progress,
) -> list[Rollout]:
    """Runs all episodes of the plan."""
    with Rollouts(make_env, make_controller, plan, bar) as rollouts:
        return [rollout for group in rollouts.groups for rollout in rollouts.run(group)]


class _Lockstep:
    """Environments that step together, so that a policy runs on one batch of observations.

    Args:
        envs: Map from the seed of an episode to its environment.
        plan: Plan of all episodes.
        rendered: Seeds of the episodes that are rendered.
        on_end: Function that is called after each episode.
    """

    def __init__(
        self,
        envs: Mapping[int, Env],
        plan: RolloutPlan,
        rendered: Sequence[int],
        on_end: Callable[[Rollout], None],
    ) -> None:
        self._envs = envs
        self._plan = plan
        self._rendered = rendered
        self._on_end = on_end
        self._rollouts = {seed: Rollout(seed) for seed in envs}
        self._observations: dict[int, EnvObservation] = {}

    def run(self, controller: Controller) -> list[Rollout]:
        """Runs one episode in each environment."""
        for rollout in self._rollouts.values():
            self._call(rollout, self._reset)
        while self._observations:
            instructions = {seed: self._rollouts[seed].instruction for seed in self._observations}
            actions = controller.act(self._observations, instructions)
            for seed, action in actions.items():
                bounded = self._bounded(seed, action)
                self._call(self._rollouts[seed], partial(self._step, action=bounded))
        return list(self._rollouts.values())

    def _call(self, rollout: Rollout, function: Callable[[Rollout], bool]) -> None:
        """Calls an environment; removes the episode when it is over or its environment raises."""
        try:
            is_over = function(rollout)
        except Exception as error:  # noqa: BLE001 - an environment may raise anything
            _log.warning("the episode with seed %s ends: %r", rollout.seed, error, exc_info=True)
            rollout.error = f"{type(error).__name__}: {error}".partition("\n")[0]
            rollout.success, is_over = False, True
        if is_over:
            self._observations.pop(rollout.seed, None)
            self._on_end(rollout)

    def _reset(self, rollout: Rollout) -> bool:
        """Starts an episode; returns False, because none ends before its first step."""
        env, options = self._envs[rollout.seed], self._plan.options(rollout.seed)
        observation, info = env.reset(seed=rollout.seed, options=options)
        rollout.instruction = self._plan.choose_instruction(observation, info)
        self._observations[rollout.seed] = observation
        return False

    def _step(self, rollout: Rollout, action: Any) -> bool:
        """Executes an action; returns True if the episode is over."""
        self._render(rollout)
        step = self._envs[rollout.seed].step(action)
        self._observations[rollout.seed], reward, terminated, truncated, info = step
        rollout.steps += 1
        rollout.info = {key: value for key, value in info.items() if _is_plain(value)}
        fallback = terminated and reward > 0
        rollout.success = rollout.success or bool(info.get(self._plan.success_key, fallback))
        limit = self._plan.max_steps
        is_cut = limit is not None and rollout.steps >= limit
        is_over = bool(terminated or truncated or rollout.success or is_cut)
        is_over = is_over or self._plan.is_over(info, rollout.instruction)
        if is_over:
            self._render(rollout)
        return is_over

    def _bounded(self, seed: int, action: Any) -> Any:
        """Returns the action within the limits of the environment."""
        check_action_shape(self._envs[seed], np.shape(action))
        space = self._envs[seed].action_space
        return np.clip(action, space.low, space.high).astype(space.dtype)

    def _render(self, rollout: Rollout) -> None:
        frame = self._envs[rollout.seed].render() if rollout.seed in self._rendered else None
        if frame is not None:
            rollout.frames.append(np.asarray(frame, np.uint8))


def _close(env: Env) -> None:
    """Closes an environment, which may raise anything after an exception."""
    try:
        env.close()
    except Exception as error:  # noqa: BLE001 - its episodes have ended
        _log.warning("an environment cannot be closed: %r", error)


@dataclass(frozen=True, kw_only=True)
class RolloutRecord(JobResult):
    """The report of rollouts, for the record."""

    report: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The report."""
        return dict(self.report)


class RolloutJob:
    """Job with the groups of the rollouts as items; an interrupted run resumes at a group."""

    def __init__(
        self, output: Path, record: OutputRecord, rollouts: Rollouts, header: Mapping[str, str]
    ) -> None:
        """Creates the job.

        Args:
            output: Folder for the report and the contact sheet.
            record: Command and options.
            rollouts: Rollouts to run.
            header: Values of the report besides the metrics; `checkpoint` is a path.
        """
        self._rollouts = rollouts
        self._header = header
        self._finished: list[Rollout] = []
        checkpoint = Path(header["checkpoint"])
        self.spec: JobSpec[range] = JobSpec(
            output=output,
            record=record,
            title="eval rollout",
            item_name="group",
            plan=plan_digest(record.options),
            work=self._work,
            # Other weights give other rollouts, even with the same options.
            state=lambda group: input_state((checkpoint,), [group.start, group.stop]),
            owned=(REPORT, SHEET),
            locations=(output, checkpoint.parent.parent),
            progress_count="successes",
            has_arrays=True,
            can_overwrite=False,
            is_replaced_last=True,
        )

    @property
    def items(self) -> Sequence[range]:
        """All groups."""
        return self._rollouts.groups

    def name(self, item: range) -> str:
        """Index of the first episode, six digits."""
        return f"{item.start:06d}"

    def begin(self) -> None:
        """Does nothing: the previous report stays until `finish` replaces it."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes the report and the contact sheet."""
        del run
        for receipt in receipts:
            self._finished += _rollouts_of(receipt)
        self._rollouts.advance_resumed(len(self._finished))
        rows = sheet_rows(self._finished)
        if rows:
            save_contact_sheet(self.spec.output / SHEET, rows)
        else:
            remove_file(self.spec.output / SHEET)
        write_json(self.spec.output / REPORT, self.report())
        names = [REPORT, SHEET] if rows else [REPORT]
        return [file_entry(self.spec.output, name) for name in names]

    def result(self, run: JobRun) -> RolloutRecord:
        """The report."""
        del run
        return RolloutRecord(report=self.report())

    def report(self) -> dict[str, Any]:
        """Metrics, and the checkpoint and environment they belong to."""
        has_sheet = any(rollout.frames for rollout in self._finished)
        return {
            **self._header,
            "picture": str(self.spec.output / SHEET) if has_sheet else None,
            "report": str(self.spec.output / REPORT),
            **rollout_report(self._finished),
        }

    def _work(self, group: range) -> Receipt:
        rollouts = self._rollouts.run(group)
        frames = {
            f"{index}.{number}": frame
            for index, rollout in enumerate(rollouts)
            for number, frame in enumerate(rollout.frames)
        }
        rows = [{**vars(rollout), "frames": len(rollout.frames)} for rollout in rollouts]
        successes = sum(rollout.success for rollout in rollouts)
        counts = {"successes": successes, "rollouts": len(rollouts)}
        return Receipt("", counts=counts, facts={"rollouts": rows}, arrays=frames)


def _rollouts_of(receipt: Receipt) -> Iterator[Rollout]:
    """Yields the rollouts of a group from its receipt."""
    for index, stored in enumerate(receipt.facts["rollouts"]):
        frames = [receipt.arrays[f"{index}.{number}"] for number in range(stored["frames"])]
        yield Rollout(**{**stored, "frames": frames})


def rollout_report(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Success rate with its confidence interval, overall and per instruction.

    Episodes that an exception of the environment ended are counted apart, as `errors`.
    """
    by_instruction: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_instruction.setdefault(rollout.instruction, []).append(rollout)
    keys = ("seed", "instruction", "success", "steps", "info", "error")
    steps = [rollout.steps for rollout in rollouts if rollout.error is None]
    return {
        **_success_report(rollouts),
        "mean_steps": float(np.mean(steps)) if steps else 0.0,
        "per_instruction": {
            instruction: _success_report(group)
            for instruction, group in sorted(by_instruction.items())
        },
        "rollouts": [{key: getattr(rollout, key) for key in keys} for rollout in rollouts],
    }


def _success_report(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Success rate and its 95 % confidence interval, over the episodes without an error."""
    successes = [rollout.success for rollout in rollouts if rollout.error is None]
    low, high = wilson_interval(sum(successes), len(successes))
    return {
        "episodes": len(successes),
        "successes": sum(successes),
        "errors": len(rollouts) - len(successes),
        "success_rate": sum(successes) / max(len(successes), 1),
        "confidence_95": [round(low, 4), round(high, 4)],
    }


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a success rate.

    Source: reference/policy 4.2.
    """
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    center = rate + _Z_95**2 / (2 * trials)
    half = _Z_95 * math.sqrt(rate * (1 - rate) / trials + _Z_95**2 / (4 * trials**2))
    scale = 1 + _Z_95**2 / trials
    low, high = (center - half) / scale, (center + half) / scale
    return max(low, 0.0), min(high, 1.0)


def sheet_rows(
    rollouts: Sequence[Rollout], verdict: Callable[[Rollout], tuple[str, bool]] | None = None
) -> list[SheetRow]:
    """Rows of a contact sheet: evenly spaced frames of each rendered episode.

    Args:
        rollouts: Rollouts; those without frames are left out.
        verdict: Function of a rollout that returns the text at the end of its row, and True if that
            is good.
    """
    rows: list[SheetRow] = []
    for rollout in rollouts:
        if rollout.frames:
            last = len(rollout.frames) - 1
            chosen = [round(i * last / (_SHEET_FRAMES - 1)) for i in range(_SHEET_FRAMES)]
            text, is_good = verdict(rollout) if verdict else _success(rollout)
            frames = [rollout.frames[i] for i in chosen]
            label = f"{rollout.instruction}  ({counted(rollout.steps, 'step')})"
            rows.append(SheetRow(label, text, is_good, frames))
    return rows


def _success(rollout: Rollout) -> tuple[str, bool]:
    if rollout.error is not None:
        return "error", False
    return ("success" if rollout.success else "failure"), rollout.success


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
