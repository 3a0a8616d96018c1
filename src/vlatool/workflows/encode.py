"""Encodes images to codes of a visual tokenizer, on all devices, and decodes codes to images."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from vlatool.checkpoints.locations import require_weights
from vlatool.config.base import check_required
from vlatool.datasets.codes import layout as codes_layout
from vlatool.episode import EpisodeRef
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import JobResult
from vlatool.jobs.executor import DeviceExecutor, SerialExecutor
from vlatool.jobs.files import FileEntry, file_entry, is_occupied
from vlatool.jobs.job import InputState, JobRun, JobSpec, input_state, plan_digest
from vlatool.jobs.journal import Receipt
from vlatool.jobs.ownership import require_input, versions_of
from vlatool.jobs.record import OutputRecord, read_record
from vlatool.jobs.run import run_command
from vlatool.models.published import WeightsOrigin
from vlatool.models.tokenizer import OpenTokenizer, open_tokenizer, rank_device
from vlatool.recordings.choice import select
from vlatool.recordings.detect import DetectedSource, detect_source
from vlatool.recordings.select import episode_state
from vlatool.storage.atomic import remove_file
from vlatool.storage.tree import size_text
from vlatool.storage.uri import location, pinned
from vlatool.tokens.config import DecodeConfig, EncodeConfig
from vlatool.tokens.images import EpisodeOpener

if TYPE_CHECKING:
    from vlatool.tokens.encode import EncodeRule

__all__ = ["DecodeConfig", "EncodeConfig", "decode", "encode"]

_IMAGES = "images"
_SHARDS = "image-shards"
_NAMES = {"json": codes_layout.JSON_NAME, "packed": codes_layout.PACKED_NAME}


@dataclass(frozen=True, kw_only=True)
class EncodeResult(JobResult):
    """Result of a run; `failures` lists the episodes that are not in the output."""

    guide: ClassVar[str] = "docs/guides/tokenizers.md"

    layout: str
    tokenizer: str  # name of the visual tokenizer
    precision: str
    pictures: int
    bytes: int
    agreement: float = 1.0  # share of codes that are the same in fp32, on some of the images
    resized: int = 0  # images that were resized as in the training of the tokenizer
    rate: float = 0.0  # images per second that this run encoded
    bound: str = ""  # the slowest stage, for which the others waited
    # Map from stage to seconds that the others waited for it, on the first device.
    stages: Mapping[str, float] = field(default_factory=dict[str, float])
    device: str = ""
    processes: int = 1
    # Use of the codebook in at most 8 episodes (`CodesUsage.facts`).
    usage: Mapping[str, float] = field(default_factory=dict[str, float])

    def summary(self) -> str:
        episodes = f"{counted(self.episodes, 'episode')} as {self.layout}"
        if self.is_planned:
            return f"would write codes of {episodes}"
        images = counted(self.pictures, "image")
        return f"codes of {images} from {episodes}, {size_text(self.bytes)}"

    def details(self) -> Iterator[str]:
        if self.is_planned:
            return
        if self.bound and self.status != "already complete":
            devices = f"{self.processes} x {self.device}, {self.precision}"
            yield f"{self.rate:.1f} images/s on {devices}; limited by {self.bound}"
        if self.precision != "fp32":
            yield f"{self.agreement:.2%} of the compared codes are the same in fp32"
        if self.usage:
            yield (
                f"{self.usage['codes_in_use']} codes in use, entropy "
                f"{self.usage['code_entropy']:.2f} bits, {self.usage['equal_images']:.1%} of the "
                f"images with the same codes (of {self.usage['images_read']} read)"
            )
        if self.resized:
            yield f"{counted(self.resized, 'image')} of another size were resized as in training"


def encode(config: EncodeConfig, *, reporter: Reporter = NULL) -> EncodeResult:
    """Writes the codes of every image, episode by episode; inputs are never changed.

    With `nproc` each of several processes encodes its share of the episodes on its own device;
    under torchrun the first rank starts them, and other ranks and machines have nothing to do. An
    interrupted run is resumed by the same call and writes the same bytes.

    Raises:
        UsageError: A required key is missing, or the output belongs to another run.
        DataError: There are no images or no usable tokenizer, or no episode can be encoded.
        StorageError: A file cannot be read or written; finished episodes stay.
        PartialFailure: The codes are written without the episodes that failed.
    """
    check_required(config, "vlatool encode DATA --tokenizer CHECKPOINT")
    processes = _processes(config, reporter)
    inputs = _EncodeInputs.of(config)
    reporter.note(f"images: {inputs.images.format}, {counted(len(inputs.items), 'episode')}")
    if os.environ.get("RANK", "0") != "0":
        return inputs.plan(config, processes)
    if config.dry_run and read_record(inputs.output) is None and not is_occupied(inputs.output):
        return inputs.plan(config, processes)
    job = EncodeJob(config, processes, inputs)
    job.log_tokenizer(reporter)
    return run_command(job, EncodeResult, config, job.executor, reporter=reporter)


def _processes(config: EncodeConfig, reporter: Reporter) -> int:
    """Number of worker processes: `nproc`, else the number of ranks of torchrun on this machine."""
    if config.nproc is not None:
        from vlatool.training.start import check_processes, gpus_here  # imports torch

        check_processes(config.nproc, gpus_here(), reporter)
    return config.nproc or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class _EncodeInputs(NamedTuple):
    """Images and output of a run, found before a tokenizer is opened."""

    source: Path  # location of the images
    images: DetectedSource  # their format and reader
    items: Sequence[EpisodeRef]
    output: Path  # folder for the codes

    @classmethod
    def of(cls, config: EncodeConfig) -> "_EncodeInputs":
        require_input(config.data)
        require_weights(config.tokenizer)
        source = pinned(config.data)
        images = detect_source(source, config.format)
        chosen = select(images.refs, None, config.exclude)
        items = [ref for ref in chosen if not ref.excluded]
        return cls(source, images, items, _output(config, images.format))

    def plan(self, config: EncodeConfig, processes: int) -> EncodeResult:
        """Result of a dry run that has no earlier output to compare with."""
        WeightsOrigin.find(config.tokenizer)
        return EncodeResult(
            output=str(self.output) if config.output is None else config.output,
            layout=config.layout,
            tokenizer=location(config.tokenizer).name,
            precision=config.precision,
            pictures=0,
            bytes=0,
            episodes=len(self.items),
            processes=processes,
            status="planned",
        )


class EncodeJob:
    """Job that encodes the images of episodes; see `jobs.job.Job`."""

    def __init__(self, config: EncodeConfig, processes: int, inputs: _EncodeInputs) -> None:
        import torch

        from vlatool.tokens.encode import EncodePipeline, EncodeRule, open_pipeline

        self._config = config
        self._processes = processes
        source, images, self.items, output = inputs
        # Each of several workers opens a tokenizer on its own device.
        device = rank_device() if processes == 1 else torch.device("cpu")
        self._tokenizer = tokenizer = open_tokenizer(config.tokenizer, device)
        tokenizer.check_codebook()
        self.output = output
        rule = EncodeRule(
            output=output,
            layout=config.layout,
            precision=config.precision,
            batch_size=config.batch_size,
            check_every=config.check_every if tokenizer.network.has_decoder else 0,
            num_workers=config.num_workers,
        )
        opener = EpisodeOpener(images.format, images.reader.config)
        self.executor: EncodePipeline | DeviceExecutor = EncodePipeline(opener, tokenizer, rule)
        if processes > 1:
            self.executor = DeviceExecutor(
                processes, partial(open_pipeline, opener, config.tokenizer, rule, processes)
            )
        options = _record_options(config, tokenizer, rule)
        excluded = {} if config.exclude is None else {"exclude": config.exclude}
        self.spec = JobSpec(
            output=output,
            record=OutputRecord(
                "encode",
                {"data": source.name, **options, **excluded, **versions_of([source])},
                words={"tokenizer digest": "tokenizer"},
            ),
            item_name="episode",
            plan=plan_digest(options),
            work=None,
            state=_tar_state if images.format == _SHARDS else episode_state,
            owned=(*codes_layout.OWNED_FILES[config.layout], f"{codes_layout.CHECKS_NAME}/*/*.png"),
            locations=(source, output),
            progress_count="pictures",
            shown={"output": str(output) if config.output is None else config.output},
        )

    def name(self, item: EpisodeRef) -> str:
        return item.id

    def begin(self) -> None:
        remove_file(self.output / codes_layout.MANIFEST_NAME)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes the manifest."""
        digests: dict[str, str] = {}
        files: list[FileEntry] = []
        for receipt in receipts:
            digests[receipt.item] = str(receipt.facts["digest"])
            files += receipt.files
        tokenizer = self._tokenizer
        manifest = codes_layout.CodesManifest(
            codes_per_picture=tokenizer.network.codes_per_image,
            codebook_size=tokenizer.network.codebook_size,
            tokenizer=tokenizer.name,
            tokenizer_digest=tokenizer.network.digest,
            precision=self._config.precision,
            layout=self._config.layout,
            agreement=_agreement(run),
        ).of_episodes(digests, run.sums.get("pictures", 0))
        manifest.save(self.output)
        files.append(file_entry(self.output, codes_layout.MANIFEST_NAME))
        return files

    def log_tokenizer(self, reporter: Reporter) -> None:
        """Notes the tokenizer, and that `check_every` has no effect where it has none."""
        tokenizer = self._tokenizer
        rule = tokenizer.rule
        resize = rule.resize
        others = "rejected" if resize is None else f"resized ({resize.resize})"
        reporter.note(
            f"tokenizer: {tokenizer.name}, {rule.size}x{rule.size}; other sizes are {others}"
        )
        if self._config.check_every and not tokenizer.network.has_decoder:
            reporter.note("check_every has no effect: a stage-1 tokenizer has no pixel decoder")

    def result(self, run: JobRun) -> EncodeResult:
        seconds = self.executor.seconds
        new_pictures = run.new_counts.get("pictures", 0)
        return EncodeResult(
            layout=self._config.layout,
            tokenizer=self._tokenizer.name,
            precision=self._config.precision,
            pictures=run.sums.get("pictures", 0),
            bytes=run.bytes_on_disk,
            agreement=_agreement(run),
            resized=run.sums.get("resized", 0),
            rate=round(new_pictures / max(run.seconds, 1e-6), 1),
            bound=max(seconds, key=seconds.__getitem__) if new_pictures else "",
            stages={name: round(value, 2) for name, value in seconds.items()},
            device=rank_device().type,
            processes=self._processes,
            usage=codes_layout.warn_of_collapse(
                codes_layout.CodesFolder.open(self.output), run.reporter
            ).facts(),
        )


