"""Evaluation of a trained policy on recorded data: open-loop, or at one frame.

Legend of shapes: T action steps, C dimensions of a field.
"""

import dataclasses
import shlex
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlatool.config.base import (
    ConfigModel,
    check_required,
    option,
    required_field,
    typed_command,
)
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.evaluation.config import OpenLoopConfig, SamplingOptions, allow_option
from vlatool.events import NULL, Reporter, counted
from vlatool.formats.artifact import recognize
from vlatool.formats.base import id_part
from vlatool.formats.choice import numbered
from vlatool.formats.contract import Contract, differences, refuse
from vlatool.formats.detect import SourceKeys, detect_source
from vlatool.formats.shards.layout import SHARDS_NAME
from vlatool.jobs.ownership import check_owner, require_input, single_output, versions_of
from vlatool.jobs.record import OutputRecord
from vlatool.loading.base import PairOptions, RecordedFutures, RecordedPairs, Split
from vlatool.loading.lookup import episode_named
from vlatool.models.published import Trained
from vlatool.models.trained import Weights, data_kind_of
from vlatool.report.text import number_text
from vlatool.results import UNLISTED, Result
from vlatool.storage.atomic import write_json, write_text
from vlatool.storage.uri import is_remote, local_path, pinned
from vlatool.transforms.neighbors import spread

if TYPE_CHECKING:
    from vlatool.episode import Array, UInt8Array
    from vlatool.evaluation.control import ImageSizes
    from vlatool.evaluation.offline import EpisodeErrors, RecordedFrame, Verdict
    from vlatool.models.base import Candidates, Decision, Policy
    from vlatool.models.tokenizer import OpenTokenizer
    from vlatool.report.facts import Part

__all__ = ["OpenLoopConfig", "open_loop", "predict"]

# Differences from what training saw that were taken, by key.
Allowed = dict[str, dict[str, str]]

