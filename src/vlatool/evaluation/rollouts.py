"""Runs rollouts in Gymnasium environments; several episodes step together."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.evaluation import controllers
from vlatool.evaluation.config import RolloutConfig, RolloutTask
from vlatool.evaluation.control import ImageSizes
from vlatool.evaluation.environments import (
    Call,
    EnvInfo,
    Environments,
    EnvObservation,
    Reply,
    Start,
)
from vlatool.evaluation.facts import (
    REPORT_PAGE,
    SheetRow,
    command_section,
    rollout_sections,
    save_contact_sheet,
    videos,
)
from vlatool.evaluation.success import success_report
from vlatool.events import Progress, counted
from vlatool.jobs.files import FileEntry, file_entry, remove_stale_files
from vlatool.jobs.job import JobRun, JobSpec, input_state, plan_digest
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.media.video import PAGE_PRESET, VideoEncoder
from vlatool.models.base import Policy
from vlatool.report.page import page
from vlatool.results import MERGED, Result
from vlatool.storage.atomic import write_bytes, write_json, write_text
from vlatool.transforms.neighbors import spread

_VIDEO_CRF = 23
_VIDEO_KEYFRAME_INTERVAL = 20
_DEFAULT_FPS = 10.0

_log = logging.getLogger(__name__)


@dataclass
class Rollout:
    """Rollout of one episode."""

    seed: int  # seed of the initial state
    instruction: str = ""  # instruction that the controller got
    success: bool = False  # True if the environment reported success
    steps: int = 0  # number of executed actions
    max_reward: float | None = None  # greatest finite reward of a step
    # Last info of the environment, JSON values only.
    info: dict[str, Any] = field(default_factory=dict[str, Any])
    # Rendered images uint8 [H, W, 3] for a contact sheet; empty if it is in none.
    frames: list[UInt8Array] = field(default_factory=list[UInt8Array])
    # Exception of the environment that ended the episode; None if it raised none.
    error: str | None = None
    video: bytes = b""  # the mp4 file of the episode; empty without one


@dataclass(frozen=True)
class RolloutPlan:
    """Episodes to run, and when they end and count as success."""

    seeds: Sequence[int]  # seed of each episode; all different
    # Function of (observation, info) that returns the instruction for the controller.
    choose_instruction: Callable[[EnvObservation, Mapping[str, Any]], str]
    success_key: str  # info key of success; if absent, termination with a reward counts as success
    # Maximum number of steps per episode; None: the environment's limit.
    max_steps: int | None = None
    num_rendered: int = 0  # number of episodes of the contact sheet, counted from the first
    num_videos: int = 0  # number of episodes with a video, counted from the first
    parallel: int = 25  # number of environments that step together
    # Function of the seed that returns the options of the environment's reset.
    options: Callable[[int], dict[str, Any] | None] = lambda seed: None
    # Function of (info, instruction) that returns True to end an episode before the environment
    # does.
    is_over: Callable[[Mapping[str, Any], str], bool] = lambda info, instruction: False


class Rollouts:
    """Runs the episodes of a plan, in independent groups that reuse the same environments."""

    def __init__(
        self,
        environments: Environments,  # environments of this process or of others
        env: EnvInfo,  # description of the environment
        make_controller: Callable[[Any], controllers.Controller],
        plan: RolloutPlan,  # the episodes
        progress: "RolloutProgress",  # progress over episodes
    ) -> None:
        self._environments = environments
        self._env = env
        self._make_controller = make_controller
        self._plan = plan
        self._progress = progress

    @property
    def groups(self) -> list[range]:
        """For each group, indices of its episodes in the plan."""
        count = len(self._plan.seeds)
        groups: list[range] = []
        for start in range(0, count, self._plan.parallel):
            groups.append(range(start, min(start + self._plan.parallel, count)))
        return groups

    def run(self, group: range) -> list[Rollout]:
        slots = {self._plan.seeds[index]: index - group.start for index in group}
        rollouts: dict[int, Rollout] = {}
        while len(rollouts) < len(slots):
            # An episode starts again when another one has ended the process of its environment.
            unfinished = {seed: slot for seed, slot in slots.items() if seed not in rollouts}
            lockstep = _Lockstep(self._environments, self._env, self._plan)
            controller = self._make_controller(self._env.action_space)
            for rollout in lockstep.run(unfinished, controller):
                rollouts[rollout.seed] = rollout
                self._progress.add(rollout)
        return [rollouts[seed] for seed in slots]


class RolloutProgress:
    """Progress bar over the episodes of one or several plans."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._num_reported = 0
        self._successes = 0

    def add(self, rollout: Rollout) -> None:
        """Advances the bar by an episode that has ended."""
        self._num_reported += 1
        self._successes += rollout.success
        self._bar.advance(1, successes=self._successes)

    def advance_resumed(self, episodes: int) -> None:
        """Advances the bar to `episodes`, which includes episodes that an earlier run finished."""
        if episodes > self._num_reported:
            self._bar.advance(episodes - self._num_reported)


