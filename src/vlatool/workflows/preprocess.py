"""Turns raw episodes of any format into training data of any sink."""

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, SerializeAsAny, create_model, field_validator

from vlatool.config import base
from vlatool.config.base import Ignored, Names, option
from vlatool.conventions.contradiction import check_rate, contradictions, relative_twice
from vlatool.conventions.file import CONVENTIONS
from vlatool.conventions.measure import Measured, measure_some
from vlatool.episode import NO_ACTIONS, Episode, EpisodeRef, Survey
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.events import NULL, Reporter, counted
from vlatool.findings import Finding
from vlatool.jobs.command import EngineConfig, JobResult, executor_of, make_executor
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun, JobSpec, plan_digest
from vlatool.jobs.journal import Receipt
from vlatool.jobs.ownership import require_input, versions_of
from vlatool.jobs.record import OutputRecord, recorded_options, side_files
from vlatool.jobs.run import run_command
from vlatool.plugins import (
    DEFAULT_SINK,
    FORMATS,
    PUBLISHED_SINK,
    SINKS,
    file_digest_of,
    is_class_in_file,
)
from vlatool.recordings.base import FormatReader
from vlatool.recordings.commands import LaterValues, later_values, proposals_text
from vlatool.recordings.detect import DeferredKeys, detect_source, name_other_format, with_mapping
from vlatool.recordings.mapping import usual_rate
from vlatool.recordings.renaming import with_names
from vlatool.recordings.select import (
    EpisodeTask,
    SelectedEpisodes,
    SelectionConfig,
    count_frames,
    episode_state,
    reader_section,
    select_episodes,
)
from vlatool.recordings.writing import (
    MakeSink,
    Sink,
    SinkConfig,
    SinkSetup,
    SinkSummary,
    no_rate,
    with_encoders_of,
)
from vlatool.report.facts import evenly_spaced
from vlatool.report.text import few_text
from vlatool.results import OPTIONAL, UNLISTED
from vlatool.storage.tree import size_text
from vlatool.storage.uri import location, pinned
from vlatool.transforms.relative import declarations, stored_from

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreprocessResult(JobResult):
    """Result of a run."""

    frames: int
    samples: int
    shards: int
    bytes: int
    cameras: tuple[str, ...]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    dropped: Mapping[str, int]
    bytes_on_disk: int = 0
    empty_episodes: tuple[str, ...] = ()  # without samples
    warnings: tuple[str, ...] = ()
    next: str = field(default="", metadata=UNLISTED)
    # Source of the numbers of a dry run.
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # Counts besides samples and shards.
    amounts: Mapping[str, int] = field(default_factory=dict[str, int], metadata=OPTIONAL)
    left_out_fields: tuple[str, ...] = ()  # of the source, which the sink does not store
    # What else the source stores and the output does not: `path`, `content` and `reason` of each.
    left_out: Sequence[Mapping[str, str]] = ()

    def summary(self) -> str:
        shards = f" in {counted(self.shards, 'shard')}" if self.shards else ""
        samples = f"{counted(self.samples, 'sample')}{shards}"
        content = f"{samples} from {counted(self.episodes, 'episode')}"
        if self.is_planned:
            return f"would write about {content}"
        size = f"{size_text(self.bytes)}"
        if self.bytes_on_disk and self.shards and not self.amounts:
            size += f" of shards, {size_text(self.bytes_on_disk)} in total"
        return f"{content} ({size})"

    def details(self) -> Iterator[str]:
        yield f"cameras: {', '.join(self.cameras) or 'none'}"
        if self.action_fields:
            yield f"actions: {', '.join(self.action_fields)}"
        if self.proprioception_fields:
            yield f"proprioception: {', '.join(self.proprioception_fields)}"
        left_out = [*self.left_out_fields, *(part["path"] for part in self.left_out)]
        if left_out:
            yield f"left out: {few_text(left_out)}"
        for name, count in self.amounts.items():
            yield f"{_AMOUNTS.get(name, name.replace('_', ' '))}: {count}"
        for reason, count in self.dropped.items():
            if reason in _LEFT_OUT:
                yield f"{counted(count, 'window is', 'windows are')} left out: {_LEFT_OUT[reason]}"
            else:
                yield f"dropped {count}: {reason}"
        yield from (f"no samples from {name}" for name in self.empty_episodes)


