"""Writes codes, samples and trained models in another layout, with the same values."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from vlatool.checkpoints.checkpoint import is_checkpoint
from vlatool.checkpoints.layout import is_run
from vlatool.checkpoints.locations import (
    find_checkpoint,
    is_started,
    named_best,
    require_weights,
)
from vlatool.config.base import ConfigModel, check_required, execution_field, option, required_field
from vlatool.config.resolve import load_config
from vlatool.datasets.codes import layout as codes_layout
from vlatool.datasets.fast.layout import copy_fast
from vlatool.datasets.jsonl.layout import lines_name
from vlatool.datasets.samples import layout as samples_layout
from vlatool.episode import Array
from vlatool.errors import BugError, DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs import command
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import InputState, JobRun, JobSpec, digest_of, input_state, plan_digest
from vlatool.jobs.journal import Receipt
from vlatool.jobs.ownership import plan_output, require_input, single_output, versions_of
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_command
from vlatool.media.lines import write_lines
from vlatool.models.base import ModelType
from vlatool.models.published import Exported, Trained
from vlatool.models.titok.published import CONFIG, WEIGHTS
from vlatool.models.trained import open_trained, with_weights
from vlatool.results import MERGED, UNLISTED, Result, outcome
from vlatool.storage.atomic import remove_file, write_bytes, write_json
from vlatool.storage.tree import size_text
from vlatool.storage.uri import location, pinned
from vlatool.tokens.build import data_files
from vlatool.training.config import TrainConfig

_SEED = 0
_NUM_EXAMPLES = 2
# Same weights and operations on one device, so only the alignment of memory may change a sum.
_TOLERANCE = 1e-4
# Files of the package peft.
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class TokenizerExportConfig(ConfigModel):
    """Options of `vlatool tokenizer export`."""

    checkpoint: str = required_field("", "Run folder or checkpoint of a tokenizer, of any scheme.")
    output: str = required_field("", f"Folder for {CONFIG} and {WEIGHTS}.")
    overwrite: bool = execution_field(
        default=False, description="Replace the export of another checkpoint."
    )


@dataclass(frozen=True)
class ModelExportResult(Result):
    checkpoint: str  # of a policy; location of a tokenizer, as given
    output: str  # folder that was written
    # Number of values in the weights file, with tensors of the published file that the model does
    # not use.
    parameters: int
    bytes: int  # of the weights files
    summary: str = field(metadata=UNLISTED)  # text on the written files
    # Further values that the model type reports.
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any], metadata=MERGED)
    status: str = "written"  # or `planned`

    def lines(self) -> list[str]:
        content = f"{self.summary}, {self.parameters / 1e6:.2f} M parameters"
        written = f"{content}, {size_text(self.bytes)}"
        return [outcome(self.output, self.status, written, f"would write {content}")]


def tokenizer_export(
    config: TokenizerExportConfig, *, reporter: Reporter = NULL
) -> ModelExportResult:
    """Does what `export` does with a run; also takes published folders and files.

    Raises:
        UsageError: A key is missing, the model has no published layout, or the output has
            different content.
        DataError: The checkpoint is damaged.
    """
    check_required(config, "vlatool tokenizer export RUN --output DIR")
    require_weights(config.checkpoint)
    output = location(config.output)
    return export_model(
        config.checkpoint, output, reporter, command.JobConfig(overwrite=config.overwrite)
    )


def export_model(
    checkpoint: str,
    output: Path,
    reporter: Reporter,
    options: command.JobConfig,
    *,
    merge: bool = True,
) -> ModelExportResult:
    """Writes trained weights in the published layout of their model type; without `merge`, their
    adapters alone, as the package peft reads them.

    A layout with one file gets the averaged weights, if there are any, else the raw weights. The
    same weights give equal bytes. The written files are opened again, and the outputs of the model
    compared. Only `overwrite` and `dry_run` of the `options` are used.
    """
    source = named_best(pinned(checkpoint))
    trained = open_trained(str(source), device="cpu")
    layout = trained.model_type.layout
    problem = layout.problem(trained.config.model) if merge else ""
    if problem:
        raise UsageError(
            f"{checkpoint}: cannot be exported: {problem}",
            hint="use the run itself: vlatool commands take a run wherever they take an export",
            code="usage.unsupported",
        )
    if merge:
        exported = layout.write(trained, _tree(trained), reporter)
    else:
        exported = _adapters(trained)
    name = str(trained.origin.checkpoint)
    options_of_record = {"checkpoint": Path(name).name, **versions_of([source])}
    if not merge:
        options_of_record["adapters"] = True
    record = OutputRecord("export", options_of_record)
    if type(trained.model_type).tokenizer is not ModelType.tokenizer:
        name = checkpoint
        recorded = {"checkpoint": source.name, **versions_of([source])}
        record = OutputRecord("tokenizer export", recorded)
    plan_output(output, record, overwrite=options.overwrite)
    if options.dry_run:
        return ModelExportResult(
            name, str(output), exported.parameters, 0, exported.summary, status="planned"
        )
    with single_output(output, record, exported.files):
        facts = exported.write(output)
        size = sum((output / name).stat().st_size for name in exported.weights)
        if not layout.can_read:
            reporter.note(
                f"{output}: not compared with the run, because this model type reads no exports"
            )
        names = exported.weights if exported.compared is None else exported.compared
        for name in names if layout.can_read else ():
            check_equal(trained, output / name)
    return ModelExportResult(
        name, str(output), exported.parameters, size, exported.summary, dict(facts)
    )


def _adapters(trained: Trained) -> Exported:
    """The adapters of a run, and nothing else of it."""
    from safetensors.torch import save

    from vlatool.models.adapters import peft_adapters
    from vlatool.models.weights import read_weights

    lora = trained.config.lora
    if trained.origin.run is None or not lora.rank:
        raise UsageError(
            f"{trained.origin.text}: has trained no adapters, or other weights, too",
            hint="leave --no-merge out: the export then has all weights",
            code="usage.unsupported",
        )
    base = load_config(TrainConfig, files=[str(trained.origin.run.config)]).config.init_from
    if base is not None:  # peft knows names of the hub, not locations
        base = base.removeprefix("hf://").removeprefix("models/")
    state = read_weights(trained.origin.path)
    config, tensors = peft_adapters(state, lora.rank, lora.scale, base)

    def write(output: Path) -> Mapping[str, Any]:
        write_json(output / _ADAPTER_CONFIG, config)
        write_bytes(output / _ADAPTER_WEIGHTS, save(tensors))
        return {"rank": lora.rank}

    count = sum(tensor.numel() for tensor in tensors.values())
    files = (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS)
    summary = f"adapters of rank {lora.rank} for peft"
    return Exported(files, (_ADAPTER_WEIGHTS,), count, summary, write, compared=())


def check_equal(trained: Trained, path: Path) -> None:
    """Checks that an exported model gives the same outputs as the model it was exported from."""
    written = open_trained(str(path), device="cpu", before=trained.config.model)
    kind = written.origin.weights
    is_other = kind in ("raw", "ema") and kind != trained.origin.weights
    source = with_weights(trained, "raw" if kind == "raw" else "ema") if is_other else trained
    expected = example_outputs(source)
    outputs = example_outputs(written)
    for name, values in expected.items():
        limit = _TOLERANCE * float(np.abs(values).max(initial=0))
        is_equal = name in outputs and outputs[name].shape == values.shape
        if not (is_equal and np.allclose(outputs[name], values, rtol=0, atol=limit)):
            raise BugError(
                f"{path}: the exported model gives other {name} than {trained.origin.text}",
                hint="do not use the export; report this bug with the configuration of the run",
                code="bug.differs",
                details={"path": str(path), "output": name},
            )


def example_outputs(trained: Trained) -> dict[str, Array]:
    """Outputs of a model on made-up inputs, by name: codes and pixels, or action fields."""
    import torch

    tokenizer = trained.model_type.tokenizer(trained.config.model, trained.parts, trained.assets)
    generator = np.random.default_rng(_SEED)
    if tokenizer is None:
        from vlatool.models.policy import example_observation

        policy = trained.policy().with_steps(1)
        observations = [example_observation(policy.sees, generator) for _ in range(_NUM_EXAMPLES)]
        return dict(policy.act(observations, seeds=range(_NUM_EXAMPLES)))
    shape = (_NUM_EXAMPLES, tokenizer.image_size, tokenizer.image_size, 3)
    images = torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
    outputs: dict[str, Array] = {}
    if tokenizer.codebook_size:
        outputs["codes"] = tokenizer.encode(images).values.numpy()
    if tokenizer.has_decoder:
        outputs["pixels"] = tokenizer.reconstructor()(images).pixels.numpy()
    return outputs


def _tree(trained: Trained) -> Mapping[str, Any]:
    """Complete configuration of a run as plain data; empty for published files."""
    if trained.origin.run is None or trained.folder is None:
        return {}
    files = [str(trained.folder / trained.origin.run.config.name)]
    return load_config(TrainConfig, files=files).config.model_dump(mode="json")


_USAGE = "vlatool export SOURCE --output DIR"


class ExportConfig(command.EngineConfig):
    """Options of `vlatool export`."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("output", "layout", "absolute", "merge"),
        "Execution": (*command.ENGINE_KEYS, *command.JOB_KEYS),
    }

    source: str = required_field(
        "", "Folder of codes or of packed samples, a training run or one of its checkpoints."
    )
    output: str = required_field("", "Folder for the exported data.")
    layout: Literal["json", "packed", "jsonl"] | None = option(
        None, "Layout to write: json or packed for codes, jsonl for samples."
    )
    absolute: bool = option(False, "Write absolute locations of images into samples.")
    merge: bool = option(
        True, "Add adapters (LoRA) to the weights; false: write them alone, as peft reads them."
    )