def run_rollouts(rollouts: Rollouts) -> list[Rollout]:
    finished: list[Rollout] = []
    for group in rollouts.groups:
        finished += rollouts.run(group)
    return finished


class _Lockstep:
    """Episodes that step together, so that a policy runs on one batch of observations."""

    def __init__(self, environments: Environments, env: EnvInfo, plan: RolloutPlan) -> None:
        self._environments = environments
        self._env = env
        self._plan = plan
        self._running: dict[int, Rollout] = {}
        self._observations: dict[int, EnvObservation] = {}
        self._videos: dict[int, VideoEncoder] = {}

    def run(
        self, slots: Mapping[int, int], controller: controllers.Controller
    ) -> Iterator[Rollout]:
        """Yields the episodes as they end, except episodes that have lost their environment.
        `slots` maps each seed to the slot of its environment.
        """
        calls: dict[int, Call] = {}
        for seed, slot in slots.items():
            self._running[seed] = Rollout(seed)
            start = Start(self._env.make_env, seed, self._plan.options(seed))
            calls[seed] = Call(slot, start)
        yield from self._call(calls)
        while self._running:
            instructions = {seed: rollout.instruction for seed, rollout in self._running.items()}
            actions = controller.act(self._observations, instructions)
            calls = {}
            for seed, action in actions.items():
                has_images = controller.needs_images(seed)
                calls[seed] = Call(slots[seed], action=self._bounded(action), has_images=has_images)
            yield from self._call(calls)

    def _call(self, calls: Mapping[int, Call]) -> Iterator[Rollout]:
        """Calls the environments of episodes; yields the episodes that are over."""
        replies = self._environments.call(
            [replace(call, is_rendered=self._is_rendered(seed)) for seed, call in calls.items()]
        )
        for seed, call in calls.items():
            reply = replies.get(call.slot)
            rollout = self._running[seed]
            if reply is None or self._is_over(rollout, call, reply):
                self._observations.pop(seed, None)
                del self._running[seed]
                if reply is not None:
                    rollout.video = self._videos[seed].finish() if seed in self._videos else b""
                    yield rollout

    def _is_over(self, rollout: Rollout, call: Call, reply: Reply) -> bool:
        """Adds a reply to its episode; returns True if the episode is over."""
        if reply.error is not None:
            step = "the reset" if call.start is not None else f"step {rollout.steps + 1}"
            message = "%s: the episode with seed %s ends at %s: %s\n%s"
            name = getattr(self._env.make_env, "name", "environment")
            _log.warning(message, name, rollout.seed, step, reply.error, reply.traceback)
            rollout.error = reply.error
            rollout.success = False
            return True
        self._observations[rollout.seed] = reply.observation
        if reply.frame is not None:
            self._add_frame(rollout, reply.frame)
        if call.start is not None:
            instruction = self._plan.choose_instruction(reply.observation, reply.info)
            rollout.instruction = instruction
            return False
        rollout.steps += 1
        if math.isfinite(reply.reward):
            before = -math.inf if rollout.max_reward is None else rollout.max_reward
            rollout.max_reward = max(reply.reward, before)
        rollout.info = _json_values(reply.info)
        success = reply.info.get(self._plan.success_key, reply.terminated and reply.reward > 0)
        array = np.asarray(success)
        if array.dtype.kind == "f" and bool(np.isnan(array).any()):
            rollout.error = f"{self._plan.success_key!r} of the environment is not a number"
            rollout.success = False
            return True
        rollout.success = rollout.success or bool(np.any(success))
        if reply.terminated or reply.truncated or rollout.success:
            return True
        if self._plan.max_steps is not None and rollout.steps >= self._plan.max_steps:
            return True
        return self._plan.is_over(reply.info, rollout.instruction)

    def _add_frame(self, rollout: Rollout, frame: UInt8Array) -> None:
        """Adds a rendered image to the contact sheet and the video of an episode."""
        number = self._plan.seeds.index(rollout.seed)
        if number < self._plan.num_rendered:
            rollout.frames.append(frame)
        if number >= self._plan.num_videos:
            return
        if rollout.seed not in self._videos:
            self._videos[rollout.seed] = VideoEncoder(
                Fraction(self._env.fps or _DEFAULT_FPS).limit_denominator(1000),
                crf=_VIDEO_CRF,
                preset=PAGE_PRESET,
                keyframe_interval=_VIDEO_KEYFRAME_INTERVAL,
            )
        self._videos[rollout.seed].add(frame)

    def _bounded(self, action: Any) -> Any:
        controllers.check_action_shape(self._env, np.shape(action))
        space = self._env.action_space
        return np.clip(action, space.low, space.high).astype(space.dtype)

    def _is_rendered(self, seed: int) -> bool:
        number = self._plan.seeds.index(seed)
        return number < max(self._plan.num_rendered, self._plan.num_videos)