_SHARDS = "shards"
_MOST_COMPARED = 8  # episodes, to find the action by its numbers
# Words for counts and reasons of the results.
_AMOUNTS = {
    "held_out_episodes": "episodes held out for evaluation",
    "untouched": "images copied unchanged",
}
_LEFT_OUT = {
    "padding": "they reach further beyond the ends of an episode than --max-padding-left and "
    "--max-padding-right allow",
    "still": "nothing moves in them, and --filter-still-samples is on",
}
if TYPE_CHECKING:
    _DefaultConfig = SinkConfig
else:
    _DefaultConfig = SINKS.get(DEFAULT_SINK).Config
_NEXT_WITHOUT_ACTIONS = "vlatool inspect {output}"
_TRAIN_PRESET = "vlatool train --preset {preset} --data {output} --output runs/{name}"


class PreprocessConfig(EngineConfig, SelectionConfig):
    """Options of `vlatool preprocess`; keys of format and sink may be given without a section."""

    flat_sections: ClassVar[tuple[str, ...]] = ("source", "sink")
    registries: ClassVar[Mapping[str, Any]] = {"source": FORMATS, "sink": SINKS}
    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **SelectionConfig.help_groups,
        "Held out": ("hold_out", "hold_out_seed"),
        "Next step": ("train_preset",),
        "Actions": ("action_fields", "trust_declared"),
        **EngineConfig.help_groups,
    }
    NAMES: ClassVar[Names] = {
        "type": "format",
        "source_episodes": "sources",
        "dataset_root": "sources",
        "input_dir": "sources",
        "output_dir": "output",
        "out_dir": "output",
        "num_workers": "workers",
        "max_episodes_to_process": "max_episodes",
        "limit": "max_episodes",
        "use_depth_data": "depth",
        "resize_to": "resize_images_size",
        "overwrite_images": Ignored(
            "images are always written together with their episode", is_switch=True
        ),
        "auto_tag": Ignored("git is never used; the run record has the version", is_switch=True),
        "skip_git_tagging": Ignored(
            "git is never used; the run record has the version", is_switch=True
        ),
        "output_dir_fixed_path": Ignored("no second copy is written; copy the output yourself"),
        "db_logging": Ignored(
            "there is no database; .vlatool/run.json records the run", is_switch=True
        ),
    }

    output: str = base.required_field("", "Folder to write.")
    action_fields: list[str] = option(
        [],
        "Fields of an action, in order; relative poses have the suffix _relative. Default: what "
        "your recordings say; none: no action.",
    )
    hold_out: float | None = option(
        None,
        "Share of the episodes that training leaves out, for evaluation; null: the splits of the "
        "source if it has train and val, else 0.1, or 0 of fewer than 5 episodes.",
        ge=0,
        lt=1,
    )
    hold_out_seed: int | None = option(
        None, "Seed that chooses the held-out episodes; null: 0.", ge=0
    )
    trust_declared: bool = option(
        False,
        "Write the data even if the recorded states clearly contradict what you declared about "
        "the actions.",
        affects_output=False,
    )
    train_preset: str | None = option(
        None, "Preset of `train` that the line `next:` shows.", affects_output=False
    )
    sink: SerializeAsAny[_DefaultConfig] = Field(
        default_factory=lambda: SINKS.get(DEFAULT_SINK).Config(), description="Keys of the sink."
    )

    @field_validator("action_fields")
    @classmethod
    def _unique_fields(cls, value: list[str]) -> Any:
        return base.unique_items(value)

    @field_validator("sources", "output")
    @classmethod
    def _not_blank(cls, value: list[str] | str) -> list[str] | str:
        is_unset = value == ""  # reported later as a required key
        texts = [value] if isinstance(value, str) else value
        if not is_unset and any(not text.strip() for text in texts):
            raise ValueError("a location is empty")
        return value

    @classmethod
    def implied(cls, tree: Mapping[str, Any], names: Set[str]) -> Mapping[str, Any]:
        """The published command of LBM writes the published shards."""
        return {"sink": {"type": PUBLISHED_SINK}} if names & LBM_NAMES else {}

    @classmethod
    def specialize(cls, tree: Mapping[str, Any]) -> type[Self]:
        """Subclass with the keys of the format and of the sink, resolved before all other keys."""
        fields: dict[str, Any] = {}
        name = str(tree.get("format") or cls.model_fields["format"].default)
        if not name:
            keys = _keys_of_formats(tree)
            try:
                name = _detected(tree.get("sources"), keys)
            except VlatoolError:
                if keys:
                    raise
                # Else raised by the command, if it runs.
            else:
                description = cls.model_fields["format"].description
                fields["format"] = (str, Field(default=name, description=description))
        sink = tree.get("sink")
        named = sink.get("type") if isinstance(sink, Mapping) else sink
        keys = {*tree, *(sink if isinstance(sink, Mapping) else ())}
        source = _section(FORMATS, name, "format") if name else DeferredKeys
        default = default_sink_of(name)
        if default == DEFAULT_SINK and keys & published_keys():
            default = PUBLISHED_SINK
        sections = {"source": source, "sink": _section(SINKS, str(named or default), "sink")}
        for key, kind in sections.items():
            description = cls.model_fields[key].description
            fields[key] = (kind, Field(default_factory=kind, description=description))
        return create_model(cls.__name__, __base__=cls, **fields)