REPORT = "report.json"
_NUM_WORST = 3
# Episodes with curves on a page from each end, and images of each.
_NUM_SHOWN = 2
_NUM_IMAGES = 6
# Label and decimals of the errors of predicted images.
_FUTURE_METRICS: Mapping[str, tuple[str, int]] = {
    "code_accuracy": ("accuracy of codes", 4),
    "copy_present_code_accuracy": ("of those of the present image", 4),
    "psnr": ("PSNR (dB)", 2),
    "copy_present_psnr": ("of the present image", 2),
    "reconstruction_psnr": ("of the tokenizer's reconstruction", 2),
    "moving_psnr": ("PSNR of moving pixels (dB)", 2),
    "moving_copy_present_psnr": ("of the present image", 2),
    "moving_reconstruction_psnr": ("of the tokenizer's reconstruction", 2),
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
    episodes: "Sequence[EpisodeErrors]"  # from the worst to the best
    page: str  # HTML page
    report: str
    invalid: int = 0
    verdicts: "Sequence[Verdict]" = ()  # the policy against each baseline
    futures: Mapping[str, Any] | None = None
    allowed: Allowed | None = None
    split: str = "all"  # `val`: only the episodes that the data of the run hold out
    next: str = dataclasses.field(default="", metadata=UNLISTED)

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
        yield f"{chunks}, {weights_text(self.weights)}; page: {self.page}"
        if self.invalid:
            yield f"{counted(self.invalid, 'chunk is', 'chunks are')} not finite"
        if self.futures is not None:
            yield from futures_text(self.futures)
        for verdict in self.verdicts:
            yield f"the policy is {verdict.text()}"


def futures_text(futures: Mapping[str, Any]) -> Iterator[str]:
    """Errors of predicted images as lines of text, a column per step."""
    steps: Mapping[str, Mapping[str, float | None]] = futures.get("steps", {})
    if not steps:
        return
    yield f"{'predicted images':<52}" + "".join(f"{f'+{step}':>14}" for step in steps)
    for name, (label, digits) in _FUTURE_METRICS.items():
        figures = "".join(f"{_digits(values[name], digits):>14}" for values in steps.values())
        yield f"   {label:<49}{figures}"


def _digits(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _figure(value: float | None) -> str:
    return f"{_digits(value, 5):>14}"


def _field_text(metrics: Mapping[str, Any], predictors: Sequence[str]) -> str:
    """Mean errors of a field; `constant` if no dimension changes, because nothing is to predict."""
    varying = metrics["moving_dimensions"]
    errors = "".join(_figure(metrics[name]["mae"]) for name in predictors)
    better = f"{metrics['dimensions_better_than_mean']} of {varying}" if varying else "constant"
    return f"{errors}  {better}"


def _details(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yields the dimensions that never change, and the named dimensions with the largest errors."""
    names = metrics["names"]
    constant = metrics["constant_dimensions"]
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

    Without `data` these are the episodes that the training data hold out. Of data that the policy
    was trained on, only the held-out episodes are taken, if there are any; of other data all.

    Raises:
        UsageError: A required key is missing, or the output has different content.
        DataError: Checkpoint or data are missing, broken or incompatible.
    """
    from vlatool.evaluation.control import ImageSizes
    from vlatool.evaluation.facts import REPORT_PAGE
    from vlatool.evaluation.futures import evaluate_futures, tokenizer_for
    from vlatool.evaluation.offline import evaluate_open_loop, num_chosen, verdicts
    from vlatool.evaluation.policy_runner import open_policy

    check_required(config, "vlatool eval open-loop CHECKPOINT")
    policy, trained = open_policy(config.checkpoint, config.weights, config, reporter)
    location_text, split = _evaluated_data(config, trained, reporter)
    config = config.model_copy(update={"data": location_text})
    data = pinned(config.data)
    output = results_folder(config.output, trained, f"open-loop-{data.name}")
    options = _recorded_options(config, trained, data=data)
    if split != "all":
        options["split"] = split
    record = OutputRecord("eval open-loop", options)
    check_owner(output, record)
    pairs = recorded_pairs(str(data), policy, trained, config.seed, split)
    if not pairs.fields:
        raise DataError(
            f"{data}: none of the action fields of the policy is in the data: "
            f"{', '.join(policy.actions)}",
            hint="preprocess the data with these fields, or rename others to them",
            code="data.missing",
        )
    allowed = compared(policy, pairs.contract, config.allow, data)
    tokenizer = tokenizer_for(policy, config.tokenizer)
    sizes = ImageSizes(policy.sees, partial(reporter.warn, "pictures_resized"), config.allow)
    with reporter.progress("open-loop", num_chosen(pairs, config), "samples") as bar:
        report = evaluate_open_loop(policy, pairs, config, sizes, bar)
    futures = None
    if tokenizer is not None:
        count = min(len(pairs), config.future_samples)
        with reporter.progress("images", count, "samples") as bar:
            futures = evaluate_futures(policy, pairs, tokenizer, config, bar)
    result = OpenLoopResult(
        checkpoint=str(checkpoint_of(trained)),
        weights=trained.origin.weights,
        data=config.data,
        split=split,
        samples=report.samples,
        overall=report.overall,
        overall_by_step=report.overall_by_step,
        fields=report.fields,
        invalid=report.invalid,
        futures=futures,
        episodes=report.episodes,
        verdicts=verdicts(report.episodes),
        page=str(output / REPORT_PAGE),
        report=str(output / REPORT),
        allowed=allowed | sizes.allowed or None,
        next=_next_command(config.checkpoint, trained),
    )
    with single_output(output, record, (REPORT_PAGE, REPORT)):
        command = typed_command("eval open-loop", config, ("checkpoint", "data"))
        _write_open_loop_page(result, pairs, command)
        write_json(output / REPORT, result.document())
    return result


def _write_open_loop_page(result: OpenLoopResult, pairs: RecordedPairs, command: str) -> None:
    from vlatool.evaluation import facts
    from vlatool.report.facts import Fold, Section, Table, Text
    from vlatool.report.page import page

    episodes = [each for each in result.episodes if each.error is not None]
    best = episodes[max(_NUM_SHOWN, len(episodes) - _NUM_SHOWN) :]
    shown = [
        *((f"worst {rank + 1}", each) for rank, each in enumerate(episodes[:_NUM_SHOWN])),
        *((f"best {len(best) - rank}", each) for rank, each in enumerate(best)),
    ]
    cards: list[Section] = []
    for rank, each in shown:
        seconds = np.array([point.frame for point in each.points]) / pairs.fps
        charts = facts.action_charts(each.curves(pairs.fields), seconds)
        text = f"{number_text(each.error)} standard deviations over {each.samples} chunks"
        title = f"{each.episode or 'all episodes'} ({rank} of {len(episodes)})"
        strips = facts.image_strips(_images_of(each, pairs))
        about = Text(f"{text}; recorded action, and the predicted one at each frame, dashed")
        cards.append(Section(title, [about, *strips, *charts], is_under=True))
    rows = [(each.episode, each.samples, number_text(each.error)) for each in result.episodes]
    every = Fold(counted(len(rows), "episode"), [Table(("episode", "chunks", "error"), rows)])
    sections = [
        Section("Verdict", [Text(f"The policy is {row.text()}.") for row in result.verdicts]),
        *facts.error_sections(
            result.overall, result.overall_by_step, result.fields, result.samples
        ),
        Section("Predicted images", _futures_tables(result.futures)),
        Section("Worst and best episodes", [every]),
        *cards,
        facts.command_section(command),
    ]
    title = f"Open-loop errors on {Path(result.data.rstrip('/')).name}"
    subtitle = f"{counted(result.samples, 'chunk')} of {Path(result.checkpoint).name}, "
    subtitle += weights_text(result.weights)
    generator = "vlatool eval open-loop"
    write_text(local_path(result.page), page(title, subtitle, sections, generator=generator))


def _images_of(
    episode: "EpisodeErrors", pairs: RecordedPairs
) -> "dict[str, list[tuple[str, UInt8Array]]]":
    """Newest image of each camera at evenly spaced points, with captions."""
    points = [episode.points[index] for index in spread(len(episode.points), _NUM_IMAGES)]
    strips: dict[str, list[tuple[str, UInt8Array]]] = {}
    for point, (observation, _) in zip(
        points, pairs.read([point.index for point in points]), strict=True
    ):
        for camera, images in observation.images.items():
            strips.setdefault(camera, []).append((f"frame {point.frame}", images[-1]))
    return strips


def _futures_tables(futures: Mapping[str, Any] | None) -> "list[Part]":
    from vlatool.report.facts import Table

    steps: Mapping[str, Mapping[str, float | None]] = (futures or {}).get("steps", {})
    if not steps:
        return []
    rows: list[tuple[object, ...]] = []
    for name, (label, digits) in _FUTURE_METRICS.items():
        rows.append((label, *(_digits(values[name], digits) for values in steps.values())))
    return [Table(("", *(f"step +{step}" for step in steps)), rows)]


def _evaluated_data(
    config: OpenLoopConfig, trained: Trained, reporter: Reporter
) -> tuple[str, Split]:
    """Location of the data, and which of their episodes are taken.

    Raises:
        UsageError: No data are given, and the data of the run hold nothing out.
    """
    kind = data_kind_of(trained.config)
    section = trained.config.data
    key = kind.folders_keys[0]
    trained_on: list[str] = getattr(section, key)
    held_out: list[str] = []
    split: Split = "all"
    with suppress(DataError, StorageError):  # the data of the run may be gone
        validation = kind.validation(section)
        if validation is not None:
            held_out = getattr(validation, key)
            split = "val" if validation.is_held_out else "all"
    if not config.data:
        if len(held_out) != 1:
            problem = "hold several data sets out" if held_out else "hold no episode out"
            example = (held_out or trained_on or ["DATA"])[0]
            raise UsageError(
                f"the data of {config.checkpoint} {problem}; say which data to compare with",
                hint=f"vlatool eval open-loop {config.checkpoint} {example}",
                code="usage.missing_key",
            )
        return held_out[0], split
    asked = _place(config.data)
    if split == "val" and asked in map(_place, held_out):
        reporter.note(f"{config.data}: trained on, so only its held-out episodes are compared")
        return config.data, "val"
    if asked in map(_place, trained_on):
        reporter.note(
            f"{config.data}: the policy was trained on these episodes; on others its errors are "
            "larger"
        )
    return config.data, "all"


def _next_command(checkpoint: str, trained: Trained) -> str:
    """Rollouts in the environment that the run names, else the server."""
    run = trained.origin.run
    section = (run.read_config() or {}).get("eval") if run is not None else None
    if isinstance(section, dict) and section.get("env"):
        return shlex.join(["vlatool", "eval", "rollout", checkpoint, "--env", str(section["env"])])
    return shlex.join(["vlatool", "serve", checkpoint])


def _place(text: str) -> str:
    """The folder of data, for comparison; a manifest stands for its folder."""
    path = pinned(text)
    if path.suffix in (".json", ".jsonl"):
        path = path.parent
    path = path.parent if path.name == SHARDS_NAME else path
    return str(path if is_remote(path) else path.resolve())


def recorded_pairs(
    location: str, policy: "Policy", trained: Trained, seed: int, split: Split = "all"
) -> RecordedPairs:
    """Recorded observations and targets that a policy can be evaluated on."""
    kind = data_kind_of(trained.config)
    options = PairOptions(policy.sees, policy.horizon, seed, split)
    pairs = kind.pairs(trained.config.data, trained.assets, location, options)
    if pairs is None:
        raise DataError(
            f"data of the kind {kind.name!r} have no actions that a policy can be compared with",
            hint="evaluate the policy with `vlatool eval rollout`",
            code="data.missing",
        )
    return pairs


def compared(
    policy: "Policy", other: Contract | None, allow: Collection[str], where: object
) -> Allowed:
    """Allowed differences between what training saw and other data; DataError for others."""
    unequal = differences(policy.contract, other) if policy.contract and other else ()
    return refuse(unequal, allow, where, "convert the data, or train on data like them")


def _recorded_options(config: ConfigModel, trained: Trained, **inputs: Path) -> dict[str, Any]:
    """Options for the record, with names instead of paths of the inputs."""
    options = config.model_dump(mode="json", exclude={"output"})
    options |= {"checkpoint": checkpoint_of(trained).name}
    options |= {key: path.name for key, path in inputs.items()}
    return options | versions_of([folder_of(trained), *inputs.values()])


def results_folder(output: str | None, trained: Trained, name: str) -> Path:
    """Folder for results: as given, or one in the run."""
    root = folder_of(trained)
    if not output and (trained.origin.run is None or is_remote(root)):
        raise UsageError(
            f"{root}: results cannot be written into remote or published files",
            hint="give a local folder with --output",
            code="usage.missing_key",
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


VIDEO = "futures.mp4"


class PredictConfig(SamplingOptions, SourceKeys):
    """Options of `vlatool predict`."""

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    source: str = required_field(
        "", "Raw episodes of any format, or the data that `eval open-loop` takes."
    )
    episode: str = option("0", "Number of the episode, or its id.")
    frame: int = option(0, "Frame at which the policy acts.", ge=0)
    output: str | None = option(None, "Folder for the results; null: in the run, if that is local.")
    instruction: str | None = option(None, "Instruction for the policy; null: that of the episode.")
    weights: Weights = option("auto", "Averaged or raw weights; auto: averaged if any.")
    seed: int = option(0, "Seed of the sampled noise.", ge=0)
    tokenizer: str | None = option(
        None,
        "Visual tokenizer of the codes of a policy that predicts images, to draw them; "
        "null: predict no images.",
    )
    allow: list[str] = allow_option()


@dataclass(frozen=True)
class FieldPrediction:
    """Predicted and recorded steps of one action field."""

    names: Sequence[str]  # of the C dimensions
    predicted: Sequence[Sequence[float]]  # actions of the policy [T, C]
    # Recorded actions; shorter than T at the end of an episode, empty if unknown.
    recorded: Sequence[Sequence[float]]
    mae_per_dimension: Sequence[float]  # over the recorded steps [C]; empty without any
    # Error of repeating the action of the frame before; empty at the first frame.
    copy_last_per_dimension: Sequence[float]


@dataclass(frozen=True)
class PredictResult(Result):
    """A predicted action chunk."""

    checkpoint: str
    weights: str
    source: str
    episode: str
    frame: int
    instruction: str
    fps: float
    fields: Mapping[str, FieldPrediction]
    # Duration of a call of the policy with images that it has not seen, after a first call.
    ms_per_decision: float
    tokens_per_decision: int | None  # that were decoded; None if the policy decodes none
    # With several answers, of each its figure by each rule (the larger the better) and `executed`
    answers: Sequence[Mapping[str, float | bool]]
    # Errors of predicted images by step, and `files` with drawings; None without them.
    futures: Mapping[str, Any] | None
    page: str  # HTML page
    report: str
    allowed: Allowed | None = None

    def lines(self) -> Iterator[str]:
        width = max(len(label) for field in self.fields.values() for label in field.names)
        horizon = len(next(iter(self.fields.values())).predicted)
        steps = sorted({0, horizon // 2, horizon - 1})
        columns = "".join(f"{f'step {step + 1} (recorded)':>22}" for step in steps)
        yield f"{self.episode}, frame {self.frame}: {self.instruction or '(no instruction)'}"
        yield f"{'':<{width + 3}}{columns}{'error':>10}{'copy last':>11}"
        for name, field in self.fields.items():
            yield from _field_lines(name, field, steps, width)
        count = self.tokens_per_decision
        tokens = "" if count is None else f" and {counted(count, 'token')}"
        yield (
            f"{counted(horizon, 'step')} at {self.fps:g} per second, "
            f"{self.ms_per_decision:.1f} ms{tokens} per decision, "
            f"{weights_text(self.weights)}; page: {self.page}"
        )
        for number, answer in enumerate(self.answers, start=1):
            figures = ", ".join(f"{rule} {value:.3f}" for rule, value in _figures(answer))
            yield f"answer {number}: {figures}{', executed' if answer['executed'] else ''}"
        if self.futures is not None:
            yield from futures_text(self.futures)
            yield f"images: {', '.join(self.futures['files'])}"


def _field_lines(
    name: str, field: FieldPrediction, steps: Sequence[int], width: int
) -> Iterator[str]:
    yield name
    for index, label in enumerate(field.names):
        text = f"   {label:<{width}}"
        for step in steps:
            is_known = step < len(field.recorded)
            recorded = f"{field.recorded[step][index]:.4f}" if is_known else "-"
            text += f"{field.predicted[step][index]:>11.4f}{f'({recorded})':>11}"
        for errors, cell in ((field.mae_per_dimension, 10), (field.copy_last_per_dimension, 11)):
            text += f"{errors[index]:>{cell}.4f}" if errors else f"{'-':>{cell}}"
        yield text


def predict(config: PredictConfig, *, reporter: Reporter = NULL) -> PredictResult:
    """Asks a policy for one action chunk, at a frame of recorded data.

    Raises:
        UsageError: A required key is missing, or the output has different content.
        DataError: Checkpoint or data are missing, broken or incompatible, or the data have no such
            episode or frame.
    """
    from vlatool.evaluation.control import ImageSizes, check_finite, chunk_seed
    from vlatool.evaluation.facts import REPORT_PAGE
    from vlatool.evaluation.futures import save_futures, tokenizer_for
    from vlatool.evaluation.policy_runner import open_policy

    check_required(config, "vlatool predict CHECKPOINT SOURCE --episode N --frame T")
    require_input(config.source)
    policy, trained = open_policy(config.checkpoint, config.weights, config, reporter)
    source = pinned(config.source)
    output = results_folder(
        config.output, trained, f"predict-{source.name}-{config.episode}-{config.frame}"
    )
    record = OutputRecord("predict", _recorded_options(config, trained, source=source))
    check_owner(output, record)
    sizes = ImageSizes(policy.sees, reporter.note, config.allow)
    chosen = _recorded_frame(config, source, policy, trained, sizes)
    tokenizer = tokenizer_for(policy, config.tokenizer)
    seeds = [chunk_seed(config.seed, chosen.seed)]
    decision = policy.decide([chosen.observation], seeds=seeds, look=tokenizer is not None)
    chunk = decision.actions
    tokens = decision.tokens[0] if decision.tokens else None
    check_finite(chunk)
    # The first call also initializes the device. In the second one the lowest bit of all pixels is
    # changed, so that no image is in a cache.
    images = {camera: values ^ 1 for camera, values in chosen.observation.images.items()}
    changed = replace(chosen.observation, images=images)
    started = time.perf_counter()
    policy.act([changed], seeds=seeds)
    milliseconds = 1000 * (time.perf_counter() - started)
    futures = None if tokenizer is None else _futures(tokenizer, chosen, decision.candidates[0])
    names = [] if futures is None else [*map(future_name, futures.predicted), VIDEO]
    result = PredictResult(
        checkpoint=str(checkpoint_of(trained)),
        weights=trained.origin.weights,
        source=config.source,
        fps=policy.fps,
        ms_per_decision=milliseconds,
        tokens_per_decision=tokens,
        answers=_answers(decision) if config.samples > 1 else [],
        futures=futures and {**futures.scores, "files": [str(output / name) for name in names]},
        page=str(output / REPORT_PAGE),
        report=str(output / REPORT),
        episode=chosen.target.episode,
        frame=chosen.target.frame,
        instruction=chosen.observation.instruction,
        fields={name: _field(chosen, name, values[0]) for name, values in chunk.items()},
        allowed=sizes.allowed or None,
    )
    with single_output(output, record, (REPORT_PAGE, REPORT, *names)):
        if futures is not None:
            save_futures(output, futures.lines, future_name, VIDEO)
        seen = {name: images[-1] for name, images in chosen.observation.images.items()}
        _write_predict_page(
            result, seen, typed_command("predict", config, ("checkpoint", "source"))
        )
        document = result.document()
        del document["ms_per_decision"]  # the same command writes the same bytes
        write_json(output / REPORT, document)
    return result


def future_name(camera: str) -> str:
    """Name of the file with the predicted images of a camera."""
    return f"future-{id_part(camera)}.png"


@dataclass(frozen=True)
class _Futures:
    """Predicted and recorded images [F, S, S, 3] by camera, and the errors of the first."""

    predicted: "Mapping[str, UInt8Array]"  # images of predicted codes of the executed answer
    lines: "Mapping[str, Mapping[str, UInt8Array]]"  # what is drawn, from top to bottom, by label
    scores: Mapping[str, Any]  # errors; empty if nothing was recorded


def _answers(decision: "Decision") -> list[dict[str, float | bool]]:
    candidates = decision.candidates[0]
    return [
        {
            **{str(rule): float(scores[number]) for rule, scores in candidates.scores.items()},
            "executed": number == candidates.chosen,
        }
        for number in range(len(candidates.scores["probable"]))
    ]


def _figures(answer: Mapping[str, float | bool]) -> Iterator[tuple[str, float]]:
    yield from ((rule, value) for rule, value in answer.items() if rule != "executed")


def _futures(
    tokenizer: "OpenTokenizer", chosen: "RecordedFrame", candidates: "Candidates"
) -> _Futures:
    from vlatool.evaluation.futures import (
        FutureScores,
        decoded_images,
        prepared_images,
        reconstructed_images,
    )

    codes = {camera: values[candidates.chosen] for camera, values in candidates.codes.items()}
    drawn: dict[str, dict[str, UInt8Array]] = {}
    count = len(next(iter(candidates.codes.values())))
    for number in range(count):
        executed = ", executed" if number == candidates.chosen else ""
        label = "predicted" if count == 1 else f"predicted, answer {number + 1}{executed}"
        drawn[label] = {
            camera: decoded_images(tokenizer, values[number])
            for camera, values in candidates.codes.items()
        }
    predicted = [*drawn.values()][candidates.chosen]
    if chosen.futures is None:
        return _Futures(predicted, drawn, {})
    recorded = chosen.futures(len(next(iter(predicted.values()))))
    scores = FutureScores(tokenizer)
    scores.add(codes, recorded, chosen.observation)
    resized = {
        camera: prepared_images(tokenizer, camera, values)
        for camera, values in recorded.images.items()
    }
    reconstructed = {
        camera: reconstructed_images(tokenizer, values) for camera, values in resized.items()
    }
    lines = {"recorded": resized, "recorded, as codes": reconstructed, **drawn}
    return _Futures(predicted, lines, {"steps": scores.report()["steps"]})


def _recorded_frame(
    config: PredictConfig, source: Path, policy: "Policy", trained: Trained, sizes: "ImageSizes"
) -> "RecordedFrame":
    """The chosen frame of raw episodes or of preprocessed data."""
    is_named = config.format is not None or bool(config.source_keys)
    if not is_named and recognize(source) is not None:
        return _preprocessed_frame(config, str(source), policy, trained, sizes)
    from vlatool.evaluation.offline import frame_of_episode

    detected = detect_source(source, config.format, config.source_keys)
    refs = numbered(detected.refs)
    ids = {number: ref.id for number, ref in refs.items()}
    name = episode_named(ids, config.episode)
    ref = next(ref for ref in detected.refs if ref.id == name)
    episode = detected.reader.read(ref)
    sizes.allowed |= compared(policy, Contract(fps=episode.fps or None), config.allow, source)
    return frame_of_episode(episode, config.frame, policy, sizes, config.instruction)


def _preprocessed_frame(
    config: PredictConfig, location: str, policy: "Policy", trained: Trained, sizes: "ImageSizes"
) -> "RecordedFrame":
    from vlatool.evaluation.offline import RecordedFrame

    pairs = recorded_pairs(location, policy, trained, config.seed)
    sizes.allowed |= compared(policy, pairs.contract, config.allow, location)
    index = pairs.find(config.episode, config.frame)
    if index is None:
        raise DataError(
            f"{location}: episodes and frames of this kind of data cannot be looked up",
            hint="give the raw episodes",
            code="data.missing",
        )
    observation, target = pairs.read([index])[0]
    sizes.check_observation(observation)
    if config.instruction is not None:
        observation = replace(observation, instruction=config.instruction)
    names = {name: field.names for name, field in pairs.fields.items()}
    futures = partial(_pair_futures, pairs, index) if pairs.has_futures else None
    return RecordedFrame(observation, target, names, index, futures)


def _pair_futures(pairs: RecordedPairs, index: int, steps: int) -> RecordedFutures:
    del steps  # that of the data, on which the policy was trained
    return pairs.futures(index)


def _field(chosen: "RecordedFrame", name: str, predicted: "Array") -> FieldPrediction:
    """Prediction [T, C] beside what was recorded."""
    target = chosen.target
    recorded = target.actions.get(name, predicted)[target.mask[: len(predicted)]]
    recorded = recorded if name in target.actions else predicted[:0]
    errors: dict[str, list[float]] = {"policy": [], "last": []}
    if len(recorded):
        errors["policy"] = np.abs(predicted[: len(recorded)] - recorded).mean(axis=0).tolist()
        if name in target.last:
            errors["last"] = np.abs(target.last[name] - recorded).mean(axis=0).tolist()
    return FieldPrediction(
        names=list(chosen.names.get(name, map(str, range(predicted.shape[1])))),
        predicted=predicted.tolist(),
        recorded=recorded.tolist(),
        mae_per_dimension=errors["policy"],
        copy_last_per_dimension=errors["last"],
    )


def _answers_table(answers: Sequence[Mapping[str, float | bool]]) -> "list[Part]":
    """Table of several answers, with their figures by each rule."""
    from vlatool.report.facts import Table

    if not answers:
        return []
    names = [name for name, _ in _figures(answers[0])]
    rows: list[tuple[object, ...]] = []
    for number, each in enumerate(answers, start=1):
        figures = [f"{value:.3f}" for _, value in _figures(each)]
        rows.append((number, *figures, "yes" if each["executed"] else ""))
    return [Table(("answer", *names, "executed"), rows)]


def _write_predict_page(
    result: PredictResult, seen: "Mapping[str, UInt8Array]", command: str
) -> None:
    """Writes the page: figures, what the policy saw, each dimension, predicted images."""
    from vlatool.evaluation import facts
    from vlatool.formats.field_summary import dimension_label
    from vlatool.report.facts import Quotes, Section, Table, Tiles
    from vlatool.report.page import page

    curves: dict[str, tuple[Array, Array]] = {}
    rows: list[tuple[object, ...]] = []
    errors: dict[str, list[float]] = {"error": [], "copy last": []}
    for name, field in result.fields.items():
        predicted = np.asarray(field.predicted, np.float64)
        recorded = np.full_like(predicted, np.nan)
        recorded[: len(field.recorded)] = np.asarray(field.recorded).reshape(-1, len(field.names))
        errors["error"] += field.mae_per_dimension
        errors["copy last"] += field.copy_last_per_dimension
        for index in range(len(field.names)):
            label = dimension_label(name, index, len(field.names), {name: field.names})
            curves[label] = (recorded[:, index], predicted[:, index])
            both = (field.mae_per_dimension, field.copy_last_per_dimension)
            rows.append((label, *(number_text(each[index] if each else None) for each in both)))
    means = {name: number_text(float(np.mean(each))) for name, each in errors.items() if each}
    steps = np.arange(len(next(iter(result.fields.values())).predicted))
    tiles = Tiles({**means, "steps": len(steps), "frames per second": f"{result.fps:g}"})
    folder = local_path(result.page).parent
    images: list[Part] = []
    if result.futures is not None:
        names = [Path(name).name for name in result.futures["files"]]
        images += [facts.saved_image(folder / name, name) for name in names if name != VIDEO]
        images.append(facts.videos(folder, {VIDEO: "recorded, as codes, predicted"}))
    at = f"frame {result.frame}"
    strips = facts.image_strips({name: [(at, image)] for name, image in seen.items()})
    said = {"instruction": [result.instruction]} if result.instruction else {}
    header = ("dimension", "mean absolute error", "of copy last")
    sections = [
        Section("Prediction", [tiles, Quotes(said)]),
        Section("Observation", strips),
        Section("Actions", facts.action_charts(curves, (result.frame + steps) / result.fps)),
        Section("Errors", [Table(header, rows)]),
        Section("Answers", _answers_table(result.answers)),
        Section("Predicted images", [*images, *_futures_tables(result.futures)]),
        facts.command_section(command),
    ]
    subtitle = f"{Path(result.checkpoint).name}, {weights_text(result.weights)}"
    html = page(f"{result.episode}, {at}", subtitle, sections, generator="vlatool predict")
    write_text(local_path(result.page), html)
