"""Measures each episode by several figures, and leaves episodes out by rules."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, SerializeAsAny, create_model, model_validator

from vlatool.checkpoints.layout import CONFIG
from vlatool.config.base import ConfigModel, check_required, option
from vlatool.config.resolve import Override, load_config
from vlatool.datasets.frames.layout import FramesFolder
from vlatool.datasets.lbm.layout import ShardFolder
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import JobResult, executor_of
from vlatool.jobs.record import read_record
from vlatool.jobs.run import run_command
from vlatool.plugins import SINKS, is_class_in_file
from vlatool.recordings.curation import layout as curation_layout
from vlatool.recordings.curation.facts import left_out, reasons, sections
from vlatool.recordings.curation.writer import CurationConfig
from vlatool.report.page import page
from vlatool.results import OPTIONAL, UNLISTED
from vlatool.storage.atomic import remove_partials_of, write_text
from vlatool.storage.uri import location, pinned
from vlatool.workflows.preprocess import (
    PreprocessConfig,
    PreprocessJob,
    PreprocessResult,
    preprocess,
)

# Options of the windows of a run that are those of the curation here.
_OF_SELECTION = ("episodes", "exclude", "max_episodes", "format", "sources", "sink")


class KeepRule(ConfigModel):
    """Limits of one figure; an episode that breaks any of them is left out."""

    above: float | None = option(None, "Leave out episodes with a larger value.")
    below: float | None = option(None, "Leave out episodes with a smaller value.")
    worst: float | None = option(
        None, "Leave out this share of the episodes, worst values first.", gt=0, lt=1
    )
    deviations: float | None = option(
        None,
        "Leave out episodes that are worse than episodes of similar length by more than this many "
        "robust standard deviations.",
        gt=0,
    )

    @model_validator(mode="after")
    def _has_limit(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("give above, below, worst or deviations")
        return self


_RULES: dict[str, Any] = {
    name: (KeepRule | None, option(None, f"Rule for {name}: {about}."))
    for name, about in curation_layout.FIGURES.items()
}
KeepRules = create_model("KeepRules", __base__=ConfigModel, __doc__="Rules by figure.", **_RULES)


class CurateConfig(PreprocessConfig):
    """Options of `vlatool curate`."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Rules": ("keep", "rules"),
        "Model": ("model", "folds"),
        **{
            name: keys
            for name, keys in PreprocessConfig.help_groups.items()
            if name not in ("Actions", "Held out", "Next step")
        },
    }

    model: str | None = option(
        None,
        "Run of a policy. For each fold of the episodes, trains one like it on the other folds "
        "and measures its model_error on this fold.",
        affects_output=False,
    )
    folds: int = option(
        4, "Number of folds; one policy is trained for each.", ge=2, affects_output=False
    )
    keep: str | None = option(
        None,
        "YAML file with rules by figure, which replace the same ones in `rules`.",
        affects_output=False,
    )
    rules: KeepRules = option(KeepRules(), "Rules that leave episodes out.", affects_output=False)  # pyright: ignore[reportInvalidTypeForm]
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
    preload = ["vlatool.recordings.select", SINKS.target("curation")]
    preload += [config.format] if is_class_in_file(config.format) else []
    with executor_of(config, preload) as executor:
        job = PreprocessJob(config)
        job.log_selection(reporter)
        failure: VlatoolError | None = None
        try:
            done = run_command(job, PreprocessResult, config, executor, reporter=reporter)
        except VlatoolError as error:  # only some episodes failed, if there is a result
            if not isinstance(error.result, PreprocessResult):
                raise
            done = error.result
            failure = error
    curation = curation_layout.Curation((), {})
    if not config.dry_run:
        measured = curation_layout.read_curation(
            location(config.output) / curation_layout.FIGURES_NAME
        )
        if config.model is not None:
            measured = measured.with_figures(model_errors(config, measured, reporter))
        curation = _with_rules(config, measured, rules)
    gone = {each.id: each.reasons for each in left_out(curation)}
    source = [*filter(None, [config.format]), *config.sources]
    shared: dict[str, Any] = {each.name: getattr(done, each.name) for each in fields(JobResult)}
    if curation.episodes:
        shared["episodes"] = len(curation.episodes)
    chosen = ["--episodes", f"@{config.output}", "--output", f"{config.output}-kept"]
    result = CurateResult(
        **shared,
        frames=done.frames,
        selected=len(curation.episodes) - len(gone),
        rules=tuple(rules),
        left_out=gone,
        reasons=dict(reasons(curation)),
        absent=curation.absent,
        next=shlex.join(["vlatool", "preprocess", *source, *chosen]),
    )
    if failure is not None:
        failure.result = result
        raise failure
    return result


def _rules(config: CurateConfig) -> dict[str, KeepRule]:
    """Rules by figure; the file of `keep` replaces rules of the config."""
    layers = [config.rules]
    if config.keep is not None:
        layers.append(load_config(KeepRules, files=[config.keep]).config)
    rules: dict[str, KeepRule] = {}
    for layer in layers:
        for name in curation_layout.FIGURES:
            rule = getattr(layer, name, None)
            if rule is not None:
                rules[name] = rule
    return rules


def _with_rules(
    config: CurateConfig, measured: curation_layout.Curation, rules: Mapping[str, KeepRule]
) -> curation_layout.Curation:
    """Applies the rules to the figures, and writes both with the page."""
    output = location(config.output)
    curation = replace(
        measured,
        episodes=tuple(with_reasons(measured.episodes, rules)),
        rules={name: rule.model_dump(exclude_defaults=True) for name, rule in rules.items()},
    )
    for name in (curation_layout.NAME, curation_layout.PAGE):
        remove_partials_of(output / name)  # of a process that was killed here
    curation_layout.write_curation(output / curation_layout.NAME, curation)
    total = counted(len(curation.episodes), "episode")
    subtitle = f"{total}, {len(curation.selected())} kept"
    write_text(
        output / curation_layout.PAGE, page("Curation", subtitle, sections(output, curation))
    )
    return curation


