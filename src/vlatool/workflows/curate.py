"""Figures of episodes, and rules for those to train on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, SerializeAsAny, create_model, model_validator

from vlatool.artifacts.curation.format import (
    FIGURES,
    FIGURES_NAME,
    MODEL_ERROR,
    NAME,
    PAGE,
    CuratedEpisode,
    Curation,
    read_curation,
    write_curation,
)
from vlatool.artifacts.curation.report import left_out, reasons, sections
from vlatool.config.base import ConfigModel, check_required, option
from vlatool.config.resolve import load_config
from vlatool.errors import VlatoolError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import JobResult, executor_of, make_executor
from vlatool.jobs.executor import Executor
from vlatool.jobs.run import run_command
from vlatool.pages import layout
from vlatool.plugins import SINKS
from vlatool.results import OPTIONAL, UNLISTED
from vlatool.sinks.curation import CurationConfig
from vlatool.storage.atomic import write_text
from vlatool.storage.uri import location
from vlatool.transforms.neighbors import at_like_length
from vlatool.workflows.curate_model import model_errors
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessJob, PreprocessResult


class KeepRule(ConfigModel):
    """Episodes that one figure leaves out; several limits leave out what any of them does."""

    above: float | None = option(None, "Leave out episodes with a larger value.")
    below: float | None = option(None, "Leave out episodes with a smaller value.")
    worst: float | None = option(
        None, "Leave out this share of the episodes, those with the worst values.", gt=0, lt=1
    )
    at_length: bool = option(
        False, "Compare deviations among episodes of like length in place of values."
    )

    @model_validator(mode="after")
    def _has_limit(self) -> Self:
        if self.above is None and self.below is None and self.worst is None:
            raise ValueError("give above, below or worst")
        return self


_RULES: dict[str, Any] = {
    name: (KeepRule | None, option(None, f"Rule for {name}: {figure.about}."))
    for name, figure in FIGURES.items()
}
KeepRules = create_model("KeepRules", __base__=ConfigModel, __doc__="Rules by figure.", **_RULES)


class CurateConfig(PreprocessConfig):
    """Options of `vlatool curate`."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Rules": ("keep", "rules"),
        "Model": ("model", "folds"),
        **{name: keys for name, keys in PreprocessConfig.help_groups.items() if name != "Actions"},
    }
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"keep", "rules", "model", "folds", *PreprocessConfig.no_effect_on_output}
    )

    model: str | None = option(
        None,
        "Run of a policy. Others are trained like it, each without one fold of the episodes, and "
        "give the model_error of that fold.",
    )
    folds: int = option(4, "Number of folds, and of policies that are trained.", ge=2)
    keep: str | None = option(None, "YAML file with rules by figure, over those of `rules`.")
    rules: KeepRules = option(KeepRules(), "Rules that leave episodes out.")  # pyright: ignore[reportInvalidTypeForm]
    sink: SerializeAsAny[CurationConfig] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=CurationConfig, description="Keys of the output."
    )

    @classmethod
    def specialize(cls, tree: Mapping[str, Any]) -> type[Self]:
        return super().specialize({**tree, "sink": "curation"})


@dataclass(frozen=True, kw_only=True)
class CurateResult(JobResult):
    """Episodes that are kept and left out."""

    frames: int
    selected: int
    rules: tuple[str, ...]  # figures with a rule
    left_out: Mapping[str, Sequence[str]]  # map from episode to reasons
    reasons: Mapping[str, int]  # map from figure to episodes that it leaves out
    absent: Mapping[str, str] = field(metadata=OPTIONAL)  # figures that no episode has, and why
    next: str = field(default="", metadata=UNLISTED)

    def summary(self) -> str:
        total = counted(self.episodes, "episode")
        if self.is_planned:
            return f"would read {total}, {counted(self.frames, 'frame')}"
        return f"{total}, {self.selected} kept"

    def details(self) -> Iterator[str]:
        if not self.is_planned and not self.rules:
            yield "without rules every episode is kept: --keep FILE, or --preset curation-default"
        yield from (f"left out by {name}: {count}" for name, count in self.reasons.items())
        yield from (f"no {name}: {reason}" for name, reason in self.absent.items())