# Names of the published command of LBM that no other program has.
LBM_NAMES = frozenset({
    "type", "source_episodes", "max_episodes_to_process", "auto_tag", "skip_git_tagging",
    "output_dir_fixed_path", "db_logging",
})  # fmt: skip


def published_keys() -> frozenset[str]:
    """Keys that only the sink for published shards has, and the default sink does not."""
    published, default = (SINKS.get(name).Config for name in (PUBLISHED_SINK, DEFAULT_SINK))
    return frozenset(published.model_fields.keys() - default.model_fields.keys())


def _section(registry: Any, name: str, key: str) -> type[base.ConfigModel]:
    try:
        return registry.get(name).Config
    except UsageError as error:
        error.details["key"] = key
        raise


def preprocess(config: PreprocessConfig, *, reporter: Reporter = NULL) -> PreprocessResult:
    """Reads episodes and writes them with a sink.

    An interrupted run is resumed by the same call and writes the same bytes.

    Raises:
        UsageError: A required key is missing, or the output belongs to another run.
        DataError: No episode can be used, or one cannot and `on_error` is `stop`.
        StorageError: A file cannot be read or written; finished episodes stay.
        PartialFailure: The data are written without the episodes that failed.
        BugError: As PartialFailure, but at least one failure is a bug.
    """
    preload = ["vlatool.recordings.select", SINKS.target(config.sink.type)]
    if is_class_in_file(config.format):
        preload.append(config.format)
        if config.engine == "ray":
            raise UsageError(
                f"{config.format}: other nodes of the Ray cluster do not have this file",
                hint="use --engine local, or make the reader a package: docs/guides/plugins.md",
                code="usage.unsupported",
            )
    with ExitStack() as stack:
        pool = make_executor(config.workers) if config.dry_run else executor_of(config, preload)
        executor = stack.enter_context(pool)  # workers start meanwhile
        job = PreprocessJob(config)
        job.log_selection(reporter)
        return run_command(job, PreprocessResult, config, executor, reporter=reporter)


