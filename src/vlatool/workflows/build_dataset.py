"""Samples for a language model from windows and the codes of their images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import field_validator, model_validator

from vlatool.config.base import Ignored, Names, check_required, option, required_field, unique_items
from vlatool.datasets.codes.layout import CodesFolder, CodesManifest, warn_of_collapse
from vlatool.datasets.fast.layout import copy_fast, fitted_steps, ignored_code
from vlatool.datasets.jsonl.layout import DATA_NAME, SAMPLES_NAME, Kind
from vlatool.datasets.samples import layout as samples_layout
from vlatool.datasets.samples.episode import KINDS
from vlatool.datasets.samples.profile import Gripper
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import ENGINE_KEYS, JOB_KEYS, EngineConfig, JobResult, executor_of
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun, JobSpec, digest_of, plan_digest
from vlatool.jobs.journal import Receipt
from vlatool.jobs.ownership import require_input, versions_of
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_command
from vlatool.recordings.choice import select
from vlatool.storage.atomic import remove_file
from vlatool.storage.tree import size_text
from vlatool.storage.uri import location, pinned
from vlatool.tokens import build

# Names of options for messages; their values are digests.
_OPTION_WORDS = {
    "fast digest": "action tokenizer",
    "pictures": "location of the images",
    "profile digest": "profile",
    "tokenizer_digest": "tokenizer",
}
# Not in a record: inputs, of which it has names and digests, and keys that repeat another.


class BuildDatasetConfig(EngineConfig):
    """Options of `vlatool build-dataset`."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("output", "packed", "lines_per_file", "absolute", *JOB_KEYS),
        "Engine": ENGINE_KEYS,
    }
    NAMES: ClassVar[Names] = {
        "A": "data",
        "a_dir": "data",
        "fast_repo": "fast",
        "batch_size": Ignored("all actions of an episode are encoded at once"),
        "backup_suffix": Ignored("inputs are never changed"),
        "strict": Ignored("an episode with missing codes always fails", is_switch=True),
    }

    data: str = required_field(
        "", "Folder of windows that `vlatool preprocess` wrote.", affects_output=False
    )
    fast: str = required_field(
        "", "FAST action tokenizer: a folder at any location.", affects_output=False
    )
    output: str | None = option(
        None, f"Folder for data/ or packed/; null: {SAMPLES_NAME}/ next to the windows."
    )
    tokens: str | None = option(
        None, "Folder of codes; null: tokens/ or TiToken/ next to data/.", affects_output=False
    )
    kinds: list[Kind] = option([*KINDS], "Kinds of samples to write.", min_length=1)
    exclude: str | None = option(
        None, "Numbers of episodes to exclude, such as 0:4,7.", affects_output=False
    )
    limit: int | None = option(None, "Use only the first N episodes.", ge=1)
    pattern: str = option(f"{DATA_NAME}/episode_*.jsonl", "Files of windows to use.")
    profile: str | None = option(
        None,
        "Normalization profile of actions: a name or a file; null: the profile of the action "
        "tokenizer, else libero.",
    )
    gripper: Gripper | None = option(
        None, "raw: leave the gripper unchanged; null: as the profile says; else normalize it, too."
    )
    absolute: bool = option(False, "Write absolute locations of images, as published.")
    packed: bool = option(
        False, "Write packed arrays, about 1 % of the size; `vlatool export` turns them into lines."
    )
    lines_per_file: int | None = option(None, "Lines per file; null: one file per episode.", ge=1)
    tokenizer: str | None = option(
        None,
        "Text tokenizer; warns of instructions whose token ids are reserved for codes.",
        affects_output=False,
    )
    gripper_raw: bool | None = option(None, "Same as --gripper raw.", affects_output=False)
    rpy_std_mult: float | None = option(
        None, "Factor that the profile must have, else the command stops.", affects_output=False
    )

    @field_validator("pattern")
    @classmethod
    def _is_below_folder(cls, value: str) -> str:
        parts = value.split("/")
        has_bad_part = any("**" in part and part != "**" for part in parts) or ".." in parts
        if has_bad_part or parts.count("**") > 1 or value.startswith("/") or not value.strip("./"):
            raise ValueError("must be relative to the folder of windows, with at most one **")
        return value

    @field_validator("kinds")
    @classmethod
    def _unique(cls, value: list[Kind]) -> Any:
        return sorted(unique_items(value), key=KINDS.index)  # the order has no effect

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.packed and self.lines_per_file:
            raise ValueError("packed samples have no lines: leave out lines_per_file")
        if self.gripper_raw is not None and self.gripper_raw != (self.gripper != "normalised"):
            raise ValueError(f"gripper_raw and gripper: {self.gripper} contradict each other")
        return self


