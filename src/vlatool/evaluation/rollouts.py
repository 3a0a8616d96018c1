"""Closed-loop rollouts in Gymnasium environments, several of them in lockstep."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.evaluation.controllers import Controller, EnvObservation
from vlatool.evaluation.metrics import success_report
from vlatool.evaluation.plots import SheetRow, save_contact_sheet
from vlatool.events import Progress
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
# Key of the instruction in journals of earlier versions.
_OLD_INSTRUCTION = "told"


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
    """

    seed: int
    instruction: str
    success: bool = False
    steps: int = 0
    info: dict[str, Any] = field(default_factory=dict[str, Any])
    frames: list[UInt8Array] = field(default_factory=list[UInt8Array])


@dataclass(frozen=True)
class RolloutPlan:
    """Episodes to run, and when they end and count as success.

    Attributes:
        seeds: Seed of each episode.
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

    Groups are independent: each has its own controller.
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
            env.close()

    @property
    def groups(self) -> list[range]:
        """For each group, indices of its episodes in the plan."""
        size, count = self._plan.parallel, len(self._plan.seeds)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def run(self, group: range) -> list[Rollout]:
        """Runs the episodes of one group."""
        while len(self._envs) < len(group):
            self._envs.append(self._make_env())
        envs = self._envs[: len(group)]
        lockstep = _Lockstep(envs, self._make_controller(envs[0]), self._plan)
        seeds = [self._plan.seeds[index] for index in group]
        num_rendered = max(0, self._plan.num_rendered - group.start)
        return lockstep.run(seeds, num_rendered, self._report_episode)

    def advance_resumed(self, episodes: int) -> None:
        """Advances the bar to `episodes`, which include those that an earlier run finished."""
        if episodes > self._num_reported:
            self._bar.advance(episodes - self._num_reported)

    def _report_episode(self, success: bool) -> None:  # noqa: FBT001 - the result of an episode
        self._num_reported += 1
        self._successes += success
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
    """Environments that step together, so that a policy runs on one batch of observations."""

    def __init__(self, envs: Sequence[Env], controller: Controller, plan: RolloutPlan) -> None:
        self._envs = envs
        self._controller = controller
        self._plan = plan

    def run(
        self, seeds: Sequence[int], num_rendered: int, on_end: Callable[[bool], None]
    ) -> list[Rollout]:
        """Runs one episode in each environment; calls `on_end(success)` after each."""
        observations: dict[int, EnvObservation] = {}
        rollouts: dict[int, Rollout] = {}
        for number, (env, seed) in enumerate(zip(self._envs, seeds, strict=True)):
            observation, info = env.reset(seed=seed, options=self._plan.options(seed))
            observations[number] = observation
            rollouts[number] = Rollout(seed, self._plan.choose_instruction(observation, info))
        while observations:
            instructions = {number: rollouts[number].instruction for number in observations}
            actions = self._controller.act(observations, instructions)
            for number, action in actions.items():
                rollout = rollouts[number]
                is_rendered = number < num_rendered
                if is_rendered:
                    self._render(number, rollout)
                observation, done = self._step(number, action, rollout)
                observations[number] = observation
                if done:
                    if is_rendered:
                        self._render(number, rollout)
                    del observations[number]
                    on_end(rollout.success)
        return list(rollouts.values())

    def _step(self, number: int, action: Any, rollout: Rollout) -> tuple[EnvObservation, bool]:
        space = self._envs[number].action_space
        if np.shape(action) != space.shape:
            raise DataError(
                f"the action has shape {np.shape(action)}, the environment takes {space.shape}",
                hint="correct `action`: its fields, concatenated in order, must have the shape of "
                "the environment's action space",
                code="data.action_shape",
            )
        bounded = np.clip(action, space.low, space.high).astype(space.dtype)
        observation, reward, terminated, truncated, info = self._envs[number].step(bounded)
        rollout.steps += 1
        rollout.info = {key: value for key, value in info.items() if _is_plain(value)}
        fallback = terminated and reward > 0
        rollout.success = rollout.success or bool(info.get(self._plan.success_key, fallback))
        limit = self._plan.max_steps
        is_cut = limit is not None and rollout.steps >= limit
        is_over = terminated or truncated or rollout.success or is_cut
        return observation, bool(is_over or self._plan.is_over(info, rollout.instruction))

    def _render(self, number: int, rollout: Rollout) -> None:
        frame = self._envs[number].render()
        if frame is not None:
            rollout.frames.append(np.asarray(frame, np.uint8))


@dataclass(frozen=True, kw_only=True)
class RolloutRecord(JobResult):
    """The report of rollouts, for the record."""

    report: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The report."""
        return dict(self.report)


class RolloutJob:
    """Job whose items are the groups of the rollouts; an interrupted run resumes at a group."""

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
        row = dict(stored)
        if _OLD_INSTRUCTION in row:
            row["instruction"] = row.pop(_OLD_INSTRUCTION)
        row["frames"] = [receipt.arrays[f"{index}.{number}"] for number in range(row["frames"])]
        yield Rollout(**row)


def rollout_report(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Success rate with its confidence interval, overall and per instruction."""
    by_instruction: dict[str, list[bool]] = {}
    for rollout in rollouts:
        by_instruction.setdefault(rollout.instruction, []).append(rollout.success)
    keys = ("seed", "instruction", "success", "steps", "info")
    return {
        **success_report([rollout.success for rollout in rollouts]),
        "mean_steps": float(np.mean([rollout.steps for rollout in rollouts])),
        "per_instruction": {
            instruction: success_report(successes)
            for instruction, successes in sorted(by_instruction.items())
        },
        "rollouts": [{key: getattr(rollout, key) for key in keys} for rollout in rollouts],
    }


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
            label = f"{rollout.instruction}  ({rollout.steps} steps)"
            rows.append(SheetRow(label, text, is_good, frames))
    return rows


def _success(rollout: Rollout) -> tuple[str, bool]:
    return ("success" if rollout.success else "failure"), rollout.success


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