def curate(config: CurateConfig, *, reporter: Reporter = NULL) -> CurateResult:
    """Computes figures of each episode, and applies rules.

    The figures are computed once: the same call with other rules only applies them. An interrupted
    run is resumed by the same call.

    Raises:
        UsageError: A required key is missing, or the output belongs to another run.
        DataError: No episode can be used, or one cannot and `on_error` is `stop`.
        PartialFailure: Episodes that could not be read have no figures; the others do.
    """
    check_required(config, "vlatool curate [FORMAT] SOURCE... --output DIR")
    rules = _rules(config)
    preload = ("vlatool.sources.selection", SINKS.target("curation"))
    with make_executor(1) if config.dry_run else executor_of(config, preload) as executor:
        job = PreprocessJob(config)
        job.log_selection(reporter)
        done, failure = _run(job, config, executor, reporter)
    curation = Curation((), {})
    if not config.dry_run:
        measured = read_curation(location(config.output) / FIGURES_NAME)
        if config.model is not None:
            measured = with_errors(measured, model_errors(config, measured, reporter))
        curation = _with_rules(config, measured, rules)
    gone = {each.id: each.reasons for each in left_out(curation)}
    shared: dict[str, Any] = {each.name: getattr(done, each.name) for each in fields(JobResult)}
    if curation.episodes:
        shared["episodes"] = len(curation.episodes)
    result = CurateResult(
        **shared,
        frames=done.frames,
        selected=len(curation.episodes) - len(gone),
        rules=tuple(rules),
        left_out=gone,
        reasons=dict(reasons(curation)),
        absent=curation.absent,
        next=f"vlatool preprocess {' '.join(config.sources)} --episodes @{config.output} "
        f"--output {config.output}-kept",
    )
    if failure is not None:
        failure.result = result
        raise failure
    return result


def _run(
    job: PreprocessJob, config: CurateConfig, executor: Executor, reporter: Reporter
) -> tuple[PreprocessResult, VlatoolError | None]:
    """Result of the job, and its error if only some episodes failed."""
    try:
        return run_command(job, PreprocessResult, config, executor, reporter=reporter), None
    except VlatoolError as error:
        if not isinstance(error.result, PreprocessResult):
            raise
        return error.result, error


def _rules(config: CurateConfig) -> dict[str, KeepRule]:
    """Rules by figure; those of a file over those of the config."""
    layers = [config.rules]
    if config.keep is not None:
        layers.append(load_config(KeepRules, files=[config.keep]).config)
    return {
        name: rule for each in layers for name in FIGURES if (rule := getattr(each, name, None))
    }


def with_errors(curation: Curation, errors: Mapping[str, float]) -> Curation:
    """The curation with the figure `model_error` of episodes by id."""
    values = np.array([errors.get(episode.id, np.nan) for episode in curation.episodes])
    scores = at_like_length(values, np.array([each.frames for each in curation.episodes]))
    episodes = tuple(
        replace(
            each,
            figures={**each.figures, MODEL_ERROR: float(value)},
            at_length={**each.at_length, MODEL_ERROR: float(score)},
        )
        if np.isfinite(value)
        else each
        for each, value, score in zip(curation.episodes, values, scores, strict=True)
    )
    absent = {name: why for name, why in curation.absent.items() if name != MODEL_ERROR}
    return replace(curation, episodes=episodes, absent=absent)


def _with_rules(
    config: CurateConfig, measured: Curation, rules: Mapping[str, KeepRule]
) -> Curation:
    """Applies the rules to the figures, and writes both with the page."""
    output = location(config.output)
    curation = replace(
        measured,
        episodes=tuple(with_reasons(measured.episodes, rules)),
        rules={name: rule.model_dump(exclude_defaults=True) for name, rule in rules.items()},
    )
    write_curation(output / NAME, curation)
    total = counted(len(curation.episodes), "episode")
    subtitle = f"{total}, {len(curation.selected())} kept"
    write_text(output / PAGE, layout.page("Curation", subtitle, sections(output, curation)))
    return curation


def with_reasons(
    episodes: Sequence[CuratedEpisode], rules: Mapping[str, KeepRule]
) -> Iterator[CuratedEpisode]:
    """The episodes with the reasons for which rules leave them out; one without the figure of a
    rule is kept by it.
    """
    reasons_of: dict[str, list[str]] = {episode.id: [] for episode in episodes}
    for name, rule in rules.items():
        values = {
            episode.id: (episode.at_length if rule.at_length else episode.figures)[name]
            for episode in episodes
            if name in (episode.at_length if rule.at_length else episode.figures)
        }
        bad = FIGURES[name].bad
        order = sorted(values, key=lambda each: -bad * values[each])
        worst = {*order[: math.floor((rule.worst or 0) * len(order))]}
        unit = " deviations at like length" if rule.at_length else ""
        for each, value in values.items():
            limits = [
                f"> {rule.above:g}" if rule.above is not None and value > rule.above else "",
                f"< {rule.below:g}" if rule.below is not None and value < rule.below else "",
                f"among the worst {rule.worst:.0%}" if each in worst else "",
            ]
            if any(limits):
                reasons_of[each].append(
                    f"{name} {value:.3g}{unit} {', '.join(filter(None, limits))}"
                )
    return (replace(episode, reasons=tuple(reasons_of[episode.id])) for episode in episodes)
