"""Complete pipeline on built-in data: sample, preprocess, train, evaluate, report."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.config.base import ConfigModel, option
from vlatool.config.resolve import Override, load_config
from vlatool.episode import Episode, UInt8Array
from vlatool.errors import missing_package, requirements
from vlatool.evaluation.config import RolloutConfig, RolloutTask
from vlatool.evaluation.environments import environment_maker, with_mapping
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.ownership import single_output
from vlatool.jobs.record import OutputRecord
from vlatool.recordings.spartan.config import SpartanConfig
from vlatool.recordings.spartan.reader import SpartanReader
from vlatool.report.charts import metric_charts
from vlatool.report.facts import Curve, Part, Section, Text, Video, Videos
from vlatool.report.page import page
from vlatool.results import Result
from vlatool.storage.atomic import write_json, write_text
from vlatool.storage.uri import local_path
from vlatool.training.config import TrainConfig
from vlatool.transforms.neighbors import spread
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.train import TrainResult, train
from vlatool.world.registration import ENVIRONMENT
from vlatool.world.scene import COLORS, instruction_for

if TYPE_CHECKING:
    from vlatool.evaluation.controllers import Controller
    from vlatool.evaluation.rollouts import Rollout

_FIRST_SEED = 500_000
_NUM_RENDERED = 6
_NUM_RENDERED_WRONG = 4
_NUM_VIDEOS = len(COLORS)  # one per goal: goals alternate
_OWN_DATA = "vlatool train --preset policy-tiny --data RECORDINGS"
_ABOUT_OWN_DATA = (
    "RECORDINGS is your folder, file or LeRobot data set. The command makes the training data "
    "first, trains a small policy on a CPU in minutes, and prints what to do next. "
    "The command vlatool presets lists larger ones."
)
_ABOUT_WRONG = (
    "The initial states are the same, but the instruction names another block than the goal of the "
    "environment. A policy that follows its instruction puts the block of the instruction into the "
    "bin and so fails the goal."
)
_ROLLOUTS, _WRONG_ROLLOUTS, _REPORT, _REPORT_JSON = _FILES = (
    "rollouts.png",
    "wrong-instruction.png",
    "report.html",
    "report.json",
)


class DemoConfig(ConfigModel):
    """Size of the demo; the defaults take minutes on two processors."""

    output: str = option("demo", "Folder for data, run and report.")
    seed: int = option(0, "Seed of episodes and weights.", ge=0)
    episodes: int = option(200, "Number of recorded episodes.", ge=1)
    steps: int = option(5300, "Number of optimizer steps.", ge=1)
    rollouts: int = option(50, "Rollouts of each evaluation.", ge=1)


@dataclass(frozen=True)
class DemoResult(Result):
    """Measured results of the demo."""

    success_rate: float  # of the trained policy
    confidence_95: Sequence[float]  # interval of that rate
    # Success rates of random actions and of doing nothing, from the same starts.
    baselines: Mapping[str, float]
    # Success rate at the true goal if the policy is given the instruction of another goal.
    wrong_instruction_success_rate: float
    # Share of these rollouts that reach the goal of the wrong instruction.
    obeyed_wrong_instruction_rate: float
    per_instruction: Mapping[str, Any]  # map from instruction to its successes and episodes
    episodes: int  # recorded
    rollouts: int  # of each evaluation
    samples: int  # of the training data
    parameters: int  # of the policy
    loss: float | None  # the last one of the training
    steps: int  # of the optimizer
    stages: Mapping[str, float]  # map from stage to its duration in seconds
    seconds: float  # of all stages
    report: str  # path of the HTML page
    seed: int  # of episodes and weights
    command: str  # gives the same results on equal hardware and software

    def lines(self) -> list[str]:
        (low, high), steps = self.confidence_95, counted(self.steps, "step")
        rows = [
            ("trained policy", _percent(self.success_rate)),
            ("   95 % interval", f"{100 * low:.0f} to {100 * high:.0f} %"),
            *(
                (f"   {name}", f"{counts['successes']} of {counts['episodes']}")
                for name, counts in self.per_instruction.items()
            ),
            ("random actions", _percent(self.baselines["random"])),
            ("doing nothing", _percent(self.baselines["do_nothing"])),
            ("wrong instruction: true goal", _percent(self.wrong_instruction_success_rate)),
            ("wrong instruction: its goal", _percent(self.obeyed_wrong_instruction_rate)),
        ]
        return [
            f"success over {self.rollouts} unseen starts",
            *(f"{name:<34}{value:>14}" for name, value in rows),
            f"{steps}, {counted(self.samples, 'sample')}, {self.seconds:.0f} s",
            f"seed {self.seed}: {self.command}",
            f"report: {self.report}",
            f"with your own recordings: {_OWN_DATA}",
        ]


def demo(config: DemoConfig, *, reporter: Reporter = NULL) -> DemoResult:
    """Runs the pipeline in `output`; complete stages are not repeated.

    Raises:
        UsageError: The output has different content or was written with other options.
        EnvironmentProblem: A package that training needs is not installed.
    """
    for package in requirements().get("train", ()):
        if find_spec(package) is None:
            raise missing_package(package)
    paths = _Paths(local_path(config.output))
    # No options: outputs of earlier stages stay valid if options of later ones change.
    with single_output(paths.root, OutputRecord("demo", {}), _FILES):
        return _demo(config, paths, reporter)


def _demo(config: DemoConfig, paths: "_Paths", reporter: Reporter) -> DemoResult:
    stopwatch = _Stopwatch()
    _record(config, paths, reporter)
    stopwatch.lap("sample")
    samples = _frames(paths, reporter)
    stopwatch.lap("preprocess")
    trained = _train(config, paths, reporter)
    stopwatch.lap("train")
    evaluation = _evaluate(config, paths, reporter)
    stopwatch.lap("evaluate")
    result = _result(config, paths, samples, trained, evaluation, stopwatch)
    write_demo_report(paths, result.document(), evaluation)
    write_json(paths.root / _REPORT_JSON, result.document())
    return result


class _Paths:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "raw"
        self.data = root / "data"
        self.run = root / "run"
        self.report = root / _REPORT


class _Stopwatch:
    """Duration of each stage in seconds."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.stages[stage] = round(now - self._last, 1)
        self._last = now