class PreprocessJob:
    """Job that writes the episodes of sources with a sink; see `jobs.job.Job`."""

    def __init__(self, config: PreprocessConfig, make_sink: MakeSink | None = None) -> None:
        """Opens the sources; `make_sink`, if given, replaces the class in SINKS."""
        base.check_required(config, "vlatool preprocess [FORMAT] SOURCE... --output DIR")
        config = with_format(config)
        section = reader_section(config)
        self._reader = FORMATS.get(config.format)(section)
        resolved = self._reader.config
        sources = [pinned(source) for source in config.sources]
        output = location(config.output)
        sink = self._reader.sink_config(config.sink, sources)
        if not config.overwrite:
            sink = with_encoders_of(output, sink)
        named = getattr(sink, "camera_rotations", {})
        lower_case = make_sink is None and SINKS.get(config.sink.type).lower_case_cameras
        try:
            self._chosen = selection = select_episodes(
                self._reader, sources, config, [*named], lower_case=lower_case
            )
        except DataError as error:
            name_other_format(error, sources, config.format)
            raise
        names = selection.names
        config = config.model_copy(update={"sink": sink, "episodes": selection.numbers})
        config = _with_lower_case(config, selection)
        self._reader = with_names(self._reader, names)
        self.items: Sequence[EpisodeRef] = selection.refs
        self._found_action = ""
        survey = selection.survey
        if make_sink is None and SINKS.get(config.sink.type).needs_actions:
            survey, config = self._with_actions(survey, config)
        self._config = config
        versions = versions_of(sources)
        origin = source_options(config, section, resolved) | versions
        actions = tuple(name for name in config.action_fields if name != NO_ACTIONS)
        hold_out = (config.hold_out, config.hold_out_seed or 0)
        setup = SinkSetup(output, survey, selection.refs, origin, actions, *hold_out)
        self._setup = setup
        self._make_sink = make_sink or SINKS.get(config.sink.type)
        if config.hold_out and not SINKS.get(config.sink.type).holds_out:
            raise UsageError(
                f"--sink {config.sink.type} cannot hold episodes out for evaluation",
                hint=f"leave --hold-out out, or add --sink {DEFAULT_SINK}",
                code="usage.unsupported",
            )
        self._sink: Sink = self._make_sink(config.sink, setup)
        self._check_rate()
        self._measured: Measured | None = None
        self._trusted: list[str] = []
        self._conflicts = list(self._check_declarations())
        self._summary: SinkSummary | None = None
        self.spec = self._job(section, resolved, versions, [*sources, output])

    def _job(
        self,
        section: base.ConfigModel,
        resolved: base.ConfigModel,
        versions: dict[str, Any],
        locations: Sequence[Path],
    ) -> JobSpec:
        """The job; `section` and `resolved`: options of the format, as given and as used."""
        config = self._config
        selection = self._chosen.selection
        names = self._chosen.names
        output = self._setup.output
        return JobSpec(
            output=output,
            record=OutputRecord("preprocess", record_options(config, section) | versions),
            item_name="episode",
            plan=plan_digest(
                config.format,
                resolved,
                config.sink,
                selection,
                self._setup.action_fields,
                *([] if names.is_empty else [names]),
            ),
            work=EpisodeTask(config.format, resolved, selection, self._sink.work, names),
            check=EpisodeTask(config.format, resolved, selection, count_frames, names),
            state=episode_state,
            owned=(*self._sink.owned, CONVENTIONS.name),
            volatile=self._sink.volatile,
            temporary=self._sink.temporary,
            locations=tuple(locations),
            progress_count="samples",
            has_arrays=self._sink.has_arrays,
            shown={
                "output": config.output,
                "next": self._next_step().format(
                    output=shlex.quote(config.output),
                    name=shlex.quote(output.name),
                    preset=config.train_preset,
                ),
            },
        )

    def _with_actions(
        self, survey: Survey, config: PreprocessConfig
    ) -> tuple[Survey, PreprocessConfig]:
        """Completes the action fields by what the numbers of some episodes say, if none is known.

        Raises:
            UsageError: There is no action, and `--action-fields none` does not ask for that.
        """
        named = config.action_fields
        if named == [NO_ACTIONS]:
            return replace(survey, action_fields=()), config
        found: list[LaterValues] = []
        if not (named or any("action" in name for name in survey.action_fields)):
            found = later_values(self._some_episodes())
        if survey.action_fields:
            # What is observed beside the values that it has later would show the policy its answer.
            ahead: dict[str, str] = {}
            for later in found:
                if later.field in survey.proprioception_fields:
                    ahead[later.field] = later.text
            if not ahead:
                return survey, config
            named = [*ahead]
            fields = ",".join([*survey.action_fields, *named])
            self._found_action = (
                f"{', '.join(ahead.values())}: not observed; is it an action, too? "
            )
            self._found_action += f"--action-fields {fields}"
        elif not named:
            has_mapping = getattr(self._reader.config, "mapping", None) is not None
            certain = [later for later in found if later.is_certain and not has_mapping]
            if not certain:
                raise _no_action(self._reader, found, survey)
            named = [later.field for later in certain]
            texts = ", ".join(later.text for later in certain)
            self._found_action = f"{texts}: taken as the action"
            config = config.model_copy(update={"action_fields": named})
        # A field that was observed for want of another role is not observed beside itself.
        observed = tuple(name for name in survey.proprioception_fields if name not in named)
        return replace(survey, proprioception_fields=observed), config

    def _some_episodes(self) -> list[Episode]:
        episodes: list[Episode] = []
        for number in evenly_spaced(len(self.items), _MOST_COMPARED):
            with suppress(DataError):  # of an episode that is reported elsewhere
                episodes.append(self._reader.read(self.items[number]))
        return episodes

    def _next_step(self) -> str:
        """Command that the result suggests, with the places of output and preset."""
        if self._config.action_fields == [NO_ACTIONS]:
            return _NEXT_WITHOUT_ACTIONS
        if not self._setup.survey.cameras:
            return self._sink.next_without_images
        if self._config.train_preset is not None:
            return _TRAIN_PRESET
        return self._sink.next_step

    def _check_rate(self) -> None:
        """Raises UsageError if the rate is needed, and neither stored nor given."""
        needs_rate = self._sink.needs_rate or self._reader.needs_rate
        if (
            needs_rate
            and self._setup.survey.fps is None
            and "fps" in self._reader.Config.model_fields
        ):
            user = "format" if self._reader.needs_rate else f"sink {self._config.sink.type}"
            layout = self._reader.layout
            usual = usual_rate(layout, getattr(self._reader.config, "mapping", None))
            raise no_rate(user, self._config.format, layout, usual)

    def _check_declarations(self) -> Iterator[Finding]:
        """Yields declarations that the states contradict; raises DataError if one clearly does."""
        if self._sink.changes_rate:
            self._check_differences()
        typed = list(declarations(getattr(self._config.sink, "pose_groups", None) or ()))
        if not self._sink.action_fields or not (typed or self._setup.survey.declared):
            return
        differences = (each.field for each in typed if each.relation == "delta")
        actions = (*self._config.action_fields, *differences)
        measured = measure_some(self._reader.read, self.items, actions)
        if measured is None:
            return
        if not typed:  # else of other fields than those that are stored
            self._measured = measured
        for finding, is_clear in contradictions(measured, typed):
            if is_clear and not self._config.trust_declared:
                raise DataError(
                    finding.message,
                    hint="correct the declaration; --trust-declared takes it as it is",
                    code="data.contradicted_declaration",
                    details=finding.place,
                )
            if is_clear:
                self._trusted.append(finding.message)
            yield finding

    def _check_differences(self) -> None:
        """Raises DataError if actions that are stored at another rate depend on the rate."""
        actions = self._sink.action_fields
        measured = measure_some(self._reader.read, self.items, actions)
        if measured is not None and not self._config.trust_declared:
            check_rate(
                measured.conventions,
                actions,
                "declare their pose in pose_groups, which makes it absolute, or choose other "
                "--action-fields; --trust-declared writes them as they are",
            )

    def name(self, item: EpisodeRef) -> str:
        return item.id

    def begin(self) -> None:
        self._sink.begin()

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        self._summary = self._sink.finish(receipts, run)
        good = self._good(run)
        measured = self._measured if len(good) == len(self.items) else None
        if measured is None and self._sink.action_fields:
            measured = measure_some(self._read_stored, good, self._config.action_fields)
        if measured is None:
            return self._summary.files
        for finding in relative_twice(measured.conventions, self._sink.action_fields):
            run.reporter.warn(finding.code, finding.message)
        conventions = replace(measured.conventions, trusted=tuple(self._trusted))
        CONVENTIONS.write(self.spec.output, asdict(conventions))
        return [*self._summary.files, file_entry(self.spec.output, CONVENTIONS.name)]

    def _read_stored(self, ref: EpisodeRef) -> Episode:
        """Reads an episode, with only the fields that the output stores."""
        return self._sink.stored(self._reader.read(ref))

    def _good(self, run: JobRun) -> list[EpisodeRef]:
        left_out = {*run.empty, *(failure["episode"] for failure in run.failures)}
        return [ref for ref in self.items if ref.id not in left_out]

    def log_selection(self, reporter: Reporter) -> None:
        """Notes format, cameras and fields, and warns of findings and of options without effect."""
        reporter.note(f"format: {self._config.format}")
        if len(self.items) < self._chosen.available:
            asked = f" (--episodes {self._config.episodes})" if self._config.episodes else ""
            reporter.note(f"episodes: {len(self.items)} of {self._chosen.available}{asked}")
        for finding in (*self._chosen.findings, *self._conflicts):
            if finding.severity == "info":
                reporter.note(finding.message)
            else:
                reporter.warn(finding.code, finding.message)
        if self._found_action:
            reporter.note(self._found_action)
        for message in _ignored_options(self._config):
            reporter.warn("option_without_effect", message)
        actions = self._sink.action_fields
        observed = self._sink.proprioception_fields
        reporter.note(f"cameras: {', '.join(self._chosen.survey.cameras) or 'none'}")
        if self._sink.fields:
            reporter.note(
                f"{counted(len(actions), 'action field')}, "
                f"{counted(len(observed), 'proprioception field')}"
            )
        for part in self._left_out_parts():
            _log.info("left out: %s: %s", part["path"], part["reason"])
        for reason, count in self._chosen.excluded.items():
            reporter.note(f"{counted(count, 'episode is', 'episodes are')} left out: {reason}")

    @property
    def _left_out(self) -> tuple[str, ...]:
        """Numeric fields of the source that the sink does not store, not even as relative poses."""
        stored = self._sink.fields
        known = self._chosen.survey.fields
        sources = {*stored, *(stored_from(name, known) for name in stored)}
        return tuple(name for name, field in known.items() if field.width and name not in sources)

    def _left_out_parts(self) -> list[dict[str, str]]:
        """Parts of the source, other than fields, that the output lacks, each with the reason."""
        kind = self._config.sink.type
        stored_roles = self._sink.stored_roles
        renamed = self._chosen.names.cameras
        old_names = {renamed.get(name, name) for name in self._chosen.survey.cameras}
        parts: list[dict[str, str]] = []
        for part in self._chosen.stored.parts:
            reason = part.note
            if part.role in ("depth", "labels", "language") and part.role not in stored_roles:
                reason = f"--sink {kind} does not store {part.role}"
                if hasattr(self._config.sink, part.role):
                    reason = f"--{part.role} true stores it"
            elif part.role == "camera" and part.name not in old_names:
                reason = "it is not among --camera-names"
            elif part.role != "left_out":
                continue
            parts.append({"path": part.path, "content": part.content, "reason": reason})
        return parts

    def result(self, run: JobRun) -> PreprocessResult:
        return PreprocessResult(
            left_out=self._left_out_parts(),
            left_out_fields=self._left_out,
            cameras=tuple(self._chosen.survey.cameras),
            action_fields=self._sink.action_fields,
            proprioception_fields=self._sink.proprioception_fields,
            bytes_on_disk=run.bytes_on_disk,
            empty_episodes=tuple(run.empty),
            warnings=tuple(
                f"{code}: {counted(count, 'episode')}" for code, count in run.warnings.items()
            ),
            **self._counts(run),
        )

    def _counts(self, run: JobRun) -> dict[str, Any]:
        if self._summary is None:
            good = self._good(run)
            frames = run.sums.get("frames", 0)
            survey = replace(self._chosen.survey, episodes=len(good), frames=frames)
            sink = self._make_sink(
                self._config.sink, replace(self._setup, survey=survey, refs=good)
            )
            estimate = sink.estimate()
            return {
                "frames": frames,
                "samples": estimate.samples or 0,
                **_count_fields(estimate.counts),
                "bytes": 0,
                "dropped": {**run.dropped, **self._chosen.excluded},
                "plan": {"estimated_from": f"{counted(len(good), 'episode')}"},
            }
        return {
            "frames": run.sums.get("frames", 0),
            "samples": self._summary.samples,
            **_count_fields(self._summary.counts),
            "bytes": self._summary.bytes,
            "dropped": {**run.dropped, **self._chosen.excluded},
        }


