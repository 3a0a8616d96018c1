"""From raw episodes of any format to training data of any sink."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar, Self

from pydantic import Field, SerializeAsAny, create_model, field_validator

from vlatool.config.base import ConfigModel, check_required, required_field
from vlatool.config.overrides import Override
from vlatool.config.resolve import load_config
from vlatool.episode import EpisodeRef
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.command import (
    ENGINE,
    JOB_KEYS,
    DryRun,
    EngineName,
    MaxFailures,
    OnError,
    Overwrite,
    RayAddress,
    RayProcessors,
    Workers,
    executor_of,
    job_options,
)
from vlatool.jobs.files import FileEntry, remove_stale_files
from vlatool.jobs.inputs import current_inputs, plan_digest
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord, recorded_options, side_files, versions_of
from vlatool.jobs.result import load_result, result_or_raise
from vlatool.jobs.run import run_job
from vlatool.plugins import FORMATS, SINKS
from vlatool.sinks.base import MakeSink, Sink, SinkSetup, SinkSummary
from vlatool.sinks.lbm.config import LbmConfig
from vlatool.sinks.result import PreprocessResult
from vlatool.sources.detection import DeferredKeys, detect_source
from vlatool.sources.selection import (
    EpisodeTask,
    SelectionConfig,
    episode_state,
    reader_section,
    select_episodes,
)
from vlatool.storage.uri import location, pinned, require_existing

_SHARDS = "shards"


class PreprocessConfig(SelectionConfig):
    """What `vlatool preprocess` does; keys of the format and of the sink may be written flat."""

    flat_sections: ClassVar[tuple[str, ...]] = ("source", "sink")
    registries: ClassVar[Mapping[str, Any]] = {"source": FORMATS, "sink": SINKS}
    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **SelectionConfig.help_groups,
        "Output": ("output", *JOB_KEYS),
        "Engine": ENGINE,
    }
    aliases: ClassVar[Mapping[str, str]] = {
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
    }
    ignored: ClassVar[Mapping[str, str]] = {
        "overwrite_images": "pictures are written anew whenever their episode is",
        "auto_tag": "git is never touched; the run record names the version",
        "skip_git_tagging": "git is never touched; the run record names the version",
        "output_dir_fixed_path": "no second copy is made; copy the output where you want it",
        "db_logging": "there is no database; .vlatool/run.json records the run",
    }
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"output", "sources", *ENGINE, *JOB_KEYS, *ignored}
    )

    # Whether the sink was named; else it is the one that the format has by nature.
    is_sink_explicit: ClassVar[bool] = False

    output: str = required_field("", "Folder to write.")
    sink: SerializeAsAny[LbmConfig] = Field(
        default_factory=LbmConfig, description="Keys of what is written."
    )
    engine: EngineName = "local"
    workers: Workers = None
    ray_address: RayAddress = None
    ray_num_cpus: RayProcessors = None
    on_error: OnError = "skip"
    max_failures: MaxFailures = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    auto_tag: bool | None = Field(default=None, description="Does nothing.")
    skip_git_tagging: bool | None = Field(default=None, description="Does nothing.")
    output_dir_fixed_path: str | None = Field(default=None, description="Does nothing.")
    db_logging: bool | None = Field(default=None, description="Does nothing.")
    overwrite_images: bool | None = Field(default=None, description="Does nothing.")

    @field_validator("sources", "output")
    @classmethod
    def _not_blank(cls, value: list[str] | str) -> list[str] | str:
        is_unset = value == ""  # needed later, and then asked for by name
        texts = [value] if isinstance(value, str) else value
        if not is_unset and any(not text.strip() for text in texts):
            raise ValueError("a location is blank")
        return value

    @classmethod
    def specialise(cls, tree: Mapping[str, Any]) -> type[Self]:
        """The class whose `source` section is the format's and whose `sink` is the sink's."""
        sections: dict[str, Any] = {}
        name = tree.get("format")
        sections["source"] = _section(FORMATS, str(name), "format") if name else DeferredKeys
        sink = tree.get("sink")
        named = sink.get("type") if isinstance(sink, Mapping) else sink
        if chosen := named or default_sink_of(str(name or "")):
            sections["sink"] = _section(SINKS, str(chosen), "sink")
        kinds: dict[str, Any] = {
            key: (kind, Field(default_factory=kind, description=cls.model_fields[key].description))
            for key, kind in sections.items()
        }
        special = create_model(cls.__name__, __base__=cls, **kinds)
        special.is_sink_explicit = bool(named)
        return special


def _section(registry: Any, name: str, key: str) -> type[ConfigModel]:
    try:
        return registry.get(name).Config
    except UsageError as error:
        error.details["key"] = key
        raise


def preprocess(config: PreprocessConfig, *, reporter: Reporter = NULL) -> PreprocessResult:
    """Reads episodes and hands them to a sink.

    A run that was ended, however it was, goes on where it was; the bytes are those of a run that
    was not.

    Raises:
        UsageError: A needed key is missing, or the output belongs to another run.
        DataError: No episode can be used, or one cannot and `on_error` is `stop`.
        StorageError: Something cannot be read or written; what is written stays.
        PartialFailure: The data are written, but without the episodes that failed.
        BugError: The same, and one failed by a bug.
    """
    preload = ("vlatool.sources.selection", SINKS.target(config.sink.type))
    with ExitStack() as stack:
        executor = stack.enter_context(executor_of(config, preload))  # workers start while we look
        job = PreprocessJob(config)
        job.announce(reporter)
        run = run_job(job, executor, options=job_options(config), reporter=reporter)
    return result_or_raise(job.answer(run), run, job.spec.item_name)


class PreprocessJob:
    """The episodes of some sources on their way into a sink; see `jobs.job.Job`."""

    def __init__(self, config: PreprocessConfig, make_sink: MakeSink | None = None) -> None:
        """`make_sink` is the class of a sink that is not in the table."""
        check_required(config, "vlatool preprocess [FORMAT] SOURCE... --output DIR")
        self._config = config = with_format(config)
        section = reader_section(config)
        self._reader = FORMATS.get(config.format)(section)
        resolved = getattr(self._reader, "config", section)
        sources = [pinned(source) for source in config.sources]
        named = getattr(config.sink, "camera_rotations", {})
        self._chosen = chosen = select_episodes(self._reader, sources, config, [*named])
        self.items: Sequence[EpisodeRef] = chosen.refs
        output = location(config.output)
        versions = versions_of(sources)
        told = origin(config, section, resolved) | versions
        setup = SinkSetup(output, chosen.survey, chosen.refs, told)
        self._sink: Sink = (make_sink or SINKS.get(config.sink.type))(config.sink, setup)
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("preprocess", recorded(config, section) | versions),
            title=f"preprocess {config.format}",
            item_name="episode",
            plan=plan_digest(config.format, resolved, config.sink, chosen.choice),
            work=EpisodeTask(config.format, resolved, chosen.choice, self._sink.work),
            state=episode_state,
            owned=self._sink.owned,
            volatile=self._sink.volatile,
            temporary=getattr(self._sink, "temporary", ()),
            locations=(*sources, output),
            progress_count="samples",
            has_arrays=getattr(self._sink, "has_arrays", True),
        )
        self._summary: SinkSummary | None = None

    def name(self, item: EpisodeRef) -> str:
        """The episode's id."""
        return item.id

    def inputs(self) -> Mapping[str, Any]:
        """The files of all episodes."""
        return current_inputs(self.items, self.name, episode_state, self.spec.item_name)

    def begin(self) -> None:
        """The sink's."""
        self._sink.begin()

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """The sink's."""
        self._summary = self._sink.finish(receipts, run)
        files = self._summary.files
        if not run.is_fresh:  # episodes may have gone since
            remove_stale_files(self.spec.output, self.spec.owned, self.spec.unlisted, files)
        return files

    def result(self, run: JobRun) -> Mapping[str, Any]:
        """For the record."""
        return self.answer(run).document()

    def announce(self, reporter: Reporter) -> None:
        """Tells what was found before anything is done."""
        reporter.note(f"format: {self._config.format}")
        for finding in self._chosen.findings:
            reporter.warn(finding.code, finding.message)
        for message in _without_effect(self._config):
            reporter.warn("option_without_effect", message)
        actions, observed = self._sink.action_fields, self._sink.proprioception_fields
        reporter.note(f"cameras: {', '.join(self._chosen.survey.cameras) or 'none'}")
        reporter.note(f"action fields: {', '.join(actions) or 'none'}")
        reporter.note(f"proprioception fields: {', '.join(observed) or 'none'}")
        for reason, count in self._chosen.excluded.items():
            reporter.note(f"{count} episodes are left out: {reason}")

    def answer(self, run: JobRun) -> PreprocessResult:
        """What came of a run."""
        if run.status == "already complete":
            known = load_result(PreprocessResult, self._config.output, run.record.result)
            return replace(known, next=self._next)
        failed, empty = len(run.failures), len(run.empty)
        return PreprocessResult(
            output=self._config.output,
            episodes=len(self.items) - failed - empty,
            empty_episodes=tuple(run.empty),
            cameras=tuple(self._chosen.survey.cameras),
            action_fields=self._sink.action_fields,
            proprioception_fields=self._sink.proprioception_fields,
            failures=tuple(run.failures),
            resumed=run.resumed,
            warnings=tuple(f"{code}: {count} episodes" for code, count in run.warnings.items()),
            next=self._next,
            seconds=run.seconds,
            bytes_on_disk=run.bytes_on_disk,
            **self._amounts(run),
        )

    @property
    def _next(self) -> str:
        return self._sink.next_step.format(output=self._config.output)

    def _amounts(self, run: JobRun) -> dict[str, Any]:
        if self._summary is None:
            estimate = self._sink.estimate()
            return {
                "frames": self._chosen.survey.frames or 0,
                "samples": estimate.samples or 0,
                **_told(estimate.counts),
                "bytes": 0,
                "dropped": dict(self._chosen.excluded),
                "status": "planned",
                "plan": {"estimated_from": f"{self._chosen.survey.episodes} episodes"},
            }
        return {
            "frames": run.sums.get("frames", 0),
            "samples": self._summary.samples,
            **_told(self._summary.counts),
            "bytes": self._summary.bytes,
            "dropped": {**run.dropped, **self._chosen.excluded},
        }


