"""Reconstruction of images from the codes of a visual tokenizer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vlatool.artifacts.codes.folder import CodesFolder
from vlatool.artifacts.codes.format import JSON_SUFFIX, PACKED_SUFFIX, CodesLayout, CodesManifest
from vlatool.artifacts.image import encode_png
from vlatool.config.base import check_required
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.jobs.command import JobResult
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.files import FileEntry, folder_entry
from vlatool.jobs.inputs import InputState, input_state, plan_digest
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord, versions_of
from vlatool.jobs.run import run_command
from vlatool.storage.bulk_folder import bulk_folder
from vlatool.storage.uri import location, pinned, require_existing
from vlatool.tokens.code_maker import CodeMaker, open_code_maker, rank_device
from vlatool.tokens.config import DecodeConfig

__all__ = ["DecodeConfig", "DecodeJob", "DecodeResult", "decode"]

_SUFFIXES: Mapping[str, CodesLayout] = {JSON_SUFFIX: "json", PACKED_SUFFIX: "packed"}


@dataclass(frozen=True, kw_only=True)
class DecodeResult(JobResult):
    """Result of a run; `failures` lists the episodes that are not in the output."""

    tokenizer: str
    pictures: int
    bytes: int

    def summary(self) -> str:
        """Number of images and episodes, and size."""
        if self.status == "planned":
            return f"would decode {self.episodes} episodes"
        return f"{self.pictures} images of {self.episodes} episodes, {self.bytes / 1e6:.1f} MB"


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


@dataclass(frozen=True)
class _Selection:
    """Codes to decode.

    Attributes:
        folder: Folder of the codes.
        episodes: Episodes to decode.
        stems: Stems of the images to decode; None for all.
    """

    folder: CodesFolder
    episodes: Sequence[str]
    stems: tuple[str, ...] | None = None


def _select(path: Path, maker: CodeMaker) -> _Selection:
    """Selects the codes of a folder or of one of its files.

    Raises:
        DataError: There are no codes, or they come from another tokenizer.
    """
    layout = _SUFFIXES.get(path.suffix)
    if layout is None or path.is_dir():
        folder = CodesFolder.open(path)
        selection = _Selection(folder, folder.episodes())
    else:
        root = path.parent.parent if layout == "json" else path.parent
        beside = CodesFolder.find(root)
        if beside is None or beside.layout != layout:
            beside = CodesFolder(root, layout, CodesManifest(layout=layout), has_manifest=False)
        if layout == "json":
            selection = _Selection(beside, [path.parent.name], (path.stem,))
        else:
            selection = _Selection(beside, [path.stem])
    return replace(selection, folder=_checked_folder(selection.folder, maker))


def _checked_folder(folder: CodesFolder, maker: CodeMaker) -> CodesFolder:
    """Checks that the codes are of the tokenizer; without a manifest, they are assumed to be."""
    if not folder.has_manifest:
        sizes = {
            "codes_per_picture": maker.config.num_latent_tokens,
            "codebook_size": maker.codebook_size,
        }
        return replace(folder, manifest=replace(folder.manifest, **sizes))
    maker.check_tokenizer_of(folder.path, folder.manifest.encoding_info())
    return folder


class DecodeJob:
    """Job that decodes the episodes of a folder of codes; see `jobs.job.Job`."""

    def __init__(self, config: DecodeConfig) -> None:
        check_required(config, "vlatool decode CODES --tokenizer CHECKPOINT --output DIR")
        self._config = config
        require_existing(config.codes)
        source, output = pinned(config.codes), location(config.output)
        self._maker = maker = open_code_maker(config.tokenizer, rank_device())
        maker.check_decoder()
        self._selection = selection = _select(source, maker)
        self.items: Sequence[str] = selection.episodes
        if not self.items:
            raise DataError(f"{source}: contains no codes", code="data.no_codes")
        options = {
            **config.model_dump(mode="json", exclude={*config.no_effect_on_output}),
            "codes": source.name,
            "pictures": list(selection.stems or ()),
            "tokenizer digest": maker.image_digest,
        }
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("decode", {**options, **versions_of([source])}),
            title=f"decode {config.codes}",
            item_name="episode",
            plan=plan_digest(options),
            work=self._work,
            state=self._state,
            owned=("*/*.png",),
            locations=(source, output),
            progress_count="pictures",
            shown={"output": config.output},
        )

    def name(self, item: str) -> str:
        """Name of the episode."""
        return item

    def begin(self) -> None:
        """Does nothing: no file marks the folder as complete."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Returns the files of the episodes; there is no common file."""
        del run
        return [entry for receipt in receipts for entry in receipt.files]

    def result(self, run: JobRun) -> DecodeResult:
        """Result of the command."""
        return DecodeResult(
            tokenizer=self._maker.name,
            pictures=run.sums.get("pictures", 0),
            bytes=run.bytes_on_disk,
        )

    def _state(self, episode: str) -> InputState:
        return input_state([self._selection.folder.path_of(episode)])

    def _work(self, episode: str) -> Receipt:
        episode_codes = self._selection.folder.read(episode, self._selection.stems)
        size = self._config.batch_size
        with bulk_folder(self.spec.output / episode) as writer:
            for start in range(0, len(episode_codes.stems), size):
                rows = episode_codes.codes[start : start + size].astype(np.int64)
                images = self._maker.decode(rows)
                for stem, pixels in zip(
                    episode_codes.stems[start : start + size], images, strict=True
                ):
                    writer.write(f"{stem}.png", encode_png(pixels))
        entry = folder_entry(episode, writer.files)
        return Receipt(episode, counts={"pictures": len(episode_codes.stems)}, files=(entry,))