def _json_values(info: Mapping[str, Any]) -> dict[str, Any]:
    """Texts and numbers in the info of an environment; numbers that are not finite become null."""
    values: dict[str, Any] = {}
    for key, value in info.items():
        if isinstance(value, float) and not np.isfinite(value):
            values[key] = None
        elif value is None or isinstance(value, str | bool | int | float):
            values[key] = value
    return values


REPORT = "report.json"
SHEET = "episodes.png"
TIMING = "timing.json"
_VIDEOS = "videos"
_SHEET_FRAMES = 7
_PERCENTILES = (50, 90, 99, 100)

# (task, "" without a suite; indices of its episodes)
Group = tuple[str, range]


@dataclass(frozen=True)
class RolloutRecord(Result):
    """The report of rollouts, as the record of the output names it."""

    report: Mapping[str, Any] = field(metadata=MERGED)


@dataclass(frozen=True)
class RolloutSetup:
    """What the rollouts of all tasks share."""

    environments: Environments
    policy: Policy
    progress: RolloutProgress  # progress over the episodes of all tasks
    sizes: ImageSizes  # rule for images of other sizes
    command: str = ""  # that gives the same results
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

        def make_controller(space: Any) -> controllers.PolicyController:
            return controllers.PolicyController(self.policy, task, self.sizes, self.milliseconds)

        return Rollouts(self.environments, env, make_controller, plan, self.progress)