@dataclass(frozen=True, kw_only=True)
class BuildDatasetResult(JobResult):
    """Result of a run; `failures` lists the episodes that are not in the output."""

    guide: ClassVar[str] = "docs/guides/future-vla.md"

    samples: int
    kinds: Mapping[str, int]
    bytes: int
    profile: str
    codes: str
    action_ids: Mapping[str, float] = field(default_factory=dict[str, float])
    colliding_instructions: int = 0
    empty_episodes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        if self.is_planned:
            return f"would build {counted(self.episodes, 'episode')}"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        samples = f"{counted(self.samples, 'sample')} ({kinds})"
        return f"{samples} from {counted(self.episodes, 'episode')}, {size_text(self.bytes)}"

    def details(self) -> list[str]:
        lines: list[str] = []
        if self.action_ids:
            low, mean, high = (self.action_ids[key] for key in ("min", "mean", "max"))
            lines.append(f"action ids: {low:.0f} to {high:.0f}, {mean:.1f} on average")
        return [*lines, *(f"episode without samples: {name}" for name in self.empty_episodes)]


def build_dataset(config: BuildDatasetConfig, *, reporter: Reporter = NULL) -> BuildDatasetResult:
    """Builds the samples of every episode of windows; inputs are never changed.

    An interrupted run is resumed by the same call and writes the same bytes.

    Raises:
        UsageError: A required key is missing, or the output belongs to another run or to the input.
        DataError: No episode can be used, or one cannot and `on_error` is `stop`.
        StorageError: A file cannot be read or written; finished episodes stay.
        PartialFailure: The data are written without the episodes that failed.
    """
    job = BuildDatasetJob(config, reporter)
    executor = executor_of(config, ("vlatool.tokens.build",))
    return run_command(job, BuildDatasetResult, config, executor, reporter=reporter)