@dataclass(frozen=True)
class _Evaluation:
    """Rollouts of the four evaluations and their contact sheets."""

    policy: list["Rollout"]
    random: list["Rollout"]
    do_nothing: list["Rollout"]
    wrong: list["Rollout"]
    sheets: Mapping[str, Path]


def _log_command(reporter: Reporter, *words: object) -> None:
    """Logs the command that is equivalent to the next stage."""
    reporter.note(f"$ vlatool {shlex.join(str(word) for word in words)}")


def _record(config: DemoConfig, paths: _Paths, reporter: Reporter) -> None:
    count = config.episodes
    seed = config.seed
    _log_command(reporter, "sample", "spartan", paths.raw, "--episodes", count, "--seed", seed)
    sample(
        SampleConfig(layout="spartan", output=str(paths.raw), episodes=count, seed=seed),
        reporter=reporter,
    )


def _frames(paths: _Paths, reporter: Reporter) -> int:
    words = ("preprocess", "spartan", paths.raw, "--preset", "world-windows")
    _log_command(reporter, *words, "--output", paths.data)
    typed = {"format": "spartan", "sources": [str(paths.raw)], "output": str(paths.data)}
    resolved = load_config(PreprocessConfig, presets=["world-windows"], overrides=_overrides(typed))
    return preprocess(resolved.config, reporter=reporter).samples


def _train(config: DemoConfig, paths: _Paths, reporter: Reporter) -> TrainResult:
    words = ["train", "--preset", "world-pick", "--data", paths.data, "--output", paths.run]
    words += ["--total-train-steps", config.steps, "--hparams.seed", config.seed]
    _log_command(reporter, *words)
    typed = {
        "data.dataset_manifest": [str(paths.data)],
        "save_path": str(paths.root),
        "name": paths.run.name,
        "total_train_steps": config.steps,
        "hparams.seed": config.seed,
    }
    resolved = load_config(TrainConfig, presets=["world-pick"], overrides=_overrides(typed))
    return train(resolved.config, reporter=reporter)


def _overrides(typed: Mapping[str, Any]) -> list[Override]:
    return [Override(key, value, "demo") for key, value in typed.items()]


