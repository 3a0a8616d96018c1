"""Open-loop evaluation of a trained policy on recorded data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.config.base import check_required
from vlatool.errors import DataError, UsageError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.record import OutputRecord, check_output_owner, single_output
from vlatool.jobs.versions import versions_of
from vlatool.loading.base import HasPairs, PairOptions, RecordedPairs
from vlatool.models.trained import Trained, data_kind_of
from vlatool.results import Result
from vlatool.storage.atomic import write_json
from vlatool.storage.uri import is_remote, local_path, pinned

if TYPE_CHECKING:
    from vlatool.models.policy import Policy

__all__ = ["OpenLoopConfig", "open_loop"]

CURVES, REPORT = "curves.png", "report.json"
_NUM_WORST = 3
# Label and decimals of the errors of predicted images.
_FUTURE_METRICS: Mapping[str, tuple[str, int]] = {
    "code_accuracy": ("accuracy of codes", 4),
    "copy_present_code_accuracy": ("of those of the present image", 4),
    "psnr": ("PSNR (dB)", 2),
    "copy_present_psnr": ("of the present image", 2),
    "reconstruction_psnr": ("of the tokenizer's reconstruction", 2),
}


@dataclass(frozen=True)
class OpenLoopResult(Result):
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

    def lines(self) -> Iterator[str]:
        names = [name for name in ("policy", "mean_action", "copy_last") if name in self.overall]
        yield f"{'field':<52}{''.join(f'{name:>14}' for name in names)}  better than mean"
        for field, metrics in self.fields.items():
            yield f"{field[-51:]:<52}{_field_text(metrics, names)}"
            yield from (f"   {text}" for text in _details(metrics))
        overall = "".join(_figure(self.overall[name]) for name in names)
        yield f"{'overall, in standard deviations':<52}{overall}"
        steps = len(self.overall_by_step["policy"])
        for step in sorted({0, steps // 2, steps - 1} if steps > 1 else ()):
            errors = "".join(_figure(self.overall_by_step[name][step]) for name in names)
            yield f"{f'   step {step + 1} of {steps}':<52}{errors}"
        chunks = counted(self.samples, "chunk")
        yield f"{chunks}, {weights_text(self.weights)}; curves: {self.picture}"
        if self.invalid:
            yield f"{counted(self.invalid, 'chunk is', 'chunks are')} not finite"
        if self.futures is not None:
            yield from futures_text(self.futures)


def futures_text(futures: Mapping[str, Any]) -> Iterator[str]:
    """Errors of predicted images as lines of text, a column per step."""
    steps: Mapping[str, Mapping[str, float]] = futures.get("steps", {})
    if not steps:
        return
    yield f"{'predicted images':<52}" + "".join(f"{f'+{step}':>14}" for step in steps)
    for name, (label, digits) in _FUTURE_METRICS.items():
        figures = "".join(f"{values[name]:>14.{digits}f}" for values in steps.values())
        yield f"   {label:<49}{figures}"


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


def recorded_pairs(location: str, policy: "Policy", trained: Trained, seed: int) -> RecordedPairs:
    """Recorded observations and targets that a policy can be evaluated on."""
    kind = data_kind_of(trained.config)
    if not isinstance(kind, HasPairs):
        raise DataError(
            f"data of the kind {kind.name!r} have no actions that a policy can be compared with",
            hint="evaluate the policy with `vlatool eval rollout`",
            code="data.no_actions",
        )
    options = PairOptions(policy.sees, policy.horizon, seed)
    return kind.pairs(trained.config.data, trained.assets, location, options)


def _options(config: OpenLoopConfig, trained: Trained, data: Path) -> dict[str, Any]:
    """Options for the record, with names instead of paths of the inputs."""
    options = config.model_dump(mode="json", exclude={"output"})
    inputs = {"checkpoint": checkpoint_of(trained).name, "data": data.name}
    return options | inputs | versions_of([folder_of(trained), data])


def results_folder(output: str | None, trained: Trained, name: str) -> Path:
    """Folder for results: as given, or one in the run."""
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