class BuildDatasetJob:
    """Job that builds the samples of each episode of a folder; see `jobs.job.Job`."""

    def __init__(self, config: BuildDatasetConfig, reporter: Reporter = NULL) -> None:
        check_required(config, "vlatool build-dataset DATA --fast DIR")
        self._config = config
        require_input(config.data)
        tree = pinned(config.data)
        fast = pinned(config.fast)
        named = (
            str(location(config.data) / SAMPLES_NAME) if config.output is None else config.output
        )
        output = location(named)
        build.check_output_outside_input(output, tree)
        files = select(build.window_files(tree, config.pattern), None, config.exclude)
        self.items: Sequence[build.WindowFile] = files[: config.limit]
        codes = build.select_codes(tree, pinned(config.tokens) if config.tokens else None)
        warn_of_collapse(codes, reporter)
        self._tokenizer, self._profile = (
            build.compatible_tokenizer(fast),
            build.select_profile(
                config.profile, fast, "raw" if config.gripper_raw else config.gripper
            ),
        )
        build.check_factor(self._profile, config.rpy_std_mult)
        self._work = work = self._builder(tree, fast, codes, output)
        codes_identity = codes.manifest.identity()
        options = self._record_options(tree, codes.manifest)
        options |= versions_of([tree, fast, codes.path])
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("build-dataset", options, words=_OPTION_WORDS),
            item_name="episode",
            plan=plan_digest(
                work.fast_digest,
                self._profile,
                work.kinds,
                work.layout,
                work.prefix,
                codes_identity,
            ),
            work=work,
            state=work.state,
            owned=samples_layout.OWNED_FILES,
            temporary=samples_layout.PACKED_FILES if config.lines_per_file else (),
            locations=(tree, fast, codes.path, output),
            progress_count="samples",
            shown={"output": named},
        )
        self._text_tokenizer = build.read_text_tokenizer(config.tokenizer, work.sizes)
        self._log_inputs(reporter, fast)
        self._totals = build.DatasetTotals()
        self._num_colliding = 0

    def name(self, item: build.WindowFile) -> str:
        return item.episode

    def begin(self) -> None:
        remove_file(self.spec.output / samples_layout.MANIFEST_NAME)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes files of `lines_per_file` lines, if set, then the manifest."""
        output = self.spec.output
        limit = self._config.lines_per_file
        for receipt in receipts:
            self._totals.add(receipt)
        files = self._totals.files
        if not self._totals.samples:
            raise DataError(
                f"{self._config.data}: no window has the kind {' or '.join(self._config.kinds)}",
                hint="leave out --kinds, or preprocess again with a --qa-mode that writes it",
                code="data.no_samples",
            )
        packed_files: list[FileEntry] = []
        if limit:
            packed_files = files if run.failures else []
            files = list(build.write_shards(self._work, files, limit))
        # Number of samples whose instruction may be read as codes.
        tokenizer = self._text_tokenizer
        tasks = [*self._totals.tasks]
        colliding = build.instructions_with_code_ids(tasks, tokenizer, self._work.sizes)
        count = sum(self._totals.tasks[task] for task in colliding)
        if colliding:
            reason = (
                "have token ids that are reserved for codes"
                if tokenizer
                else "have non-ASCII characters"
            )
            suggestion = "" if tokenizer else "; --tokenizer DIR checks their token ids"
            message = (
                f"{len(colliding)} instructions of {counted(count, 'sample')} {reason}, such as "
            )
            message += f"{colliding[0]!r}{suggestion}"
            run.reporter.warn("instruction_collides", message)
        self._num_colliding = count
        names = copy_fast(self._work.fast, output / samples_layout.FAST_NAME, self._profile)
        copied = [file_entry(output, f"{samples_layout.FAST_NAME}/{name}") for name in names]
        samples_layout.write_manifest(output, self._manifest(files))
        return [*files, *packed_files, *copied, file_entry(output, samples_layout.MANIFEST_NAME)]

    def result(self, run: JobRun) -> BuildDatasetResult:
        return BuildDatasetResult(
            samples=run.sums.get("samples", 0),
            kinds={kind: run.sums.get(kind, 0) for kind in self._work.kinds},
            bytes=run.bytes_on_disk,
            profile=self._profile.name,
            codes=self._work.codes.path.name,
            action_ids=self._totals.action_ids(),
            colliding_instructions=self._num_colliding,
            empty_episodes=tuple(run.empty),
            warnings=tuple(
                f"{code}: {counted(count, 'episode')}" for code, count in run.warnings.items()
            ),
        )

    def _builder(
        self, tree: Path, fast: Path, codes: CodesFolder, output: Path
    ) -> build.EpisodeBuilder:
        config = self._config
        return build.EpisodeBuilder(
            output=output,
            tree=tree,
            codes=codes,
            fast=fast,
            fast_digest=self._tokenizer.digest,
            fast_steps=fitted_steps(fast),
            action_ids=self._tokenizer.vocab_size,
            profile=self._profile,
            kinds=tuple(config.kinds),
            layout="packed" if config.packed or config.lines_per_file else "jsonl",
            prefix=samples_layout.images_prefix(tree, output, is_absolute=config.absolute),
        )

    def _record_options(self, tree: Path, codes: CodesManifest) -> dict[str, Any]:
        """Options for the record; inputs are recorded by name and digest, without their paths."""
        config = self._config
        work = self._work
        return {
            **config.recorded_options(),
            "gripper": config.gripper or "raw",
            "data": tree.name,
            "fast digest": work.fast_digest,
            "profile digest": self._profile.digest,
            "codes": codes.identity(),
            "pictures": digest_of(work.prefix),
        }

    def _manifest(self, files: Sequence[FileEntry]) -> dict[str, Any]:
        config = self._config
        work = self._work
        tokenizer = self._tokenizer
        return {
            "layout": "packed" if config.packed else "jsonl",
            **self._totals.document(),
            "pictures": {"prefix": work.prefix},
            "codes": work.codes.manifest.encoding_info(),
            "fast": {
                "digest": tokenizer.digest,
                "vocab_size": tokenizer.vocab_size,
                "scale": tokenizer.scale,
                "min_token": tokenizer.min_token,
            },
            "profile": {**self._profile.document(), "digest": self._profile.digest},
            "files": build.data_files(files),
        }

    def _log_inputs(self, reporter: Reporter, fast: Path) -> None:
        work = self._work
        reporter.note(f"codes: {work.codes.path} ({work.codes.layout})")
        raw = ", ".join(self._profile.raw) or "none"
        reporter.note(f"profile: {self._profile.name}, dimensions left unchanged: {raw}")
        for name in ignored_code(fast):
            reporter.note(f"{fast / name}: code of the tokenizer; it is copied, but never executed")
