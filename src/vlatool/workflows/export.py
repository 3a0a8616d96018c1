"""Export of codes, samples and trained models into another layout with the same values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlatool.artifacts.codes.format import (
    CODES_CHANGED,
    CodesFolder,
    CodesLayout,
    is_codes,
    write_codes,
)
from vlatool.artifacts.codes.format import MANIFEST_NAME as CODES_MANIFEST_NAME
from vlatool.artifacts.codes.format import OWNED_FILES as CODES_OWNED_FILES
from vlatool.artifacts.fast.format import copy_fast
from vlatool.artifacts.lines import write_lines
from vlatool.artifacts.run.locations import named_best
from vlatool.artifacts.samples.format import (
    EXPORTED,
    FAST_NAME,
    SamplesFolder,
    images_prefix,
    is_inside,
    is_samples,
    packed_name,
    read_packed,
    write_manifest,
)
from vlatool.artifacts.samples.format import MANIFEST_NAME as SAMPLES_MANIFEST_NAME
from vlatool.artifacts.samples.format import OWNED_FILES as SAMPLES_OWNED_FILES
from vlatool.artifacts.windows.format import lines_name
from vlatool.config.base import check_required, required_field
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import ENGINE_KEYS, JOB_KEYS, EngineConfig, JobResult, executor_of
from vlatool.jobs.downloads import require_input
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.inputs import InputState, digest_of, input_state, plan_digest
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_command
from vlatool.jobs.versions import versions_of
from vlatool.storage.atomic import remove_file
from vlatool.storage.uri import location, pinned
from vlatool.tokens.build import data_files
from vlatool.workflows.model_export import (
    ModelExportResult,
    export_model,
    is_run_or_checkpoint,
)

_USAGE = "vlatool export SOURCE --output DIR"


class ExportConfig(EngineConfig):
    """Options of `vlatool export`."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("output", "layout", "absolute"),
        "Execution": (*ENGINE_KEYS, *JOB_KEYS),
    }

    source: str = required_field(
        "", "Folder of codes or of packed samples, a training run or one of its checkpoints."
    )
    output: str = required_field("", "Folder for the exported data.")
    layout: Literal["json", "packed", "jsonl"] | None = Field(
        default=None, description="Layout to write: json or packed for codes, jsonl for samples."
    )
    absolute: bool = Field(
        default=False, description="Write absolute locations of images into samples."
    )


@dataclass(frozen=True, kw_only=True)
class ExportResult(JobResult):
    """Result of a run; `failures` lists the episodes that are not in the output."""

    exported: str  # `codes` or `samples`
    layout: str
    amount: int  # images with codes, or samples
    bytes: int

    def summary(self) -> str:
        content = f"{self.exported} of {counted(self.episodes, 'episode')} as {self.layout}"
        if self.is_planned:
            return f"would write {content}"
        unit = "images" if self.exported == "codes" else "samples"
        return f"{content}, {self.amount} {unit}, {self.bytes / 1e6:.1f} MB"

    @property
    def next_command(self) -> str:
        return f"vlatool verify {self.output}"


def export(config: ExportConfig, *, reporter: Reporter = NULL) -> ExportResult | ModelExportResult:
    """Writes codes or samples in the other layout, or a trained model in its published layout.

    An interrupted run is resumed by the same call. Packed samples become the same lines that
    `build_dataset` writes without `packed`. Of a training run the newest checkpoint is exported.

    Raises:
        UsageError: A required key is missing, the layout does not fit the source, or the output
            belongs to another run.
        DataError: The source has nothing that can be exported, or none of it can be read.
        StorageError: A file cannot be read or written; finished episodes stay.
        PartialFailure: The data are written without the episodes that failed.
    """
    check_required(config, _USAGE)
    source = named_best(pinned(config.source))
    if is_run_or_checkpoint(source):
        return _model(config, source, reporter)
    job = ExportJob(config)
    return run_command(job, ExportResult, config, executor_of(config), reporter=reporter)


def _model(config: ExportConfig, source: Path, reporter: Reporter) -> ModelExportResult:
    if config.layout is not None:
        raise UsageError(
            "--layout does not apply to a model",
            hint="leave it out: a model has one published layout",
            code="usage.bad_layout",
        )
    output = location(config.output)
    return export_model(str(source), output, reporter, config)


@dataclass(frozen=True)
class _CodesExport:
    """Export of codes, episode by episode."""

    source: CodesFolder
    output: Path
    layout: CodesLayout
    items: Sequence[str]
    exported: ClassVar[str] = "codes"
    counted: ClassVar[str] = "pictures"
    manifest: ClassVar[str] = CODES_MANIFEST_NAME

    @property
    def owned(self) -> Sequence[str]:
        return CODES_OWNED_FILES[self.layout]

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.source.manifest.identity()

    @property
    def source_digest(self) -> str:
        return self.source.manifest.digest

    def __call__(self, item: str) -> Receipt:
        episode = self.source.read(item)
        digest = self.source.manifest.tokenizer_digest
        entry = write_codes(self.output, self.layout, episode, digest)
        counts = {"pictures": len(episode.stems)}
        return Receipt(item, counts=counts, files=(entry,), facts={"digest": episode.digest})

    def state(self, item: str) -> InputState:
        return self.source.state(item)

    def close(self, output: Path, receipts: Sequence[Receipt]) -> Sequence[FileEntry]:
        digests = {receipt.item: str(receipt.facts["digest"]) for receipt in receipts}
        source_manifest = self.source.manifest
        count = sum(receipt.counts["pictures"] for receipt in receipts)
        manifest = replace(source_manifest, layout=self.layout).of_episodes(digests, count)
        has_all = len(digests) == len(self.items)  # False if episodes failed
        if source_manifest.digest and has_all and source_manifest.digest != manifest.digest:
            raise DataError.at(
                self.source.path,
                f"the codes do not match the digest in {CODES_MANIFEST_NAME}",
                hint="copy the folder again, or encode the images again",
                code=CODES_CHANGED,
            )
        manifest.save(output)
        return ()