def _tar_state(ref: EpisodeRef) -> InputState:
    """State of an image shard; journals on disk have the tar alone, without metadata."""
    return input_state([ref.path])


def _output(config: EncodeConfig, format_name: str) -> Path:
    """Folder of the codes; for a folder of images it is beside the images, as published."""
    if config.output is not None:
        return location(config.output)
    if format_name != _IMAGES:
        raise UsageError(
            f"{config.data}: {format_name} data have no default folder for codes",
            hint="add --output DIR",
            code="usage.missing_key",
            details={"key": "output"},
        )
    return location(config.data) / _NAMES[config.layout]


def _record_options(
    config: EncodeConfig, tokenizer: OpenTokenizer, rule: "EncodeRule"
) -> dict[str, Any]:
    """Options that determine the codes, for the record; the tokenizer is recorded by its digest."""
    excluded = {*config.no_effect_on_output, "exclude"}  # it changes no episode that is encoded
    options = config.model_dump(mode="json", exclude=excluded)
    size = tokenizer.rule.size
    resize = tokenizer.rule.resize
    resizing = {} if resize is None else resize.model_dump(mode="json")
    options |= {
        "tokenizer digest": tokenizer.network.digest,
        "preprocessing": {"size": size, **resizing},
    }
    options["check_every"] = rule.check_every
    if config.precision != "fp32":  # fp32 codes do not depend on the batch size
        options["batch_size"] = config.batch_size
    return options