@dataclass(frozen=True, kw_only=True)
class ExportResult(command.JobResult):
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
        return f"{content}, {self.amount} {unit}, {size_text(self.bytes)}"

    @property
    def next_command(self) -> str:
        return shlex.join(["vlatool", "verify", self.output])


def export(config: ExportConfig, *, reporter: Reporter = NULL) -> ExportResult | ModelExportResult:
    """Writes codes or samples in another layout, or a trained model in its published layout.

    An interrupted run is resumed by the same call. Packed samples become the same lines that
    `build_dataset` writes without `packed`. A training run is exported at its newest checkpoint.

    Raises:
        UsageError: A required key is missing, the layout does not fit the source, or the output
            belongs to another run.
        DataError: The source has nothing that can be exported, or none of it can be read.
        StorageError: A file cannot be read or written; finished episodes stay.
        PartialFailure: The data are written without the episodes that failed.
    """
    check_required(config, _USAGE)
    source = named_best(pinned(config.source))
    if is_run(source) or is_checkpoint(source):
        return _model(config, source, reporter)
    if not config.merge:
        raise UsageError(
            "--no-merge is for runs with adapters, and this is no run",
            hint="leave --no-merge out",
            code="usage.unsupported",
        )
    job = ExportJob(config)
    return run_command(job, ExportResult, config, command.executor_of(config), reporter=reporter)