def _no_action(
    reader: FormatReader, found: Sequence[LaterValues], survey: Survey
) -> DataError | UsageError:
    """Error for recordings of which no field is known to be the action."""
    widths = {name: spec.width for name, spec in survey.fields.items() if spec.width}
    if not widths:
        return DataError(
            "your recordings have images only; a policy needs at least one field of numbers",
            hint="to write images alone, use --sink image-shards; --action-fields none writes data "
            "without actions",
            code="data.missing",
        )
    where = (
        "in action_fields of your mapping, or " if getattr(reader.config, "mapping", None) else ""
    )
    return UsageError(
        f"your recordings do not say which field is the action: {proposals_text(found, widths)}",
        hint=f"name it {where}with --action-fields; --sink frames --action-fields none writes data "
        "without actions, and --sink image-shards writes images alone",
        code="usage.missing_key",
        details={"key": "action_fields", "known": widths},
    )


def _ignored_options(config: PreprocessConfig) -> Iterator[str]:
    """Yields a message for each typed option that has no effect."""
    for key in ("ray_address", "ray_num_cpus"):
        if config.engine != "ray" and getattr(config, key) is not None:
            yield f"{key} has no effect without --engine ray"


def _count_fields(counts: Mapping[str, int]) -> dict[str, Any]:
    """Splits counts into the keys `shards` and `amounts` of a result."""
    others = {name: count for name, count in counts.items() if name != _SHARDS}
    return {"shards": counts.get(_SHARDS, 0), "amounts": others}


