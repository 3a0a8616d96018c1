"""Rollouts as a job: groups of episodes, the report, the contact sheet, and videos."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.errors import DataError
from vlatool.evaluation.config import RolloutConfig, RolloutTask
from vlatool.evaluation.control import ResizeLog
from vlatool.evaluation.controllers import PolicyController
from vlatool.evaluation.env_processes import EnvInfo, Environments, EnvObservation
from vlatool.evaluation.key_map import observed_value
from vlatool.evaluation.plots import SheetRow, save_contact_sheet
from vlatool.evaluation.rollouts import (
    Rollout,
    RolloutPlan,
    RolloutProgress,
    Rollouts,
)
from vlatool.evaluation.success import success_report
from vlatool.events import counted
from vlatool.jobs.files import FileEntry, file_entry, remove_stale_files
from vlatool.jobs.inputs import input_state, plan_digest
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.models.policy import Policy
from vlatool.results import MERGED, Result
from vlatool.storage.atomic import write_bytes, write_json

REPORT, SHEET, TIMING = "report.json", "episodes.png", "timing.json"
_VIDEOS = "videos"
_SHEET_FRAMES = 7
_PERCENTILES = (50, 90, 99, 100)

# Task, empty without a suite; indices of the episodes.
Group = tuple[str, range]


@dataclass(frozen=True)
class RolloutRecord(Result):
    """The report of rollouts, for the record."""

    report: Mapping[str, Any] = field(metadata=MERGED)


@dataclass(frozen=True)
class RolloutSetup:
    """Parts that the rollouts of all tasks share."""

    environments: Environments
    policy: Policy
    progress: RolloutProgress  # progress over the episodes of all tasks
    log: ResizeLog  # log of resized images
    # Duration of each batch of plans.
    milliseconds: list[float] = field(default_factory=list[float])

    def rollouts(self, task: RolloutConfig, env: EnvInfo) -> Rollouts:
        plan = RolloutPlan(
            seeds=range(task.seed, task.seed + task.episodes),
            choose_instruction=lambda observation, info: _instruction(task, observation, info),
            success_key=task.success_key,
            max_steps=task.max_steps,
            num_rendered=task.contact_sheet_episodes,
            num_videos=task.videos,
        )

        def make_controller(space: Any) -> PolicyController:
            del space
            return PolicyController(self.policy, task, self.log, self.milliseconds)

        return Rollouts(self.environments, env, make_controller, plan, self.progress)


def _instruction(task: RolloutTask, observation: EnvObservation, info: Mapping[str, Any]) -> str:
    if task.instruction is not None:
        return task.instruction
    values = {**info, **observation} if isinstance(observation, Mapping) else info
    with suppress(DataError):
        return str(observed_value(values, task.instruction_key))
    return ""


class RolloutJob:
    """Job with the groups of the rollouts as items; an interrupted run resumes at a group."""

    def __init__(
        self,
        output: Path,  # folder for the report, the contact sheet and the videos
        record: OutputRecord,  # command and options
        # Map from task to its rollouts; one with an empty name without a suite.
        tasks: Mapping[str, Rollouts],
        setup: RolloutSetup,  # what they share
        header: Mapping[str, str],
    ) -> None:
        self._tasks = tasks
        self._setup = setup
        self._header = header
        self._finished: dict[str, list[Rollout]] = {task: [] for task in tasks}
        self._milliseconds: list[float] = []
        self._videos: list[str] = []
        checkpoint = Path(header["checkpoint"])
        self.spec: JobSpec[Group] = JobSpec(
            output=output,
            record=record,
            title="eval rollout",
            item_name="group",
            plan=plan_digest(record.options),
            work=self._work,
            # Other weights give other rollouts, even with the same options.
            state=lambda group: input_state((checkpoint,), [group[1].start, group[1].stop]),
            owned=(REPORT, SHEET, TIMING, f"{_VIDEOS}/*.mp4"),
            volatile=(TIMING,),
            locations=(output, checkpoint.parent.parent),
            progress_count="successes",
            has_arrays=True,
            can_overwrite=False,
            is_replaced_last=True,
        )

    @property
    def items(self) -> Sequence[Group]:
        tasks = self._tasks.items()
        return [(task, group) for task, rollouts in tasks for group in rollouts.groups]

    def name(self, item: Group) -> str:
        """Index of the first episode, six digits, after the number of a task of a suite."""
        task, group = item
        number = f"{[*self._tasks].index(task):03d}-" if task else ""
        return f"{number}{group.start:06d}"

    def begin(self) -> None:
        """Does nothing: the previous report stays until `finish` replaces it."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes the report, the durations and the contact sheet."""
        del run
        output = self.spec.output
        entries: list[FileEntry] = []
        for receipt in receipts:
            self._finished[receipt.facts.get("task", "")] += _rollouts_of(receipt)
            self._milliseconds += receipt.facts.get("plan_ms", [])
            entries += receipt.files
        self._videos = [entry.path for entry in entries]
        self._setup.progress.advance_resumed(sum(map(len, self._finished.values())))
        rows = [row for rollouts in self._finished.values() for row in sheet_rows(rollouts)]
        save_contact_sheet(output / SHEET, rows)
        write_json(output / REPORT, self.report())
        write_json(output / TIMING, {"plan_ms": self.plan_ms()})
        names = [REPORT, SHEET] if rows else [REPORT]
        entries += [file_entry(output, name) for name in names]
        remove_stale_files(output, self.spec.owned, self.spec.volatile, entries)
        return entries

    def result(self, run: JobRun) -> RolloutRecord:
        """The report."""
        del run
        return RolloutRecord(report=self.report())

    def report(self) -> dict[str, Any]:
        """Metrics, and the checkpoint and environment they belong to."""
        rollouts = [rollout for group in self._finished.values() for rollout in group]
        has_sheet = any(rollout.frames for rollout in rollouts)
        report = {
            **self._header,
            "picture": str(self.spec.output / SHEET) if has_sheet else None,
            "report": str(self.spec.output / REPORT),
            **rollout_report(rollouts),
        }
        if "" in self._finished:
            return report
        tasks = [task for task, group in self._finished.items() for _ in group]
        rows = zip(tasks, report["rollouts"], strict=True)
        return report | {
            "per_task": {task: _task_report(group) for task, group in self._finished.items()},
            "rollouts": [{"task": task, **row} for task, row in rows],
        }

    def plan_ms(self) -> dict[str, float]:
        """Percentiles of the duration of a batch of plans, in milliseconds."""
        values = self._milliseconds
        figures: dict[str, float] = {"batches": len(values)}
        if values:
            figures |= {f"p{point}": float(np.percentile(values, point)) for point in _PERCENTILES}
        return {name: round(value, 2) for name, value in figures.items()}

    def videos(self) -> list[str]:
        """Paths of the videos."""
        return [str(self.spec.output / name) for name in self._videos]

    def _work(self, item: Group) -> Receipt:
        task, group = item
        milliseconds = self._setup.milliseconds
        num_before = len(milliseconds)
        rollouts = self._tasks[task].run(group)
        frames = {
            f"{index}.{number}": frame
            for index, rollout in enumerate(rollouts)
            for number, frame in enumerate(rollout.frames)
        }
        rows = [_stored(rollout) for rollout in rollouts]
        facts = {"rollouts": rows, "plan_ms": milliseconds[num_before:]}
        return Receipt(
            "",
            counts={"successes": sum(map(_succeeds, rollouts)), "rollouts": len(rollouts)},
            files=tuple(self._save_video(task, rollout) for rollout in rollouts if rollout.video),
            facts=facts | ({"task": task} if task else {}),
            arrays=frames,
        )

    def _save_video(self, task: str, rollout: Rollout) -> FileEntry:
        words = [*filter(None, [task]), str(rollout.seed), _outcome(rollout)]
        name = f"{_VIDEOS}/{'-'.join(words)}.mp4"
        write_bytes(self.spec.output / name, rollout.video)
        return file_entry(self.spec.output, name)