def _model(config: ExportConfig, source: Path, reporter: Reporter) -> ModelExportResult:
    if config.layout is not None:
        raise UsageError(
            "--layout is for codes and samples, and this is a model",
            hint="leave --layout out: a model has only one published layout",
            code="usage.unsupported",
        )
    output = location(config.output)
    return export_model(str(source), output, reporter, config, merge=config.merge)


@dataclass(frozen=True)
class _CodesExport:
    source: codes_layout.CodesFolder
    output: Path
    layout: codes_layout.CodesLayout
    items: Sequence[str]
    exported: ClassVar[str] = "codes"
    counted: ClassVar[str] = "pictures"
    manifest: ClassVar[str] = codes_layout.MANIFEST_NAME

    @property
    def owned(self) -> Sequence[str]:
        return codes_layout.OWNED_FILES[self.layout]

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.source.manifest.identity()

    @property
    def source_digest(self) -> str:
        return self.source.manifest.digest

    def __call__(self, item: str) -> Receipt:
        episode = self.source.read(item)
        digest = self.source.manifest.tokenizer_digest
        entry = codes_layout.write_codes(self.output, self.layout, episode, digest)
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
                f"codes do not match the digest in {codes_layout.MANIFEST_NAME}",
                hint="copy the folder again, or encode the images again",
                code="data.wrong_digest",
            )
        manifest.save(output)
        return ()