def _evaluate(config: DemoConfig, paths: _Paths, reporter: Reporter) -> _Evaluation:
    from vlatool.evaluation.control import ImageSizes
    from vlatool.evaluation.controllers import HoldController, PolicyController, RandomController
    from vlatool.evaluation.facts import save_contact_sheet
    from vlatool.evaluation.policy_runner import open_policy
    from vlatool.evaluation.rollouts import RolloutPlan, sheet_rows

    words = ["eval", "rollout", paths.run, "--env", ENVIRONMENT, "--episodes", config.rollouts]
    _log_command(reporter, *words, "--seed", _FIRST_SEED)
    settings = with_mapping(RolloutConfig(env=ENVIRONMENT, seed=_FIRST_SEED))
    policy, _ = open_policy(str(paths.run), settings.weights, settings)
    sizes = ImageSizes(policy.sees, reporter.note)
    seeds = range(_FIRST_SEED, _FIRST_SEED + config.rollouts)
    true_plan = RolloutPlan(
        seeds,
        _true_instruction,
        "success",
        num_rendered=_NUM_RENDERED,
        num_videos=_NUM_VIDEOS,
        options=_goal,
    )
    wrong_plan = RolloutPlan(
        seeds,
        _wrong_instruction,
        "success",
        num_rendered=_NUM_RENDERED_WRONG,
        options=_goal,
        is_over=_obeyed,
    )
    baseline_plan = RolloutPlan(seeds, _true_instruction, "success", options=_goal)

    without_cameras = RolloutTask(env=ENVIRONMENT, env_options={"cameras": 0})

    def roll_out(
        name: str, make_controller: Callable[[Any], "Controller"], plan: RolloutPlan
    ) -> "list[Rollout]":
        task = without_cameras if plan is baseline_plan else settings
        from vlatool.evaluation.environments import LocalEnvironments
        from vlatool.evaluation.rollouts import RolloutProgress, Rollouts, run_rollouts

        with (
            reporter.progress(name, len(plan.seeds), "episodes") as bar,
            LocalEnvironments() as environments,
        ):
            env = environments.info(environment_maker(task))
            progress = RolloutProgress(bar)
            return run_rollouts(Rollouts(environments, env, make_controller, plan, progress))

    def policy_controller(_: Any) -> "Controller":
        return PolicyController(policy, settings, sizes)

    policy_rollouts = roll_out("policy", policy_controller, true_plan)
    wrong_rollouts = roll_out("policy, wrong instruction", policy_controller, wrong_plan)
    random_rollouts = roll_out(
        "random", lambda space: RandomController(space, config.seed), baseline_plan
    )
    idle_rollouts = roll_out(
        "doing nothing", lambda space: HoldController("proprio"), baseline_plan
    )
    sheets = {"policy": paths.root / _ROLLOUTS, "wrong": paths.root / _WRONG_ROLLOUTS}
    save_contact_sheet(sheets["policy"], sheet_rows(policy_rollouts))
    save_contact_sheet(sheets["wrong"], sheet_rows(wrong_rollouts, _obeyed_label))
    return _Evaluation(policy_rollouts, random_rollouts, idle_rollouts, wrong_rollouts, sheets)


def _goal(seed: int) -> dict[str, Any]:
    """Options of a rollout; goals alternate, so that each occurs equally often."""
    return {"target": COLORS[seed % len(COLORS)]}