def _stored(rollout: Rollout) -> dict[str, Any]:
    """Facts of a rollout in a receipt, without images."""
    values = {name: value for name, value in vars(rollout).items() if name != "video"}
    return {**values, "frames": len(rollout.frames)}


def _rollouts_of(receipt: Receipt) -> Iterator[Rollout]:
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
    return {
        **_task_report(rollouts),
        "per_instruction": {
            instruction: success_report(_outcomes(group))
            for instruction, group in sorted(by_instruction.items())
        },
        "rollouts": [{key: getattr(rollout, key) for key in keys} for rollout in rollouts],
    }


def _task_report(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    steps = [rollout.steps for rollout in rollouts if rollout.error is None]
    mean_steps = float(np.mean(steps)) if steps else 0.0
    return {**success_report(_outcomes(rollouts)), "mean_steps": mean_steps}


def _outcomes(rollouts: Sequence[Rollout]) -> list[bool | None]:
    return [None if rollout.error is not None else rollout.success for rollout in rollouts]


def sheet_rows(
    rollouts: Sequence[Rollout], verdict: Callable[[Rollout], tuple[str, bool]] | None = None
) -> list[SheetRow]:
    """Rows of a contact sheet: evenly spaced frames of each rendered episode."""
    rows: list[SheetRow] = []
    for rollout in rollouts:
        if rollout.frames:
            last = len(rollout.frames) - 1
            chosen = [round(i * last / (_SHEET_FRAMES - 1)) for i in range(_SHEET_FRAMES)]
            default = (_outcome(rollout), rollout.success)
            text, is_good = verdict(rollout) if verdict else default
            frames = [rollout.frames[i] for i in chosen]
            label = f"{rollout.instruction}  ({counted(rollout.steps, 'step')})"
            rows.append(SheetRow(label, text, is_good, frames))
    return rows


def _outcome(rollout: Rollout) -> str:
    if rollout.error is not None:
        return "error"
    return "success" if rollout.success else "failure"


def _succeeds(rollout: Rollout) -> bool:
    return rollout.success