@dataclass(frozen=True)
class _SamplesExport:
    source: samples_layout.SamplesFolder
    output: Path
    prefix: str
    layout: str = "jsonl"
    exported: ClassVar[str] = samples_layout.EXPORTED
    counted: ClassVar[str] = "samples"
    manifest: ClassVar[str] = samples_layout.MANIFEST_NAME
    owned: ClassVar[Sequence[str]] = samples_layout.OWNED_FILES
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
        path = self.source.path / samples_layout.packed_name(item)
        expected = self._counts[samples_layout.packed_name(item)]
        samples = samples_layout.read_packed(path, self.source.sizes)
        if len(samples) != expected:
            raise DataError.at(
                path,
                f"has {counted(len(samples), 'sample')}, {self.manifest} says {expected}",
                hint="copy the folder again, or build it again",
                code="data.broken",
            )
        files = write_lines(self.output, lines_name(item), samples.lines(self.prefix))
        return Receipt(item, counts={"samples": len(samples)}, files=files)

    def state(self, item: str) -> InputState:
        return input_state([self.source.path / samples_layout.packed_name(item)])

    def close(self, output: Path, receipts: Sequence[Receipt]) -> Sequence[FileEntry]:
        files = [entry for receipt in receipts for entry in receipt.files]
        overrides = {"layout": self.layout, "pictures": {"prefix": self.prefix}}
        document = {**self.source.document, **overrides, "files": data_files(files)}
        copied = copy_fast(
            self.source.path / samples_layout.FAST_NAME, output / samples_layout.FAST_NAME
        )
        samples_layout.write_manifest(output, document)
        return [file_entry(output, f"{samples_layout.FAST_NAME}/{name}") for name in copied]


_Export = _CodesExport | _SamplesExport


def _make_export(config: ExportConfig) -> _Export:
    require_input(config.source)
    source = pinned(config.source)
    output = location(config.output)
    if samples_layout.is_inside(output, source):
        raise UsageError(
            f"{output}: belongs to the input, which is never changed",
            hint="choose another --output",
            code="usage.output_exists",
        )
    if codes_layout.is_codes(source):
        folder = codes_layout.CodesFolder.open(source)
        layout: str = config.layout or ("json" if folder.layout == "packed" else "packed")
        if layout not in ("json", "packed"):
            raise _layout_error(source, "codes", "json or packed")
        return _CodesExport(folder, output, layout, folder.episodes())
    if samples_layout.is_samples(source):
        samples = samples_layout.SamplesFolder.open(source)
        if not samples.is_packed or config.layout not in (None, "jsonl"):
            raise _layout_error(source, "samples", "jsonl, from packed samples")
        tree = samples.images_root
        return _SamplesExport(
            samples, output, samples_layout.images_prefix(tree, output, is_absolute=config.absolute)
        )
    if is_started(source):
        find_checkpoint(source)
    raise DataError.at(
        source,
        "holds no codes, no samples and no trained model",
        hint="give a folder of codes or of packed samples, or a run",
        code="data.missing",
    )


def _layout_error(source: Path, exported: str, layouts: str) -> UsageError:
    return UsageError(
        f"{source}: {exported} can only be exported as {layouts}",
        hint="choose another --layout, or leave it out",
        code="usage.unsupported",
    )


class ExportJob:
    """Job that exports the episodes of a folder; see `jobs.job.Job`."""

    def __init__(self, config: ExportConfig) -> None:
        check_required(config, _USAGE)
        self._config = config
        self._work = work = _make_export(config)
        self.items: Sequence[str] = work.items
        source = pinned(config.source)
        output = location(config.output)
        options = {"source": source.name, "exported": work.exported, "layout": work.layout}
        digest = {"source digest": work.source_digest} if work.source_digest else {}
        self.spec = JobSpec(
            output=output,
            record=OutputRecord(
                "export",
                {**options, **work.identity, **digest, **versions_of([source])},
                words={"pictures": "location of the images", "source digest": "source"},
            ),
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
        return item

    def begin(self) -> None:
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
        return ExportResult(
            exported=self._work.exported,
            layout=self._work.layout,
            amount=run.sums.get(self._work.counted, 0),
            bytes=run.bytes_on_disk,
        )