def _true_instruction(observation: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    return str(observation["instruction"])


def _wrong_instruction(observation: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    return instruction_for(COLORS[(COLORS.index(info["target"]) + 1) % len(COLORS)])


def _obeyed(info: Mapping[str, Any], instruction: str) -> bool:
    """True if the block in the bin is the block that the instruction names."""
    return info["placed"] is not None and instruction_for(info["placed"]) == instruction


def _obeyed_label(rollout: "Rollout") -> tuple[str, bool]:
    obeyed = _obeyed(rollout.info, rollout.instruction)
    return ("followed the instruction" if obeyed else "did not"), obeyed


def _result(
    config: DemoConfig,
    paths: _Paths,
    samples: int,
    trained: TrainResult,
    evaluation: _Evaluation,
    stopwatch: _Stopwatch,
) -> DemoResult:
    from vlatool.evaluation.rollouts import rollout_report

    metrics = rollout_report(evaluation.policy)
    obeyed = [_obeyed(rollout.info, rollout.instruction) for rollout in evaluation.wrong]
    return DemoResult(
        success_rate=metrics["success_rate"],
        confidence_95=metrics["confidence_95"],
        baselines={
            "random": rollout_report(evaluation.random)["success_rate"],
            "do_nothing": rollout_report(evaluation.do_nothing)["success_rate"],
        },
        wrong_instruction_success_rate=rollout_report(evaluation.wrong)["success_rate"],
        obeyed_wrong_instruction_rate=sum(obeyed) / len(obeyed),
        per_instruction=metrics["per_instruction"],
        episodes=config.episodes,
        rollouts=config.rollouts,
        samples=samples,
        parameters=trained.parameters,
        loss=trained.loss,
        steps=trained.steps,
        stages=stopwatch.stages,
        seconds=round(sum(stopwatch.stages.values()), 1),
        report=str(paths.report),
        seed=config.seed,
        command=_command(config),
    )


def _command(config: DemoConfig) -> str:
    words = ["vlatool", "demo"]
    for key, value in config.model_dump(exclude={"output"}).items():
        words += [f"--{key}", str(value)]
    return shlex.join(words)


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"


_STRIP_FRAMES = 8


def write_demo_report(paths: _Paths, result: Mapping[str, Any], evaluation: _Evaluation) -> None:
    low, high = result["confidence_95"]
    rows = [
        ("Trained policy", result["success_rate"], f"95 % interval {low:.0%} to {high:.0%}"),
        *(
            (f"\N{EM SPACE}{instruction}", report["success_rate"], f"{report['episodes']} episodes")
            for instruction, report in result["per_instruction"].items()
        ),
        ("Random actions", result["baselines"]["random"], "same initial states"),
        ("No motion", result["baselines"]["do_nothing"], "same initial states"),
    ]
    from vlatool.evaluation.facts import command_section, image_strips, rate_table, saved_image

    reader = SpartanReader(SpartanConfig())
    episode = reader.read(next(iter(reader.discover([paths.raw]))))
    sentence = episode.language["original"][0]
    strips = image_strips({name: _frames_of(episode, name) for name in episode.cameras})
    text = f"“{sentence}”, {episode.num_frames} frames at {episode.fps:.0f} per second"
    clips: list[Video] = []
    for rollout in evaluation.policy:
        if rollout.video:
            done = "done" if rollout.success else "failed"
            clips.append(Video(rollout.video, f"{rollout.instruction}: {done}"))
    remark = f"Seed {result['seed']}; results of other seeds differ."
    rollouts = saved_image(evaluation.sheets["policy"], "rollouts of the trained policy")
    wrong = saved_image(evaluation.sheets["wrong"], "rollouts with a wrong instruction")
    obeyed = result["obeyed_wrong_instruction_rate"]
    reached = result["wrong_instruction_success_rate"]
    rates = rate_table(
        [
            ("Instructed block", obeyed, "ends the episode"),
            ("Goal block", reached, "at any time"),
        ]
    )
    sections = [
        Section("The policy acts", [Videos(clips)]),
        Section("With your own recordings", [Text(_OWN_DATA, "verbatim"), Text(_ABOUT_OWN_DATA)]),
        Section("Success rate", [rate_table(rows), Text(remark, "quiet")]),
        Section("Rollouts", [rollouts]),
        Section("Wrong instruction", [Text(_ABOUT_WRONG), rates, wrong]),
        Section("Training data", [Text(f"First episode: {text}."), *strips]),
        Section("Training", _training_parts(result, paths)),
        command_section(result["command"]),
    ]
    write_text(
        paths.report, page("vlatool demo", _headline(result), sections, generator="vlatool demo")
    )


def _training_parts(result: Mapping[str, Any], paths: _Paths) -> list[Part]:
    rows = list(read_metrics(RunDir(paths.run).metrics))
    steps = np.array([float(row["step"]) for row in rows])
    losses = np.array([float(row["loss"]) for row in rows])
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["stages"].items())
    size = f"{result['parameters'] / 1e6:.2f} million parameters, {result['steps']} steps over "
    return [
        *metric_charts("loss", [Curve("", steps, losses)]),
        Text(f"{size}{result['samples']} samples. Time: {stages}."),
        Text("Each stage is a command; vlatool demo prints them.", "quiet"),
    ]


def _headline(result: Mapping[str, Any]) -> str:
    return (
        f"A policy trained on {result['episodes']} episodes gets images, the pose of the hand and "
        "an instruction. It puts the block of the instruction into the bin in "
        f"{100 * result['success_rate']:.0f} % of {result['rollouts']} episodes with new initial "
        f"states. The whole demo took {result['seconds']:.0f} seconds."
    )


def _frames_of(episode: Episode, camera: str) -> list[tuple[str, UInt8Array]]:
    frames = spread(episode.num_frames, _STRIP_FRAMES)
    images = episode.cameras[camera].read(frames)
    return [(f"frame {frame}", image) for frame, image in zip(frames, images, strict=True)]