def _without_effect(config: PreprocessConfig) -> Iterator[str]:
    """Published options that do nothing here say so."""
    reasons = dict(config.ignored)
    if config.engine != "ray":
        reasons |= dict.fromkeys(("ray_address", "ray_num_cpus"), "the engine is not ray")
    for key, reason in reasons.items():
        if getattr(config, key) is not None:
            yield f"{key} does nothing: {reason}"


def _told(amounts: Mapping[str, int]) -> dict[str, Any]:
    """Shards have a place of their own in a result."""
    others = {name: count for name, count in amounts.items() if name != _SHARDS}
    return {"shards": amounts.get(_SHARDS, 0), "amounts": others}


def default_sink_of(format_name: str) -> str:
    """The sink that episodes of a format go into where none is named; empty for the default."""
    return getattr(FORMATS.get(format_name), "default_sink", "") if format_name else ""


def with_format(config: PreprocessConfig) -> PreprocessConfig:
    """The config with the format that finds episodes in its first source, where none is named.

    And with that format's sink, where none is named: as if both had been typed.
    """
    name = config.format or detect_source(require_existing(config.sources[0]), None).format
    sink = default_sink_of(name)
    is_other = bool(sink) and sink != config.sink.type and not config.is_sink_explicit
    if type(config) is PreprocessConfig and "sink" in config.model_fields_set:
        is_other = False
    if config.format and not is_other:
        return config
    known: dict[str, Any] = {"format": name}
    if not config.format:
        known |= {f"source.{key}": one for key, one in (config.source.model_extra or {}).items()}
    if is_other:
        typed = config.sink.model_dump(exclude_unset=True, exclude={"type"})
        known |= {"sink.type": sink, **{f"sink.{key}": value for key, value in typed.items()}}
    told = [Override(key, value, f"the {name} key {key}") for key, value in known.items()]
    found = load_config(PreprocessConfig, overrides=told).config
    update: dict[str, Any] = {"format": name}
    update |= {} if config.format else {"source": found.source}
    return config.model_copy(update=update | ({"sink": found.sink} if is_other else {}))


def origin(config: PreprocessConfig, section: ConfigModel, resolved: ConfigModel) -> dict[str, Any]:
    """The options outside the sink's section, for what an output says of itself."""
    seen_in_the_data = ("episodes", "exclude", "max_episodes")
    left_out = {*config.no_effect_on_output, *seen_in_the_data, "source", "sink", "format"}
    return {
        **recorded_options(resolved, section),
        **config.model_dump(mode="json", exclude=left_out),
        "type": config.format,
        "source_episodes": [location(source).name for source in config.sources],
    }


def recorded(config: PreprocessConfig, section: ConfigModel) -> dict[str, Any]:
    """The options of a run for its record: every key flat, but those of the format."""
    left_out = {*config.no_effect_on_output, "source", "sink"}
    options = config.model_dump(mode="json", exclude=left_out)
    options |= config.sink.recorded() | {"sink": config.sink.type}
    options["sources"] = [location(source).name for source in config.sources]
    return options | {"source": recorded_options(section, section), **side_files(section)}