@dataclass(frozen=True)
class _SamplesExport:
    """Export of packed samples, file by file."""

    source: SamplesFolder
    output: Path
    prefix: str
    layout: str = "jsonl"
    exported: ClassVar[str] = EXPORTED
    counted: ClassVar[str] = "samples"
    manifest: ClassVar[str] = SAMPLES_MANIFEST_NAME
    owned: ClassVar[Sequence[str]] = SAMPLES_OWNED_FILES
    source_digest: ClassVar[str] = ""

    @property
    def items(self) -> Sequence[str]:
        return [Path(name).stem for name, _ in self.source.files]

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"pictures": digest_of(self.prefix)}

    @property
    def _counts(self) -> Mapping[str, int]:
        return dict(self.source.files)

    def __call__(self, item: str) -> Receipt:
        path, expected = self.source.path / packed_name(item), self._counts[packed_name(item)]
        samples = read_packed(path, self.source.sizes)
        if len(samples) != expected:
            raise DataError.at(
                path,
                f"has {counted(len(samples), 'sample')}, {self.manifest} says {expected}",
                hint="copy the folder again, or build it again",
                code="data.broken_samples",
            )
        files = write_lines(self.output, lines_name(item), samples.lines(self.prefix))
        return Receipt(item, counts={"samples": len(samples)}, files=files)

    def state(self, item: str) -> InputState:
        return input_state([self.source.path / packed_name(item)])

    def close(self, output: Path, receipts: Sequence[Receipt]) -> Sequence[FileEntry]:
        files = [entry for receipt in receipts for entry in receipt.files]
        overrides = {"layout": self.layout, "pictures": {"prefix": self.prefix}}
        document = {**self.source.document, **overrides, "files": data_files(files)}
        copied = copy_fast(self.source.path / FAST_NAME, output / FAST_NAME)
        write_manifest(output, document)
        return [file_entry(output, f"{FAST_NAME}/{name}") for name in copied]


_Export = _CodesExport | _SamplesExport


def _make_export(config: ExportConfig) -> _Export:
    """Selects the export by the content of the source."""
    require_input(config.source)
    source, output = pinned(config.source), location(config.output)
    if is_inside(output, source):
        raise UsageError(
            f"{output}: belongs to the input, which is never changed",
            hint="choose another --output",
            code="usage.output_is_input",
        )
    if is_codes(source):
        folder = CodesFolder.open(source)
        layout: str = config.layout or ("json" if folder.layout == "packed" else "packed")
        if layout not in ("json", "packed"):
            raise _layout_error(source, "codes", "json or packed")
        return _CodesExport(folder, output, layout, folder.episodes())
    if is_samples(source):
        samples = SamplesFolder.open(source)
        if not samples.is_packed or config.layout not in (None, "jsonl"):
            raise _layout_error(source, "samples", "jsonl, from packed samples")
        tree = samples.images_root
        return _SamplesExport(
            samples, output, images_prefix(tree, output, is_absolute=config.absolute)
        )
    raise DataError.at(
        source,
        "contains neither codes nor samples",
        hint="give a folder of codes, or one that `vlatool build-dataset --packed` wrote",
        code="data.nothing_to_export",
    )


def _layout_error(source: Path, exported: str, layouts: str) -> UsageError:
    return UsageError(
        f"{source}: {exported} can only be exported as {layouts}",
        hint="choose another --layout, or leave it out",
        code="usage.bad_layout",
    )


class ExportJob:
    """Job that exports the episodes of a folder; see `jobs.job.Job`."""

    def __init__(self, config: ExportConfig) -> None:
        check_required(config, _USAGE)
        self._config = config
        self._work = work = _make_export(config)
        self.items: Sequence[str] = work.items
        source, output = pinned(config.source), location(config.output)
        options = {"source": source.name, "exported": work.exported, "layout": work.layout}
        digest = {"source digest": work.source_digest} if work.source_digest else {}
        self.spec = JobSpec(
            output=output,
            record=OutputRecord(
                "export",
                {**options, **work.identity, **digest, **versions_of([source])},
                words={"pictures": "location of the images", "source digest": "source"},
            ),
            title=f"export {config.source}",
            item_name="episode",
            plan=plan_digest(options, work.identity),
            work=work,
            state=work.state,
            owned=work.owned,
            locations=(source, output),
            progress_count=work.counted,
            shown={"output": config.output},
        )

    def name(self, item: str) -> str:
        """Name of the episode."""
        return item

    def begin(self) -> None:
        """Removes the manifest."""
        remove_file(self.spec.output / self._work.manifest)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes the manifest."""
        all_receipts = list(receipts)
        output = self.spec.output
        others = self._work.close(output, all_receipts)
        files = [*others, *(entry for receipt in all_receipts for entry in receipt.files)]
        files.append(file_entry(output, self._work.manifest))
        return files

    def result(self, run: JobRun) -> ExportResult:
        """Result of the command."""
        return ExportResult(
            exported=self._work.exported,
            layout=self._work.layout,
            amount=run.sums.get(self._work.counted, 0),
            bytes=run.bytes_on_disk,
        )