def _instruction(task: RolloutTask, observation: EnvObservation, info: Mapping[str, Any]) -> str:
    if task.instruction is not None:
        return task.instruction
    values = {**info, **observation}
    with suppress(DataError):
        return str(controllers.observed_value(values, task.instruction_key))
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
        self._allowed: dict[str, Any] = {}
        self._videos: list[str] = []
        checkpoint = Path(header["checkpoint"])
        self.spec: JobSpec[Group] = JobSpec(
            output=output,
            record=record,
            item_name="group",
            plan=plan_digest(record.options),
            work=self._work,
            # Other weights give other rollouts, even with the same options.
            state=lambda group: input_state((checkpoint,), [group[1].start, group[1].stop]),
            owned=(REPORT_PAGE, REPORT, SHEET, TIMING, f"{_VIDEOS}/*.mp4"),
            volatile=(TIMING,),
            locations=(output, checkpoint.parent.parent),
            progress_count="successes",
            has_arrays=True,
            replaced="last",
        )

    @property
    def items(self) -> Sequence[Group]:
        tasks = self._tasks.items()
        return [(task, group) for task, rollouts in tasks for group in rollouts.groups]

    def name(self, item: Group) -> str:
        task, group = item
        number = f"{[*self._tasks].index(task):03d}-" if task else ""
        return f"{number}{group.start:06d}"

    def begin(self) -> None:
        """Does nothing: the previous report stays until `finish` replaces it."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes the report, the durations and the contact sheet."""
        output = self.spec.output
        entries: list[FileEntry] = []
        for receipt in receipts:
            self._finished[receipt.facts.get("task", "")] += _rollouts_of(receipt)
            self._milliseconds += receipt.facts.get("plan_ms", [])
            self._allowed |= receipt.facts.get("allowed", {})
            entries += receipt.files
        self._videos = [entry.path for entry in entries]
        self._setup.progress.advance_resumed(sum(map(len, self._finished.values())))
        rows = [row for rollouts in self._finished.values() for row in sheet_rows(rollouts)]
        save_contact_sheet(output / SHEET, rows)
        write_json(output / REPORT, self.report())
        self._write_page(rows)
        write_json(output / TIMING, {"plan_ms": self.plan_ms()})
        names = [REPORT_PAGE, REPORT, *([SHEET] if rows else [])]
        entries += [file_entry(output, name) for name in names]
        remove_stale_files(output, self.spec.owned, self.spec.volatile, entries)
        return entries

    def _write_page(self, rows: Sequence[SheetRow]) -> None:
        report = self.report()
        output = self.spec.output
        clips = videos(output, {name: f"seed {Path(name).stem}" for name in self._videos})
        sections = [*rollout_sections(report, rows, clips), command_section(self._setup.command)]
        title = f"Rollouts in {report['env']}"
        weights = f"{report['weights']} weights" if report["weights"] else "published weights"
        subtitle = f"{Path(report['checkpoint']).name}, {weights}"
        html = page(title, subtitle, sections, generator="vlatool eval rollout")
        write_text(output / REPORT_PAGE, html)

    def result(self, run: JobRun) -> RolloutRecord:
        return RolloutRecord(report=self.report())

    def report(self) -> dict[str, Any]:
        """The report: metrics, and the checkpoint and environment to which they belong."""
        rollouts: list[Rollout] = []
        tasks: list[str] = []
        for task, group in self._finished.items():
            rollouts += group
            tasks += [task] * len(group)
        has_sheet = any(rollout.frames for rollout in rollouts)
        report = {
            **self._header,
            "picture": str(self.spec.output / SHEET) if has_sheet else None,
            "page": str(self.spec.output / REPORT_PAGE),
            "report": str(self.spec.output / REPORT),
            **rollout_report(rollouts),
        }
        if self._allowed:
            report["allowed"] = self._allowed
        if "" in self._finished:
            return report
        report["per_task"] = {task: _task_report(group) for task, group in self._finished.items()}
        rows = zip(tasks, report["rollouts"], strict=True)
        report["rollouts"] = [{"task": task, **row} for task, row in rows]
        return report

    def plan_ms(self) -> dict[str, float]:
        """Percentiles of the duration of a batch of plans, in milliseconds."""
        figures: dict[str, float] = {"batches": len(self._milliseconds)}
        if self._milliseconds:
            for point in _PERCENTILES:
                figures[f"p{point}"] = round(float(np.percentile(self._milliseconds, point)), 2)
        return figures

    def videos(self) -> list[str]:
        return [str(self.spec.output / name) for name in self._videos]

    def _work(self, item: Group) -> Receipt:
        task, group = item
        milliseconds = self._setup.milliseconds
        num_before = len(milliseconds)
        rollouts = self._tasks[task].run(group)
        rows: list[dict[str, Any]] = []
        frames: dict[str, UInt8Array] = {}
        videos: list[FileEntry] = []
        successes = 0
        for index, rollout in enumerate(rollouts):
            successes += rollout.success
            rows.append(_report_row(rollout))
            for number, frame in enumerate(rollout.frames):
                frames[f"{index}.{number}"] = frame
            if rollout.video:
                videos.append(self._save_video(task, rollout))
        facts: dict[str, Any] = {"rollouts": rows, "plan_ms": milliseconds[num_before:]}
        facts["allowed"] = self._setup.sizes.allowed
        if task:
            facts["task"] = task
        counts = {"successes": successes, "rollouts": len(rollouts)}
        return Receipt("", counts=counts, files=tuple(videos), facts=facts, arrays=frames)

    def _save_video(self, task: str, rollout: Rollout) -> FileEntry:
        name = f"{rollout.seed}-{_outcome(rollout)}"
        if task:
            name = f"{task}-{name}"
        name = f"{_VIDEOS}/{name}.mp4"
        write_bytes(self.spec.output / name, rollout.video)
        return file_entry(self.spec.output, name)


