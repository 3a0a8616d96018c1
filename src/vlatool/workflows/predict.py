"""Asks a policy for an action chunk at one frame of recorded data, and shows it beside the record.

Legend of shapes: T action steps, C dimensions of a field.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlatool.checkpoints.contract import Contract
from vlatool.config.base import (
    check_required,
    option,
    required_field,
    typed_command,
)
from vlatool.errors import DataError
from vlatool.evaluation.config import SamplingOptions, allow_option
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.ownership import check_owner, require_input, single_output
from vlatool.jobs.record import OutputRecord
from vlatool.loading.base import RecordedFutures, RecordedPairs
from vlatool.loading.lookup import episode_named
from vlatool.models.published import Trained
from vlatool.models.trained import Weights
from vlatool.recordings.artifact import recognize
from vlatool.recordings.base import id_part
from vlatool.recordings.choice import numbered
from vlatool.recordings.detect import SourceKeys, detect_source
from vlatool.report.text import number_text
from vlatool.results import Result
from vlatool.storage.atomic import write_json, write_text
from vlatool.storage.uri import local_path, pinned
from vlatool.workflows import evaluate

if TYPE_CHECKING:
    from vlatool.episode import Array, UInt8Array
    from vlatool.evaluation.control import ImageSizes
    from vlatool.evaluation.recorded import RecordedFrame
    from vlatool.models.base import Candidates, Decision, Policy
    from vlatool.models.tokenizer import OpenTokenizer
    from vlatool.report.facts import Part

VIDEO = "futures.mp4"


class PredictConfig(SamplingOptions, SourceKeys):
    """Options of `vlatool predict`."""

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    source: str = required_field(
        "", "Raw episodes of any format, or the data that `eval open-loop` takes."
    )
    episode: str = option("0", "Number of the episode, or its id.")
    frame: int = option(0, "Frame at which the policy acts.", ge=0)
    output: str | None = option(
        None, "Folder for the results; null: a folder in the run, if the run is local."
    )
    instruction: str | None = option(
        None, "Instruction for the policy; null: the instruction of the episode."
    )
    weights: Weights = option(
        "auto", "Averaged (ema) or raw weights; auto: averaged if there are any."
    )
    seed: int = option(0, "Seed of the sampled noise.", ge=0)
    tokenizer: str | None = option(
        None,
        "Visual tokenizer that turns predicted codes into images, for policies that predict "
        "images; null: predict no images.",
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
    allowed: evaluate.Allowed | None = None

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
            f"{counted(horizon, 'step')} at {self.fps:g} per second, {self.ms_per_decision:.1f} "
            f"ms{tokens} per decision, {evaluate.weights_text(self.weights)}; page: {self.page}"
        )
        for number, answer in enumerate(self.answers, start=1):
            figures = [f"{rule} {value:.3f}" for rule, value in _figures(answer).items()]
            if answer["executed"]:
                figures.append("executed")
            yield f"answer {number}: {', '.join(figures)}"
        if self.futures is not None:
            yield from evaluate.futures_text(self.futures)
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
    output = evaluate.results_folder(
        config.output, trained, f"predict-{source.name}-{config.episode}-{config.frame}"
    )
    record = OutputRecord("predict", evaluate.recorded_options(config, trained, source=source))
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
        checkpoint=str(evaluate.checkpoint_of(trained)),
        weights=trained.origin.weights,
        source=config.source,
        fps=policy.fps,
        ms_per_decision=milliseconds,
        tokens_per_decision=tokens,
        answers=_answers(decision) if config.samples > 1 else [],
        futures=futures and {**futures.scores, "files": [str(output / name) for name in names]},
        page=str(output / REPORT_PAGE),
        report=str(output / evaluate.REPORT),
        episode=chosen.target.episode,
        frame=chosen.target.frame,
        instruction=chosen.observation.instruction,
        fields={name: _field(chosen, name, values[0]) for name, values in chunk.items()},
        allowed=sizes.allowed or None,
    )
    with single_output(output, record, (REPORT_PAGE, evaluate.REPORT, *names)):
        if futures is not None:
            save_futures(output, futures.lines, future_name, VIDEO)
        seen = {name: images[-1] for name, images in chosen.observation.images.items()}
        _write_predict_page(
            result, seen, typed_command("predict", config, ("checkpoint", "source"))
        )
        document = result.document()
        del document["ms_per_decision"]  # the same command writes the same bytes
        write_json(output / evaluate.REPORT, document)
    return result


def _recorded_frame(
    config: PredictConfig, source: Path, policy: "Policy", trained: Trained, sizes: "ImageSizes"
) -> "RecordedFrame":
    """The chosen frame of raw episodes or of preprocessed data."""
    is_named = config.format is not None or bool(config.source_keys)
    if not is_named and recognize(source) is not None:
        return _preprocessed_frame(config, str(source), policy, trained, sizes)
    from vlatool.evaluation.recorded import frame_of_episode

    detected = detect_source(source, config.format, config.source_keys)
    ids = {number: ref.id for number, ref in numbered(detected.refs).items()}
    refs = {ref.id: ref for ref in detected.refs}
    episode = detected.reader.read(refs[episode_named(ids, config.episode)])
    sizes.allowed |= evaluate.compared(
        policy, Contract(fps=episode.fps or None), config.allow, source
    )
    return frame_of_episode(episode, config.frame, policy, sizes, config.instruction)


def _preprocessed_frame(
    config: PredictConfig, location: str, policy: "Policy", trained: Trained, sizes: "ImageSizes"
) -> "RecordedFrame":
    from vlatool.evaluation.recorded import RecordedFrame

    pairs = evaluate.recorded_pairs(location, policy, trained, config.seed)
    sizes.allowed |= evaluate.compared(policy, pairs.contract, config.allow, location)
    index = pairs.find(config.episode, config.frame)
    if index is None:
        raise DataError(
            f"{location}: vlatool cannot find single episodes and frames in this kind of data",
            hint="give the raw episodes from which these data were made",
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
    """Prediction [T, C] beside the recorded actions."""
    target = chosen.target
    recorded = predicted[:0]
    if name in target.actions:
        recorded = target.actions[name][target.mask[: len(predicted)]]
    errors: list[float] = []
    errors_of_last: list[float] = []
    if len(recorded):
        errors = np.abs(predicted[: len(recorded)] - recorded).mean(axis=0).tolist()
        if name in target.last:
            errors_of_last = np.abs(target.last[name] - recorded).mean(axis=0).tolist()
    return FieldPrediction(
        names=list(chosen.names.get(name, map(str, range(predicted.shape[1])))),
        predicted=predicted.tolist(),
        recorded=recorded.tolist(),
        mae_per_dimension=errors,
        copy_last_per_dimension=errors_of_last,
    )


def future_name(camera: str) -> str:
    """Name of the file with the predicted images of a camera."""
    return f"future-{id_part(camera)}.png"


@dataclass(frozen=True)
class _Futures:
    """Predicted and recorded images [F, S, S, 3] by camera, and the errors of the prediction."""

    predicted: "Mapping[str, UInt8Array]"  # images of predicted codes of the executed answer
    lines: "Mapping[str, Mapping[str, UInt8Array]]"  # what is drawn, from top to bottom, by label
    scores: Mapping[str, Any]  # errors; empty if nothing was recorded


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
    predicted: dict[str, UInt8Array] = {}
    count = len(next(iter(candidates.codes.values())))
    for number in range(count):
        images: dict[str, UInt8Array] = {}
        for camera, values in candidates.codes.items():
            images[camera] = decoded_images(tokenizer, values[number])
        is_executed = number == candidates.chosen
        if is_executed:
            predicted = images
        label = "predicted"
        if count > 1:
            label += f", answer {number + 1}"
            if is_executed:
                label += ", executed"
        drawn[label] = images
    if chosen.futures is None:
        return _Futures(predicted, drawn, {})
    recorded = chosen.futures(len(next(iter(predicted.values()))))
    scores = FutureScores(tokenizer)
    scores.add(codes, recorded, chosen.observation)
    resized: dict[str, UInt8Array] = {}
    reconstructed: dict[str, UInt8Array] = {}
    for camera, values in recorded.images.items():
        resized[camera] = prepared_images(tokenizer, camera, values)
        reconstructed[camera] = reconstructed_images(tokenizer, resized[camera])
    lines = {"recorded": resized, "recorded, as codes": reconstructed, **drawn}
    return _Futures(predicted, lines, {"steps": scores.report()["steps"]})


def _answers(decision: "Decision") -> list[dict[str, float | bool]]:
    candidates = decision.candidates[0]
    answers: list[dict[str, float | bool]] = []
    for number in range(len(candidates.scores["probable"])):
        answer: dict[str, float | bool] = {}
        for rule, scores in candidates.scores.items():
            answer[str(rule)] = float(scores[number])
        answer["executed"] = number == candidates.chosen
        answers.append(answer)
    return answers


def _figures(answer: Mapping[str, float | bool]) -> dict[str, float]:
    """Figures of an answer, for each rule."""
    return {rule: value for rule, value in answer.items() if rule != "executed"}


def _write_predict_page(
    result: PredictResult, seen: "Mapping[str, UInt8Array]", command: str
) -> None:
    """Writes the page: figures, what the policy saw, each dimension, predicted images."""
    from vlatool.evaluation import facts
    from vlatool.recordings.field_summary import dimension_label
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
            figures = [number_text(None), number_text(None)]
            if field.mae_per_dimension:
                figures[0] = number_text(field.mae_per_dimension[index])
            if field.copy_last_per_dimension:
                figures[1] = number_text(field.copy_last_per_dimension[index])
            rows.append((label, *figures))
    figures_at_top: dict[str, object] = {}
    for name, values in errors.items():
        if values:
            figures_at_top[name] = number_text(float(np.mean(values)))
    steps = np.arange(len(next(iter(result.fields.values())).predicted))
    figures_at_top |= {"steps": len(steps), "frames per second": f"{result.fps:g}"}
    tiles = Tiles(figures_at_top)
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
        Section("Predicted images", [*images, *evaluate.futures_tables(result.futures)]),
        facts.command_section(command),
    ]
    subtitle = f"{Path(result.checkpoint).name}, {evaluate.weights_text(result.weights)}"
    html = page(f"{result.episode}, {at}", subtitle, sections, generator="vlatool predict")
    write_text(local_path(result.page), html)


def _answers_table(answers: Sequence[Mapping[str, float | bool]]) -> "list[Part]":
    """Table of several answers, with their figures by each rule."""
    from vlatool.report.facts import Table

    if not answers:
        return []
    rows: list[tuple[object, ...]] = []
    for number, answer in enumerate(answers, start=1):
        figures = [f"{value:.3f}" for value in _figures(answer).values()]
        rows.append((number, *figures, "yes" if answer["executed"] else ""))
    return [Table(("answer", *_figures(answers[0]), "executed"), rows)]
