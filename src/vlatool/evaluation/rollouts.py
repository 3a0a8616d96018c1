"""Closed-loop success in Gymnasium environments, several of them in lockstep."""

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
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.inputs import current_inputs, input_state, plan_digest
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.storage.atomic import remove_file, write_json

Env = Any
_SHEET_FRAMES = 7
REPORT, SHEET = "report.json", "episodes.png"


@dataclass
class Rollout:
    """One episode.

    Attributes:
        seed: Of the start.
        told: Instruction that the controller was given.
        success: Whether the environment said so.
        steps: Actions carried out.
        info: The environment's last info, JSON-able values only.
        frames: Rendered pictures, if wanted.
    """

    seed: int
    told: str
    success: bool = False
    steps: int = 0
    info: dict[str, Any] = field(default_factory=dict[str, Any])
    frames: list[UInt8Array] = field(default_factory=list[UInt8Array])


@dataclass(frozen=True)
class RolloutPlan:
    """Which episodes are run and how they are judged.

    Attributes:
        seeds: One per episode.
        tell: (observation, info) to the instruction that the controller gets.
        success_key: Info key that tells success; where absent, termination with reward counts.
        max_steps: Cut, if given.
        pictured: How many of the first episodes are rendered.
        parallel: Environments that step together.
        options: (seed) to options of the environment's reset.
        ends: (info, told) to whether the episode is over for another reason than the
            environment's.
    """

    seeds: Sequence[int]
    choose_instruction: Callable[[EnvObservation, Mapping[str, Any]], str]
    success_key: str
    max_steps: int | None = None
    num_rendered: int = 0
    parallel: int = 25
    options: Callable[[int], dict[str, Any] | None] = lambda seed: None
    is_over: Callable[[Mapping[str, Any], str], bool] = lambda info, told: False


class Rollouts:
    """Runs the episodes of a plan, a group at a time in environments that are made once.

    Groups do not know of each other: each has a controller of its own. A context manager.
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
        self._told, self._successes = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for env in self._envs:
            env.close()

    @property
    def groups(self) -> list[range]:
        """Places in the plan of the episodes that step together."""
        size, count = self._plan.parallel, len(self._plan.seeds)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def run(self, group: range) -> list[Rollout]:
        """The episodes of one group."""
        while len(self._envs) < len(group):
            self._envs.append(self._make_env())
        envs = self._envs[: len(group)]
        lockstep = _Lockstep(envs, self._make_controller(envs[0]), self._plan)
        seeds = [self._plan.seeds[place] for place in group]
        return lockstep.run(seeds, max(0, self._plan.num_rendered - group.start), self._tell)

    def catch_up(self, episodes: int) -> None:
        """Tells of the episodes that an earlier run had done, so that the bar ends at its end."""
        if episodes > self._told:
            self._bar.advance(episodes - self._told)

    def _tell(self, success: bool) -> None:  # noqa: FBT001 - what became of an episode
        self._told += 1
        self._successes += success
        self._bar.advance(1, successes=self._successes)


def run_rollouts(
    make_env: Callable[[], Env],
    make_controller: Callable[[Env], Controller],
    plan: RolloutPlan,
    bar: Progress,
) -> list[Rollout]:
    """Runs every episode of the plan."""
    with Rollouts(make_env, make_controller, plan, bar) as rollouts:
        return [one for group in rollouts.groups for one in rollouts.run(group)]


class _Lockstep:
    """Environments that step together, so that a policy plans for all of them at once."""

    def __init__(self, envs: Sequence[Env], controller: Controller, plan: RolloutPlan) -> None:
        self._envs = envs
        self._controller = controller
        self._plan = plan

    def run(self, seeds: Sequence[int], imaged: int, tell: Callable[[bool], None]) -> list[Rollout]:
        """One episode in each environment; `tell` hears whether it succeeded."""
        observations: dict[int, EnvObservation] = {}
        rollouts: dict[int, Rollout] = {}
        for number, (env, seed) in enumerate(zip(self._envs, seeds, strict=True)):
            observation, info = env.reset(seed=seed, options=self._plan.options(seed))
            observations[number] = observation
            rollouts[number] = Rollout(seed, self._plan.choose_instruction(observation, info))
        while observations:
            told = {number: rollouts[number].told for number in observations}
            actions = self._controller.act(observations, told)
            for number, action in actions.items():
                rollout = rollouts[number]
                self._image(number, rollout, imaged)
                observation, done = self._step(number, action, rollout)
                observations[number] = observation
                if done:
                    self._image(number, rollout, imaged)
                    del observations[number]
                    tell(rollout.success)
        return list(rollouts.values())

    def _step(self, number: int, action: Any, rollout: Rollout) -> tuple[EnvObservation, bool]:
        space = self._envs[number].action_space
        if np.shape(action) != space.shape:
            raise DataError(
                f"the action is {np.shape(action)}, the environment takes {space.shape}",
                hint="correct `action`: its parts must fill the environment's action in order",
                code="data.action_shape",
            )
        bounded = np.clip(action, space.low, space.high).astype(space.dtype)
        observation, reward, terminated, truncated, info = self._envs[number].step(bounded)
        rollout.steps += 1
        rollout.info = {key: value for key, value in info.items() if _is_plain(value)}
        fallback = terminated and reward > 0
        rollout.success = rollout.success or bool(info.get(self._plan.success_key, fallback))
        limit = self._plan.max_steps
        cut = limit is not None and rollout.steps >= limit
        over = terminated or truncated or rollout.success or cut
        return observation, bool(over or self._plan.is_over(info, rollout.told))

    def _image(self, number: int, rollout: Rollout, imaged: int) -> None:
        if number < imaged:
            frame = self._envs[number].render()
            if frame is not None:
                rollout.frames.append(np.asarray(frame, np.uint8))


class RolloutJob:
    """The groups of some rollouts; a run that was ended goes on with the next group."""

    def __init__(
        self, output: Path, record: OutputRecord, rollouts: Rollouts, told: Mapping[str, str]
    ) -> None:
        """Prepares a job.

        Args:
            output: Folder for report and picture.
            record: The command and its options.
            rollouts: Runs a group.
            told: What the report says besides the figures; its `checkpoint` is a path.
        """
        self._rollouts = rollouts
        self._told = told
        self._done: list[Rollout] = []
        checkpoint = Path(told["checkpoint"])
        self.spec: JobSpec[range] = JobSpec(
            output=output,
            record=record,
            title="eval rollout",
            item_name="group",
            plan=plan_digest(record.options),
            work=self._work,
            # Other weights are other rollouts, whatever else is the same.
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
        """Every group."""
        return self._rollouts.groups

    def name(self, item: range) -> str:
        """By its first episode."""
        return f"{item.start:06d}"

    def inputs(self) -> Mapping[str, Any]:
        """The checkpoint."""
        return current_inputs(self.items, self.name, self.spec.state, self.spec.item_name)

    def begin(self) -> None:
        """Nothing: an earlier report stays until there is a new one."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Puts the rollouts together and draws them."""
        del run
        for receipt in receipts:
            self._done += _rollouts_of(receipt)
        self._rollouts.catch_up(len(self._done))
        rows = sheet_rows(self._done)
        if rows:
            save_contact_sheet(self.spec.output / SHEET, rows)
        else:
            remove_file(self.spec.output / SHEET)
        write_json(self.spec.output / REPORT, self.report())
        names = [REPORT, SHEET] if rows else [REPORT]
        return [file_entry(self.spec.output, name) for name in names]

    def result(self, run: JobRun) -> Mapping[str, Any]:
        """The report."""
        del run
        return self.report()

    def report(self) -> dict[str, Any]:
        """Figures, and where they come from."""
        is_drawn = any(one.frames for one in self._done)
        return {
            **self._told,
            "picture": str(self.spec.output / SHEET) if is_drawn else None,
            "report": str(self.spec.output / REPORT),
            **rollout_report(self._done),
        }

    def _work(self, group: range) -> Receipt:
        done = self._rollouts.run(group)
        frames = {
            f"{place}.{number}": frame
            for place, one in enumerate(done)
            for number, frame in enumerate(one.frames)
        }
        info = [{**vars(one), "frames": len(one.frames)} for one in done]
        counts = {"successes": sum(one.success for one in done), "rollouts": len(done)}
        return Receipt("", counts=counts, facts={"rollouts": info}, arrays=frames)


