"""Reconstruction of images from the codes of a visual tokenizer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.codes.folder import CodesFolder
from vlatool.artifacts.codes.format import JSON_SUFFIX, PACKED_SUFFIX, CodesLayout, CodesManifest
from vlatool.artifacts.image import encode_png
from vlatool.config.base import check_required
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.jobs.command import job_options
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.files import FileEntry, folder_entry, remove_stale_files
from vlatool.jobs.inputs import InputState, current_inputs, input_state, plan_digest
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord, versions_of
from vlatool.jobs.result import failed_lines, load_result, result_or_raise
from vlatool.jobs.run import run_job
from vlatool.storage.bulk_folder import bulk_folder
from vlatool.storage.uri import location, pinned, require_existing
from vlatool.tokens.code_maker import CodeMaker, open_code_maker, rank_device
from vlatool.tokens.config import DecodeConfig

__all__ = ["DecodeConfig", "DecodeJob", "DecodeResult", "decode"]

_SUFFIXES: Mapping[str, CodesLayout] = {JSON_SUFFIX: "json", PACKED_SUFFIX: "packed"}


@dataclass(frozen=True)
class DecodeResult:
    """Result of a run; `failures` lists the episodes that are not in the output."""

    output: str
    tokenizer: str
    episodes: int
    pictures: int
    bytes: int
    failures: tuple[Mapping[str, Any], ...] = ()
    resumed: int = 0
    seconds: float = 0.0
    status: str = "written"

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping."""
        return asdict(self)

    def text(self) -> str:
        """The result as text."""
        if self.status == "planned":
            return f"{self.output}: would decode {self.episodes} episodes; nothing was written"
        counts = f"{self.pictures} images of {self.episodes} episodes, {self.bytes / 1e6:.1f} MB"
        line = f"{self.output}: {counts}"
        if self.status == "already complete":
            line += "; already complete, nothing to do"
        failed = failed_lines(self.failures)
        return "\n".join([line, *failed])


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
    run = run_job(job, SerialExecutor(), options=job_options(config), reporter=reporter)
    return result_or_raise(job.command_result(run), run, job.spec.item_name)


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
        )

    def name(self, item: str) -> str:
        """Name of the episode."""
        return item

    def inputs(self) -> Mapping[str, Any]:
        """The codes of all episodes."""
        return current_inputs(self.items, self.name, self.spec.state, self.spec.item_name)

    def begin(self) -> None:
        """Does nothing: no file marks the folder as complete."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Returns the files of the episodes; there is no common file."""
        files = [entry for receipt in receipts for entry in receipt.files]
        if not run.is_fresh:  # the input may have lost episodes since
            remove_stale_files(self.spec.output, self.spec.owned, self.spec.unlisted, files)
        return files

    def result(self, run: JobRun) -> Mapping[str, Any]:
        """The result that the record stores."""
        return self.command_result(run).document()

    def command_result(self, run: JobRun) -> DecodeResult:
        """Result of the command."""
        if run.status == "already complete":
            return load_result(DecodeResult, self._config.output, run.record.result)
        return DecodeResult(
            output=self._config.output,
            tokenizer=self._maker.name,
            episodes=len(self.items) - len(run.failures),
            pictures=run.sums.get("pictures", 0),
            bytes=run.bytes_on_disk,
            failures=tuple(run.failures),
            resumed=run.resumed,
            seconds=run.seconds,
            status=run.status,
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