def default_sink_of(format_name: str) -> str:
    """Default sink of a format."""
    return FORMATS.get(format_name).default_sink if format_name else DEFAULT_SINK


def _keys_of_formats(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Typed keys that some format has, at the top level or in `source`."""
    own = PreprocessConfig.model_fields
    top = {key: value for key, value in tree.items() if key not in own}
    typed = {**top, **(tree.get("source") or {})}
    return {key: value for key, value in typed.items() if FORMATS.names_with_key(key)}


def _detected(sources: Any, keys: Mapping[str, Any]) -> str:
    """Format of the first source, which may need these keys; empty without sources.

    A key that only other formats have is reported later, with their names.
    """
    if not sources:
        return ""
    first = sources.partition(",")[0] if isinstance(sources, str) else sources[0]
    source = require_input(str(first))
    try:
        return detect_source(source, None, keys).format
    except VlatoolError:
        return detect_source(source, None, with_mapping({}, keys.get("mapping"))).format


def with_format(config: PreprocessConfig) -> PreprocessConfig:
    """Adds the format, and the default sink, to options that were made in Python."""
    keys = _keys_of_formats(config.source.model_extra or {})
    name = config.format or _detected(config.sources, keys)
    update: dict[str, Any] = {"format": name}
    if "source" in config.model_fields_set and isinstance(config.source, DeferredKeys):
        update["source"] = FORMATS.get(name).Config(**(config.source.model_extra or {}))
    sink = default_sink_of(name)
    if "sink" not in config.model_fields_set and config.sink.type == DEFAULT_SINK != sink:
        update["sink"] = SINKS.get(sink).Config()
    return config.model_copy(update=update)


def _with_lower_case(config: PreprocessConfig, selection: SelectedEpisodes) -> PreprocessConfig:
    """The options with the names of cameras as they are written, and the map to the stored ones."""
    if not selection.lowered:
        return config
    sink = config.sink
    rotations: dict[str, int] = dict(getattr(sink, "camera_rotations", {}))
    for new, old in selection.lowered.items():
        if old in rotations:
            rotations[new] = rotations.pop(old)
            sink = sink.model_copy(update={"camera_rotations": rotations})
    return config.model_copy(update={"rename": selection.names, "sink": sink})


def source_options(
    config: PreprocessConfig, section: base.ConfigModel, resolved: base.ConfigModel
) -> dict[str, Any]:
    """All options except the section of the sink, for the metadata of the output."""
    selection_keys = ("episodes", "exclude", "max_episodes", "hold_out", "hold_out_seed")
    excluded = {*config.no_effect_on_output, *selection_keys, "source", "sink", "format"}
    excluded.add("action_fields")  # the sink has those that it stores
    excluded |= {"rename"} if config.rename.is_empty else set()
    return {
        **recorded_options(resolved, section),
        **config.model_dump(mode="json", exclude=excluded),
        "type": location(config.format).name if is_class_in_file(config.format) else config.format,
        "source_episodes": [location(source).name for source in config.sources],
    }


def record_options(config: PreprocessConfig, section: base.ConfigModel) -> dict[str, Any]:
    """Options for the record, without all sections except the section of the format."""
    excluded = {*config.no_effect_on_output, "source", "sink"}
    options = config.model_dump(mode="json", exclude=excluded)
    options |= config.sink.recorded({"type"}) | {"sink": config.sink.type}
    options["sources"] = [location(source).name for source in config.sources]
    if digest := file_digest_of(config.format):
        options |= {"format": location(config.format).name, "format content": digest}
    return options | {"source": recorded_options(section, section), **side_files(section)}