def _rollouts_of(receipt: Receipt) -> Iterator[Rollout]:
    for place, info in enumerate(receipt.facts["rollouts"]):
        frames = [receipt.arrays[f"{place}.{number}"] for number in range(info["frames"])]
        yield Rollout(**{**info, "frames": frames})


def rollout_report(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Success with its confidence interval, overall and per instruction."""
    by_instruction: dict[str, list[bool]] = {}
    for one in rollouts:
        by_instruction.setdefault(one.told, []).append(one.success)
    return {
        **success_report([one.success for one in rollouts]),
        "mean_steps": float(np.mean([one.steps for one in rollouts])),
        "per_instruction": {
            told: success_report(results) for told, results in sorted(by_instruction.items())
        },
        "rollouts": [
            {"seed": one.seed, "told": one.told, "success": one.success, "steps": one.steps}
            | {"info": one.info}
            for one in rollouts
        ],
    }


def sheet_rows(
    rollouts: Sequence[Rollout], verdict: Callable[[Rollout], tuple[str, bool]] | None = None
) -> list[SheetRow]:
    """Rows of a contact sheet: a few frames of each pictured episode, evenly spread.

    Args:
        rollouts: Those without frames are left out.
        verdict: What is written at the end of a row, and whether it is good news.
    """
    rows: list[SheetRow] = []
    for one in rollouts:
        if one.frames:
            last = len(one.frames) - 1
            chosen = [round(i * last / (_SHEET_FRAMES - 1)) for i in range(_SHEET_FRAMES)]
            word, good = verdict(one) if verdict else _success(one)
            frames = [one.frames[i] for i in chosen]
            rows.append(SheetRow(f"{one.told}  ({one.steps} steps)", word, good, frames))
    return rows


def _success(rollout: Rollout) -> tuple[str, bool]:
    return ("success" if rollout.success else "failure"), rollout.success


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