def _report_row(rollout: Rollout) -> dict[str, Any]:
    """Facts of a rollout in a receipt, without images."""
    values = {name: value for name, value in vars(rollout).items() if name != "video"}
    return {**values, "frames": len(rollout.frames)}


def _rollouts_of(receipt: Receipt) -> Iterator[Rollout]:
    for index, stored in enumerate(receipt.facts["rollouts"]):
        frames = [receipt.arrays[f"{index}.{number}"] for number in range(stored["frames"])]
        yield Rollout(**{**stored, "frames": frames})


def rollout_report(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Success rate with its interval, overall and per instruction, and `errors` apart."""
    by_instruction: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_instruction.setdefault(rollout.instruction, []).append(rollout)
    per_instruction: dict[str, Mapping[str, Any]] = {}
    for instruction, group in sorted(by_instruction.items()):
        per_instruction[instruction] = success_report(_outcomes(group))
    keys = ("seed", "instruction", "success", "steps", "max_reward", "info", "error")
    rows: list[dict[str, Any]] = []
    for rollout in rollouts:
        rows.append({key: getattr(rollout, key) for key in keys})
    return {**_task_report(rollouts), "per_instruction": per_instruction, "rollouts": rows}


def _task_report(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    whole = [rollout for rollout in rollouts if rollout.error is None]
    mean_steps = float(np.mean([rollout.steps for rollout in whole])) if whole else 0.0
    rewards = [rollout.max_reward for rollout in whole if rollout.max_reward is not None]
    mean_reward = float(np.mean(rewards)) if rewards else None
    report = success_report(_outcomes(rollouts))
    return {**report, "mean_steps": mean_steps, "mean_max_reward": mean_reward}


def _outcomes(rollouts: Sequence[Rollout]) -> list[bool | None]:
    return [None if rollout.error is not None else rollout.success for rollout in rollouts]


def sheet_rows(
    rollouts: Sequence[Rollout], verdict: Callable[[Rollout], tuple[str, bool]] | None = None
) -> list[SheetRow]:
    """Rows of a contact sheet: evenly spaced frames of each rendered episode."""
    rows: list[SheetRow] = []
    for rollout in rollouts:
        if not rollout.frames:
            continue
        text = _outcome(rollout)
        is_good = rollout.success
        if verdict is not None:
            text, is_good = verdict(rollout)
        frames = [rollout.frames[index] for index in spread(len(rollout.frames), _SHEET_FRAMES)]
        steps = counted(rollout.steps, "step")
        label = f"seed {rollout.seed}: {rollout.instruction}  ({steps})"
        rows.append(SheetRow(label, text, is_good, frames))
    return rows


def _outcome(rollout: Rollout) -> str:
    if rollout.error is not None:
        return "error"
    return "success" if rollout.success else "failure"
