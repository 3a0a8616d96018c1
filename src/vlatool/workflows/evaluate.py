"""Evaluation of a trained policy: open-loop on data, closed-loop in an environment."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.config.base import check_required
from vlatool.config.resolve import load_config
from vlatool.errors import DataError, PartialFailure, UsageError, missing_package
from vlatool.evaluation.config import OpenLoopConfig, RolloutConfig
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import JobConfig
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.record import OutputRecord, check_output_owner, single_output
from vlatool.jobs.run import run_job
from vlatool.jobs.versions import versions_of
from vlatool.loading.base import HasPairs, PairOptions, RecordedPairs
from vlatool.models.trained import Trained, data_kind_of
from vlatool.storage.atomic import write_json
from vlatool.storage.uri import is_remote, local_path, pinned
from vlatool.world.registration import (
    ENVIRONMENT,
    LIBERO_ENVIRONMENT,
    environment_ids,
    register_environments,
)

if TYPE_CHECKING:
    from vlatool.models.policy import Policy

__all__ = ["OpenLoopConfig", "RolloutConfig", "open_loop", "rollout"]

CURVES, REPORT = "curves.png", "report.json"
_WORLD_PRESETS = {ENVIRONMENT: "rollout-world", LIBERO_ENVIRONMENT: "rollout-world-libero"}
_NUM_WORST = 3
# Keys that records of version 0.2.0 lack: left out unless they are set, so that unfinished rollouts
# of that version resume.
_LATER_KEYS = frozenset({"delay_steps", "ensemble_decay", "grippers", "compat"})
# Label and decimals of the errors of predicted images.
_FUTURE_METRICS: Mapping[str, tuple[str, int]] = {
    "code_accuracy": ("accuracy of codes", 4),
    "copy_present_code_accuracy": ("of those of the present image", 4),
    "psnr": ("PSNR (dB)", 2),
    "copy_present_psnr": ("of the present image", 2),
    "reconstruction_psnr": ("of the tokenizer's reconstruction", 2),
}


@dataclass(frozen=True)
class OpenLoopResult:
    """Errors of predicted action chunks compared with recorded ones."""

    checkpoint: str
    weights: str
    data: str
    samples: int
    overall: Mapping[str, float | None]
    overall_by_step: Mapping[str, Sequence[float | None]]
    fields: Mapping[str, Any]
    picture: str
    report: str
    invalid: int = 0
    futures: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping."""
        return asdict(self)

    def text(self) -> str:
        """The result as text: mean absolute errors in the units of the fields."""
        names = [name for name in ("policy", "mean_action", "copy_last") if name in self.overall]
        header = f"{'field':<52}{''.join(f'{name:>14}' for name in names)}  better than mean"
        rows = [header]
        for field, metrics in self.fields.items():
            rows.append(f"{field[-51:]:<52}{_field_text(metrics, names)}")
            rows += [f"   {text}" for text in _details(metrics)]
        overall = "".join(_figure(self.overall[name]) for name in names)
        rows.append(f"{'overall, in standard deviations':<52}{overall}")
        steps = len(self.overall_by_step["policy"])
        for step in sorted({0, steps // 2, steps - 1} if steps > 1 else ()):
            errors = "".join(_figure(self.overall_by_step[name][step]) for name in names)
            rows.append(f"{f'   step {step + 1} of {steps}':<52}{errors}")
        rows.append(
            f"{counted(self.samples, 'chunk')}, {weights_text(self.weights)}; "
            f"curves: {self.picture}"
        )
        if self.invalid:
            rows.append(f"{counted(self.invalid, 'chunk is', 'chunks are')} not finite")
        if self.futures is not None:
            rows += futures_text(self.futures)
        return "\n".join(rows)


def futures_text(futures: Mapping[str, Any]) -> Iterator[str]:
    """Errors of predicted images as lines of text, a column per step."""
    steps: Mapping[str, Mapping[str, float]] = futures.get("steps", {})
    if not steps:
        return
    yield f"{'predicted images':<52}" + "".join(f"{f'+{step}':>14}" for step in steps)
    for name, (label, digits) in _FUTURE_METRICS.items():
        figures = "".join(f"{values[name]:>14.{digits}f}" for values in steps.values())
        yield f"   {label:<49}{figures}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _figure(value: float | None) -> str:
    return f"{'-':>14}" if value is None else f"{value:>14.5f}"


def _field_text(metrics: Mapping[str, Any], predictors: Sequence[str]) -> str:
    """Mean errors of a field; `constant` if no dimension changes, because nothing is to predict."""
    varying = metrics["moving_dimensions"]
    if not varying:
        return f"{'constant':>14}"
    errors = "".join(_figure(metrics[name]["mae"]) for name in predictors)
    return f"{errors}  {metrics['dimensions_better_than_mean']} of {varying}"


def _details(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yields the dimensions left out, and the named dimensions with the largest errors."""
    names, constant = metrics["names"], metrics["constant_dimensions"]
    if constant and metrics["moving_dimensions"]:
        yield f"constant: {', '.join(names[index] for index in constant)}"
    errors = metrics["policy"]["mae_per_dimension"]
    is_named = all(name != str(index) for index, name in enumerate(names))
    if is_named and len(names) - len(constant) > _NUM_WORST:
        rows = zip(errors, names, range(len(names)), strict=True)
        worst = sorted(((e, name) for e, name, i in rows if i not in constant), reverse=True)
        yield "largest errors: " + ", ".join(f"{name} {e:.5f}" for e, name in worst[:_NUM_WORST])


@dataclass(frozen=True)
class RolloutResult:
    """Success rates of a policy in an environment."""

    checkpoint: str
    weights: str
    env: str
    figures: Mapping[str, Any]
    picture: str | None
    report: str

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping."""
        info = {key: value for key, value in asdict(self).items() if key != "figures"}
        return {**info, **self.figures}

    def text(self) -> str:
        """The result as text."""
        low, high = self.figures["confidence_95"]
        interval = f"95 % interval {100 * low:.0f} to {100 * high:.0f} %"
        rate = _rate(self.figures)
        lines = [f"{self.env}: {rate} success ({interval}), {weights_text(self.weights)}"]
        for instruction, counts in self.figures["per_instruction"].items():
            lines.append(f"   {_rate(counts)}  {instruction or '(no instruction)'}")
        errors = [row["error"] for row in self.figures["rollouts"] if row["error"] is not None]
        if errors:
            lines.append(f"episodes ended by an error of the environment: {len(errors)}")
            lines += [f"   {errors.count(error)}  {error}" for error in dict.fromkeys(errors)]
        if self.picture:
            lines.append(f"episodes: {self.picture}")
        return "\n".join(lines)


def open_loop(config: OpenLoopConfig, *, reporter: Reporter = NULL) -> OpenLoopResult:
    """Compares predicted with recorded action chunks, usually on held-out data.

    Raises:
        UsageError: A required key is missing, or the output has different content.
        DataError: Checkpoint or data are missing, broken or incompatible.
    """
    from vlatool.evaluation.control import ResizeLog
    from vlatool.evaluation.futures import evaluate_futures, tokenizer_for
    from vlatool.evaluation.offline import evaluate_open_loop, num_chosen
    from vlatool.evaluation.plots import save_curves
    from vlatool.evaluation.policy_runner import open_policy

    check_required(config, "vlatool eval open-loop CHECKPOINT DATA")
    policy, trained = open_policy(
        config.checkpoint, config.weights, config.inference_steps, reporter
    )
    data = pinned(config.data)
    output = results_folder(config.output, trained, f"open-loop-{data.name}")
    record = OutputRecord("eval open-loop", _options(config, trained, data))
    check_output_owner(output, record)
    pairs = recorded_pairs(str(data), policy, trained, config.seed)
    tokenizer = tokenizer_for(policy, config.tokenizer)
    log = ResizeLog(policy.sees, partial(reporter.warn, "pictures_resized"))
    with reporter.progress("open-loop", num_chosen(pairs, config), "samples") as bar:
        report = evaluate_open_loop(policy, pairs, config, log, bar)
    futures = None
    if tokenizer is not None:
        count = min(len(pairs), config.future_samples)
        with reporter.progress("images", count, "samples") as bar:
            futures = evaluate_futures(policy, pairs, tokenizer, config, bar)
    image = output / CURVES
    title = f"{report.episode}: next action, recorded and predicted"
    result = OpenLoopResult(
        checkpoint=str(checkpoint_of(trained)),
        weights=trained.origin.weights,
        data=config.data,
        samples=report.samples,
        overall=report.overall,
        overall_by_step=report.overall_by_step,
        fields=report.fields,
        invalid=report.invalid,
        futures=futures,
        picture=str(image),
        report=str(output / REPORT),
    )
    with single_output(output, record, (CURVES, REPORT)):
        save_curves(image, title, report.curves, report.frames / pairs.fps)
        write_json(output / REPORT, result.document())
    return result


def rollout(config: RolloutConfig, *, reporter: Reporter = NULL) -> RolloutResult:
    """Runs a policy in a Gymnasium environment and counts its successes.

    An interrupted run is resumed with the next group of episodes; a complete one is repeated.

    Raises:
        UsageError: The environment does not exist, or the output has different content.
        DataError: The observations of the environment lack an input of the policy.
        PartialFailure: An error of the environment ended every episode.
    """
    from vlatool.evaluation.control import ResizeLog
    from vlatool.evaluation.controllers import PolicyController
    from vlatool.evaluation.policy_runner import open_policy
    from vlatool.evaluation.rollouts import RolloutJob, RolloutPlan, Rollouts

    make_env = environment_maker(config.env, **config.env_options)
    policy, trained = open_policy(
        config.checkpoint, config.weights, config.inference_steps, reporter
    )
    config = with_world_mapping(config)
    plan = RolloutPlan(
        seeds=range(config.seed, config.seed + config.episodes),
        choose_instruction=lambda observation, info: _instruction(config, observation, info),
        success_key=config.success_key,
        max_steps=config.max_steps,
        num_rendered=config.contact_sheet_episodes,
    )
    labels = {
        "checkpoint": str(checkpoint_of(trained)),
        "weights": trained.origin.weights,
        "env": config.env,
    }
    record = OutputRecord("eval rollout", _options(config, trained))
    log = ResizeLog(policy.sees, reporter.note)
    output = results_folder(config.output, trained, f"rollout-{config.env.replace('/', '-')}")
    with (
        reporter.progress("rollouts", config.episodes, "episodes") as bar,
        Rollouts(
            make_env, lambda env: PolicyController(policy, config, log), plan, bar
        ) as rollouts,
    ):
        job = RolloutJob(output, record, rollouts, labels)
        run_job(job, SerialExecutor(), options=JobConfig(overwrite=True, on_error="stop"))
    report = job.report()
    names = [*labels, "picture", "report"]
    metrics = {name: value for name, value in report.items() if name not in names}
    if not report["episodes"]:
        raise _every_episode_failed(report)
    return RolloutResult(**{name: report[name] for name in names}, figures=metrics)


def _every_episode_failed(report: Mapping[str, Any]) -> PartialFailure:
    rows = report["rollouts"]
    return PartialFailure(
        f"{report['env']}: an error of the environment ended every episode; "
        f"the first: {rows[0]['error']}",
        hint=f"all are in {report['report']}",
        code="partial.rollouts_failed",
        details={"failures": rows},
    )


def environment_maker(name: str, **options: Any) -> Any:
    """Returns a function that creates the named environment with `options`, after a first try.

    Raises:
        UsageError: There is no such environment, or it does not accept the options.
        EnvironmentProblem: Gymnasium is not installed.
    """
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise missing_package("gymnasium") from None
    if not name:
        raise UsageError(
            "no environment is given",
            hint=f"give one, such as --env {ENVIRONMENT}",
            code="usage.no_env",
        )
    register_environments()

    def make() -> Any:
        return gymnasium.make(name, render_mode="rgb_array", **options)

    try:
        make().close()
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise UsageError(
            f"the environment {name!r} cannot be created: {_first_line(error)}",
            hint=f"install the package that defines it; built in: {', '.join(environment_ids())}",
            code="usage.unknown_env",
        ) from None
    except (TypeError, LookupError, ValueError) as error:
        if not options:
            raise
        raise UsageError(
            f"the environment {name!r} cannot be created with {options}: {_first_line(error)}",
            hint="set env_options to options that its documentation lists",
            code="usage.env_options",
            details={"env_options": options},
        ) from None
    return make


def with_world_mapping(config: RolloutConfig) -> RolloutConfig:
    """Adds the mapping of the built-in world if that is used without a mapping."""
    if config.env not in _WORLD_PRESETS or config.fields or config.action:
        return config
    world = load_config(RolloutConfig, presets=[_WORLD_PRESETS[config.env]]).config
    return config.model_copy(update={"fields": world.fields, "action": world.action})


def _instruction(
    config: RolloutConfig, observation: Mapping[str, Any], info: Mapping[str, Any]
) -> str:
    if config.instruction is not None:
        return config.instruction
    key = config.instruction_key
    values = {**info, **observation} if isinstance(observation, Mapping) else info
    return str(values.get(key, ""))


def recorded_pairs(location: str, policy: "Policy", trained: Trained, seed: int) -> RecordedPairs:
    """Recorded observations and targets that a policy can be evaluated on.

    Raises:
        DataError: There are no data, they do not fit the policy, or they contain no actions.
    """
    kind = data_kind_of(trained.config)
    if not isinstance(kind, HasPairs):
        raise DataError(
            f"data of the kind {kind.name!r} have no actions that a policy can be compared with",
            hint="evaluate the policy with `vlatool eval rollout`",
            code="data.no_actions",
        )
    options = PairOptions(policy.sees, policy.horizon, seed)
    return kind.pairs(trained.config.data, trained.assets, location, options)


def _options(
    config: OpenLoopConfig | RolloutConfig, trained: Trained, data: Path | None = None
) -> dict[str, Any]:
    """Options for the record, with names instead of paths of the inputs."""
    later = _LATER_KEYS - config.model_dump(exclude_defaults=True).keys()
    options = config.model_dump(mode="json", exclude={"output", *later})
    options["checkpoint"] = checkpoint_of(trained).name
    root = folder_of(trained)
    read = [root] if data is None else [root, data]
    return options | ({} if data is None else {"data": data.name}) | versions_of(read)


def results_folder(output: str | None, trained: Trained, name: str) -> Path:
    """Folder for results: as given, or one in the run.

    Raises:
        UsageError: None is given, and the weights are remote or of no run.
    """
    root = folder_of(trained)
    if not output and (trained.origin.run is None or is_remote(root)):
        raise UsageError(
            f"{root}: results cannot be written into remote or published files",
            hint="give a local folder with --output",
            code="usage.needs_output",
        )
    return local_path(output) if output else root / "eval" / name


def checkpoint_of(trained: Trained) -> Path:
    """The checkpoint of the weights, or their published file."""
    return trained.origin.checkpoint or trained.origin.file


def folder_of(trained: Trained) -> Path:
    """The run of the weights, or the folder of their published file."""
    origin = trained.origin
    return origin.file.parent if origin.run is None else origin.run.root


def weights_text(weights: str) -> str:
    """Averaged or raw weights; a published file does not say which."""
    return f"{weights} weights" if weights else "published weights"


def _rate(counts: Mapping[str, Any]) -> str:
    return f"{counts['successes']} of {counts['episodes']} ({100 * counts['success_rate']:.0f} %)"