def with_reasons(
    episodes: Sequence[curation_layout.CuratedEpisode], rules: Mapping[str, KeepRule]
) -> Iterator[curation_layout.CuratedEpisode]:
    """The episodes with the reasons for which rules leave them out. A rule keeps episodes that do
    not have its figure.
    """
    worst: dict[str, set[str]] = {}
    for name, rule in rules.items():
        known = [episode for episode in episodes if name in episode.figures]
        order = sorted(known, key=lambda each: -curation_layout.badness(name, each.figures[name]))
        worst[name] = {each.id for each in order[: math.floor((rule.worst or 0) * len(order))]}
    for episode in episodes:
        reasons: list[str] = []
        for name, rule in ((name, rules[name]) for name in rules if name in episode.figures):
            value = episode.figures[name]
            score = curation_layout.badness(name, episode.at_length[name])
            limits = {
                f"> {rule.above}": rule.above is not None and value > rule.above,
                f"< {rule.below}": rule.below is not None and value < rule.below,
                f"among the worst {rule.worst or 0:.0%}": episode.id in worst[name],
                f"{score:.3g} deviations worse than similar lengths": rule.deviations is not None
                and score > rule.deviations,
            }
            if any(limits.values()):
                why = ", ".join(limit for limit, holds in limits.items() if holds)
                reasons.append(f"{name} {value:.3g} ({why})")
        yield replace(episode, reasons=tuple(reasons))


def model_errors(
    config: CurateConfig, curation: curation_layout.Curation, reporter: Reporter
) -> dict[str, Array]:
    """The figure `model_error` [N] of each episode: the error of actions, in standard deviations,
    of a policy that was trained on the other folds with the configuration of the run
    `config.model`; NaN where nothing was measured. Finished folds are not trained again.

    Raises:
        DataError: There is no such run.
        UsageError: The run is no policy, or was not trained on data of `vlatool preprocess`.
    """
    from vlatool.evaluation.config import OpenLoopConfig
    from vlatool.training.config import TrainConfig
    from vlatool.workflows.open_loop import open_loop
    from vlatool.workflows.train import train

    run = pinned(config.model or "")
    if not (run / CONFIG).is_file():
        hint = "give the folder of a run of `vlatool train`, with its config.yaml"
        raise DataError.at(run, "is no training run", hint=hint, code="data.no_source")
    trained: Any = load_config(TrainConfig, files=[str(run / CONFIG)]).config
    manifests = getattr(trained.data, "dataset_manifest", ())
    record = read_record(_output_of(pinned(manifests[0]))) if manifests else None
    if record is None:
        raise UsageError(
            f"{config.model}: is not the run of a policy, or its training data are gone",
            hint="train one on data of `vlatool preprocess`: vlatool train --data DIR",
            code="usage.bad_value",
        )
    root = location(config.output) / curation_layout.FOLDS / f"{run.name}_{config.folds}"
    of_windows = {key: value for key, value in record.options.items() if key not in _OF_SELECTION}
    of_windows["sink.type"] = record.options.get("sink", "lbm")
    folds: list[Path] = []
    for part in range(config.folds):  # every `folds`-th episode from `part` on
        episodes: list[curation_layout.CuratedEpisode] = []
        for row, episode in enumerate(curation.episodes):
            reasons = () if row % config.folds == part else ("another fold",)
            episodes.append(replace(episode, reasons=reasons))
        chosen = root / f"part_{part}.json"
        curation_layout.write_curation(chosen, curation_layout.Curation(tuple(episodes), {}, {}))
        folds.append(root / f"data_{part}")
        of_part: dict[str, Any] = {
            "sources": config.sources,
            "episodes": f"@{chosen}",
            "output": str(folds[-1]),
            "workers": config.workers,
        }
        if config.format:
            of_part["format"] = config.format
        windows = load_config(PreprocessConfig, overrides=_typed({**of_windows, **of_part}))
        preprocess(windows.config, reporter=reporter)
    errors: dict[str, float] = {}
    for part, tested in enumerate(folds):
        keys = {
            "data.dataset_manifest": [str(fold) for fold in folds if fold != tested],
            "data.dataset_statistics": [],
            "data.episodes": None,
            "save_path": str(root),
            "name": f"run_{part}",
            "remote_sync": None,
        }
        resolved = load_config(TrainConfig, files=[str(run / CONFIG)], overrides=_typed(keys))
        train(resolved.config, reporter=reporter)
        asked = OpenLoopConfig(
            checkpoint=str(root / f"run_{part}"),
            data=str(tested),
            output=str(root / f"errors_{part}"),
        )
        done = open_loop(asked, reporter=reporter).episodes
        errors |= {each.episode: each.error for each in done if each.error is not None}
    return {
        curation_layout.MODEL_ERROR: np.array(
            [errors.get(each.id, np.nan) for each in curation.episodes]
        )
    }


def _output_of(data: Path) -> Path:
    """Output folder to which a folder of frames or the manifest of shards belongs."""
    frames = FramesFolder.find(data)
    return ShardFolder.open(data).output if frames is None else frames.path


def _typed(keys: Mapping[str, Any]) -> list[Override]:
    return [Override(key, value, "curate --model") for key, value in keys.items()]