def _agreement(run: JobRun) -> float:
    """Share of the compared codes that are the same in fp32; 1 if none were compared."""
    compared = run.sums.get("compared", 0)
    return run.sums.get("agreeing", 0) / compared if compared else 1.0


@dataclass(frozen=True, kw_only=True)
class DecodeResult(JobResult):
    """Result of a run; `failures` lists the episodes that are not in the output."""

    tokenizer: str
    pictures: int
    bytes: int

    def summary(self) -> str:
        episodes = counted(self.episodes, "episode")
        if self.is_planned:
            return f"would decode {episodes}"
        return f"{counted(self.pictures, 'image')} of {episodes}, {size_text(self.bytes)}"


def decode(config: DecodeConfig, *, reporter: Reporter = NULL) -> DecodeResult:
    """Writes a PNG for every image that has codes, one folder per episode.

    An interrupted run is resumed by the same call.

    Raises:
        UsageError: A required key is missing, or the output belongs to another run.
        DataError: There are no codes, or they come from another tokenizer.
        StorageError: A file cannot be read or written; finished episodes stay.
        PartialFailure: The images are written without the episodes that failed.
    """
    job = DecodeJob(config)
    return run_command(job, DecodeResult, config, SerialExecutor(), reporter=reporter)


class DecodeJob:
    """Job that decodes the episodes of a folder of codes; see `jobs.job.Job`."""

    def __init__(self, config: DecodeConfig) -> None:
        check_required(config, "vlatool decode CODES --tokenizer CHECKPOINT --output DIR")
        self._config = config
        require_input(config.codes)
        require_weights(config.tokenizer)
        from vlatool.tokens.decode import EpisodeDecoder, select_codes_of  # imports torch

        source = pinned(config.codes)
        output = location(config.output)
        self._tokenizer = tokenizer = open_tokenizer(config.tokenizer, rank_device())
        tokenizer.check_codebook()
        tokenizer.check_decoder()
        selection = select_codes_of(tokenizer, source)
        self.items: Sequence[str] = selection.episodes
        work = EpisodeDecoder(tokenizer, selection, output, config.batch_size)
        options = {
            **config.recorded_options(),
            "codes": source.name,
            "pictures": list(selection.stems or ()),
            "tokenizer digest": tokenizer.network.decoder_digest,
        }
        digest = selection.folder.manifest.digest if source.is_dir() else ""
        self.spec = JobSpec(
            output=output,
            record=OutputRecord(
                "decode",
                {**options, "codes digest": digest, **versions_of([source])},
                words={
                    "codes digest": "codes",
                    "pictures": "images",
                    "tokenizer digest": "tokenizer",
                },
            ),
            item_name="episode",
            plan=plan_digest(options),
            work=work,
            state=work.state,
            owned=("*/*.png",),
            locations=(source, output),
            progress_count="pictures",
            shown={"output": config.output},
        )

    def name(self, item: str) -> str:
        return item

    def begin(self) -> None:
        """Does nothing: no file marks the folder as complete."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        return [entry for receipt in receipts for entry in receipt.files]

    def result(self, run: JobRun) -> DecodeResult:
        return DecodeResult(
            tokenizer=self._tokenizer.name,
            pictures=run.sums.get("pictures", 0),
            bytes=run.bytes_on_disk,
        )
