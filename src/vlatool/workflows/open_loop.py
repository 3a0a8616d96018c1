"""Predicted action chunks compared with recorded ones.

Legend of shapes: T action steps, C dimensions of a field.
"""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlatool.config.base import (
    check_required,
    typed_command,
)
from vlatool.datasets.lbm.layout import SHARDS_NAME
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.ownership import check_owner, single_output
from vlatool.jobs.record import OutputRecord
from vlatool.loading.base import RecordedPairs, Split
from vlatool.models.published import Trained
from vlatool.models.trained import data_kind_of
from vlatool.report.text import number_text
from vlatool.results import UNLISTED, Result
from vlatool.storage.atomic import write_json, write_text
from vlatool.storage.uri import is_remote, local_path, pinned
from vlatool.transforms.neighbors import spread
from vlatool.workflows import evaluate

if TYPE_CHECKING:
    from vlatool.episode import UInt8Array
    from vlatool.evaluation.offline import EpisodeErrors, Verdict

_NUM_WORST = 3


# Episodes with curves on a page from each end, and images of each.
_NUM_SHOWN = 2


_NUM_IMAGES = 6


@dataclass(frozen=True)
class OpenLoopResult(Result):
    """Errors of predicted action chunks, measured against recorded ones."""

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
    allowed: evaluate.Allowed | None = None
    split: str = "all"  # `val`: only the episodes that the data of the run hold out
    next: str = dataclasses.field(default="", metadata=UNLISTED)

    def lines(self) -> Iterator[str]:
        names = [name for name in ("policy", "mean_action", "copy_last") if name in self.overall]
        columns = "".join(f"{name:>14}" for name in names)
        yield f"{'field':<52}{columns}  better than mean"
        for field, metrics in self.fields.items():
            yield f"{field[-51:]:<52}{_field_text(metrics, names)}"
            for text in _details(metrics):
                yield f"   {text}"
        overall = _figures([self.overall[name] for name in names])
        yield f"{'overall, in standard deviations':<52}{overall}"
        steps = len(self.overall_by_step["policy"])
        if steps > 1:
            for step in sorted({0, steps // 2, steps - 1}):
                errors = _figures([self.overall_by_step[name][step] for name in names])
                yield f"{f'   step {step + 1} of {steps}':<52}{errors}"
        chunks = counted(self.samples, "chunk")
        yield f"{chunks}, {evaluate.weights_text(self.weights)}; page: {self.page}"
        if self.invalid:
            yield f"{counted(self.invalid, 'chunk is', 'chunks are')} not finite"
        if self.futures is not None:
            yield from evaluate.futures_text(self.futures)
        for verdict in self.verdicts:
            yield f"the policy is {verdict.text()}"


def _figures(values: Sequence[float | None]) -> str:
    """Figures below the names of the predictors."""
    return "".join(f"{evaluate.digits_text(value, 5):>14}" for value in values)


def _field_text(metrics: Mapping[str, Any], predictors: Sequence[str]) -> str:
    """Mean errors of a field; `constant` if none of its dimensions ever changes."""
    varying = metrics["moving_dimensions"]
    better = "constant"
    if varying:
        better = f"{metrics['dimensions_better_than_mean']} of {varying}"
    return f"{_figures([metrics[name]['mae'] for name in predictors])}  {better}"


def _details(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yields the dimensions that never change, and the named dimensions with the largest errors."""
    names = metrics["names"]
    constant = metrics["constant_dimensions"]
    if constant and metrics["moving_dimensions"]:
        yield f"constant: {', '.join(names[index] for index in constant)}"
    is_named = all(name != str(index) for index, name in enumerate(names))
    if not is_named or len(names) - len(constant) <= _NUM_WORST:
        return
    errors: list[tuple[float, str]] = []
    for index, error in enumerate(metrics["policy"]["mae_per_dimension"]):
        if index not in constant:
            errors.append((error, names[index]))
    errors.sort(reverse=True)
    worst = [f"{name} {error:.5f}" for error, name in errors[:_NUM_WORST]]
    yield f"largest errors: {', '.join(worst)}"


def open_loop(config: OpenLoopConfig, *, reporter: Reporter = NULL) -> OpenLoopResult:
    """Compares predicted with recorded action chunks, usually on held-out data.

    Without `data`, uses the episodes that the training data hold out. If `data` are the training
    data, only their held-out episodes are used, if there are any. Other data are used completely.

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
    output = evaluate.results_folder(config.output, trained, f"open-loop-{data.name}")
    options = evaluate.recorded_options(config, trained, data=data)
    if split != "all":
        options["split"] = split
    record = OutputRecord("eval open-loop", options)
    check_owner(output, record)
    pairs = evaluate.recorded_pairs(str(data), policy, trained, config.seed, split)
    if not pairs.fields:
        raise DataError(
            f"{data}: no field of the policy's actions is in the data: {', '.join(policy.actions)}",
            hint="preprocess them again with these --action-fields",
            code="data.missing",
        )
    allowed = evaluate.compared(policy, pairs.contract, config.allow, data)
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
        checkpoint=str(evaluate.checkpoint_of(trained)),
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
        report=str(output / evaluate.REPORT),
        allowed=allowed | sizes.allowed or None,
        next=_next_command(config.checkpoint, trained),
    )
    with single_output(output, record, (REPORT_PAGE, evaluate.REPORT)):
        command = typed_command("eval open-loop", config, ("checkpoint", "data"))
        _write_open_loop_page(result, pairs, command)
        write_json(output / evaluate.REPORT, result.document())
    return result


def _evaluated_data(
    config: OpenLoopConfig, trained: Trained, reporter: Reporter
) -> tuple[str, Split]:
    """Location of the data, and which of their episodes are used.

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
            if validation.is_held_out:
                split = "val"
    if not config.data:
        if len(held_out) != 1:
            problem = "have several held-out data sets" if held_out else "have no held-out episodes"
            example = (held_out or trained_on or ["DATA"])[0]
            raise UsageError(
                f"the data of {config.checkpoint} {problem}; say which data to compare with",
                hint=f"vlatool eval open-loop {config.checkpoint} {example}",
                code="usage.missing_key",
            )
        return held_out[0], split
    place = _place(config.data)
    if split == "val" and place in map(_place, held_out):
        reporter.note(f"{config.data}: trained on, so only the held-out episodes are compared")
        return config.data, "val"
    if place in map(_place, trained_on):
        reporter.note(
            f"{config.data}: the policy was trained on these episodes; expect larger errors on "
            "others"
        )
    return config.data, "all"


def _place(text: str) -> str:
    """The folder of data, so that locations can be compared; a manifest stands for its folder."""
    path = pinned(text)
    if path.suffix in (".json", ".jsonl"):
        path = path.parent
    if path.name == SHARDS_NAME:
        path = path.parent
    return str(path if is_remote(path) else path.resolve())


def _next_command(checkpoint: str, trained: Trained) -> str:
    """The next command: rollouts in the environment that the run names, else `serve`."""
    words = ["serve", checkpoint]
    if trained.origin.run is not None:
        section = (trained.origin.run.read_config() or {}).get("eval")
        if isinstance(section, dict) and section.get("env"):
            words = ["eval", "rollout", checkpoint, "--env", str(section["env"])]
    return shlex.join(["vlatool", *words])


def _write_open_loop_page(result: OpenLoopResult, pairs: RecordedPairs, command: str) -> None:
    from vlatool.evaluation import facts
    from vlatool.report.facts import Fold, Section, Table, Text
    from vlatool.report.page import page

    episodes = [episode for episode in result.episodes if episode.error is not None]
    ranked = {f"worst {number + 1}": row for number, row in enumerate(episodes[:_NUM_SHOWN])}
    best = episodes[max(_NUM_SHOWN, len(episodes) - _NUM_SHOWN) :]
    for number, episode in enumerate(best):
        ranked[f"best {len(best) - number}"] = episode
    cards: list[Section] = []
    for rank, episode in ranked.items():
        seconds = np.array([point.frame for point in episode.points]) / pairs.fps
        charts = facts.action_charts(episode.curves(pairs.fields), seconds)
        text = f"{number_text(episode.error)} standard deviations over {episode.samples} chunks"
        title = f"{episode.episode or 'all episodes'} ({rank} of {len(episodes)})"
        strips = facts.image_strips(_images_of(episode, pairs))
        about = Text(f"{text}; recorded action, and the predicted one at each frame, dashed")
        cards.append(Section(title, [about, *strips, *charts], is_under=True))
    rows: list[tuple[object, ...]] = []
    for episode in result.episodes:
        rows.append((episode.episode, episode.samples, number_text(episode.error)))
    every = Fold(counted(len(rows), "episode"), [Table(("episode", "chunks", "error"), rows)])
    sections = [
        Section("Verdict", [Text(f"The policy is {row.text()}.") for row in result.verdicts]),
        *facts.error_sections(
            result.overall, result.overall_by_step, result.fields, result.samples
        ),
        Section("Predicted images", evaluate.futures_tables(result.futures)),
        Section("Worst and best episodes", [every]),
        *cards,
        facts.command_section(command),
    ]
    title = f"Open-loop errors on {Path(result.data.rstrip('/')).name}"
    subtitle = f"{counted(result.samples, 'chunk')} of {Path(result.checkpoint).name}, "
    subtitle += evaluate.weights_text(result.weights)
    generator = "vlatool eval open-loop"
    write_text(local_path(result.page), page(title, subtitle, sections, generator=generator))


def _images_of(
    episode: "EpisodeErrors", pairs: RecordedPairs
) -> "dict[str, list[tuple[str, UInt8Array]]]":
    """Newest image of each camera at evenly spaced points, with captions."""
    points = [episode.points[index] for index in spread(len(episode.points), _NUM_IMAGES)]
    recorded = pairs.read([point.index for point in points])
    strips: dict[str, list[tuple[str, UInt8Array]]] = {}
    for point, (observation, _) in zip(points, recorded, strict=True):
        for camera, images in observation.images.items():
            strips.setdefault(camera, []).append((f"frame {point.frame}", images[-1]))
    return strips
