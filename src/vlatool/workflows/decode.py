"""Codes back to the pictures that a tokenizer draws from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.codes import JSON_SUFFIX, PACKED_SUFFIX, CodesLayout, CodesManifest
from vlatool.artifacts.codes_folder import CodesFolder
from vlatool.artifacts.image import encode_png
from vlatool.config.base import check_required
from vlatool.errors import DataError
from vlatool.evaluation.code_maker import CodeMaker, open_code_maker, rank_device
from vlatool.evaluation.coding_config import DecodeConfig
from vlatool.events import NULL, Reporter
from vlatool.jobs.command import job_options
from vlatool.jobs.files import FileEntry, folder_entry, remove_stale_files
from vlatool.jobs.inputs import InputState, current_inputs, input_state, plan_digest
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord, versions_of
from vlatool.jobs.result import failed_lines, load_result, result_or_raise
from vlatool.jobs.run import run_job
from vlatool.parallel.executor import SerialExecutor
from vlatool.storage.bulk_folder import bulk_folder
from vlatool.storage.uri import location, pinned, require_existing

__all__ = ["DecodeConfig", "DecodeJob", "DecodeResult", "decode"]

_SUFFIXES: Mapping[str, CodesLayout] = {JSON_SUFFIX: "json", PACKED_SUFFIX: "packed"}


@dataclass(frozen=True)
class DecodeResult:
    """What came of a run; `failures` lists the episodes that are not in the output."""

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
        """The result for programs."""
        return asdict(self)

    def text(self) -> str:
        """The result for people."""
        if self.status == "planned":
            return f"{self.output}: would draw {self.episodes} episodes; nothing was written"
        what = f"{self.pictures} pictures of {self.episodes} episodes, {self.bytes / 1e6:.1f} MB"
        line = f"{self.output}: {what}"
        if self.status == "already complete":
            line += "; was already complete, nothing to do"
        failed = failed_lines(self.failures)
        return "\n".join([line, *failed])


def decode(config: DecodeConfig, *, reporter: Reporter = NULL) -> DecodeResult:
    """Draws a PNG for every picture that has codes, a folder for each episode.

    A run that was ended goes on where it was.

    Raises:
        UsageError: A needed key is missing, or the output belongs to another run.
        DataError: There are no codes, or they are those of another tokenizer.
        StorageError: Something cannot be read or written; what is written stays.
        PartialFailure: The pictures are written, but without the episodes that failed.
    """
    job = DecodeJob(config)
    run = run_job(job, SerialExecutor(), options=job_options(config), reporter=reporter)
    return result_or_raise(job.answer(run), run, job.spec.item_name)


@dataclass(frozen=True)
class _Chosen:
    """Codes to draw.

    Attributes:
        folder: Where they are.
        episodes: Those that are drawn.
        stems: Their pictures; None for all.
    """

    folder: CodesFolder
    episodes: Sequence[str]
    stems: tuple[str, ...] | None = None


def _chosen(place: Path, maker: CodeMaker) -> _Chosen:
    """The codes of a folder, or of one of its files.

    Raises:
        DataError: There are none, or they are those of another tokenizer.
    """
    layout = _SUFFIXES.get(place.suffix)
    if layout is None or place.is_dir():
        folder = CodesFolder.open(place)
        chosen = _Chosen(folder, folder.episodes())
    else:
        root = place.parent.parent if layout == "json" else place.parent
        found = CodesFolder.find(root)
        if found is None or found.layout != layout:
            found = CodesFolder(root, layout, CodesManifest(layout=layout), has_manifest=False)
        if layout == "json":
            chosen = _Chosen(found, [place.parent.name], (place.stem,))
        else:
            chosen = _Chosen(found, [place.stem])
    return replace(chosen, folder=_fitting(chosen.folder, maker))


def _fitting(folder: CodesFolder, maker: CodeMaker) -> CodesFolder:
    """The codes, held against the tokenizer; where nothing says what they are, they are its."""
    if not folder.has_manifest:
        sizes = {
            "codes_per_picture": maker.config.num_latent_tokens,
            "codebook_size": maker.codebook_size,
        }
        return replace(folder, manifest=replace(folder.manifest, **sizes))
    maker.check_made(folder.path, folder.manifest.how())
    return folder


class DecodeJob:
    """The episodes of some codes on their way to pictures; see `jobs.job.Job`."""

    def __init__(self, config: DecodeConfig) -> None:
        check_required(config, "vlatool decode CODES --tokenizer CHECKPOINT --output DIR")
        self._config = config
        require_existing(config.codes)
        place, output = pinned(config.codes), location(config.output)
        self._maker = maker = open_code_maker(config.tokenizer, rank_device())
        maker.check_draws()
        self._chosen = chosen = _chosen(place, maker)
        self.items: Sequence[str] = chosen.episodes
        if not self.items:
            raise DataError(f"{place}: no codes here", code="data.no_codes")
        options = {
            **config.model_dump(mode="json", exclude={*config.no_effect_on_output}),
            "codes": place.name,
            "pictures": list(chosen.stems or ()),
            "tokenizer digest": maker.image_digest,
        }
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("decode", {**options, **versions_of([place])}),
            title=f"decode {config.codes}",
            item_name="episode",
            plan=plan_digest(options),
            work=self._work,
            state=self._state,
            owned=("*/*.png",),
            locations=(place, output),
            progress_count="pictures",
        )

    def name(self, item: str) -> str:
        """The episode's name."""
        return item

    def inputs(self) -> Mapping[str, Any]:
        """The codes of all episodes."""
        return current_inputs(self.items, self.name, self.spec.state, self.spec.item_name)

    def begin(self) -> None:
        """Nothing: no file says that the folder is whole."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Nothing is shared by the episodes."""
        files = [entry for receipt in receipts for entry in receipt.files]
        if not run.is_fresh:  # episodes may have gone since
            remove_stale_files(self.spec.output, self.spec.owned, self.spec.unlisted, files)
        return files

    def result(self, run: JobRun) -> Mapping[str, Any]:
        """For the record."""
        return self.answer(run).document()

    def answer(self, run: JobRun) -> DecodeResult:
        """What came of a run."""
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
        return input_state([self._chosen.folder.place(episode)])

    def _work(self, episode: str) -> Receipt:
        found = self._chosen.folder.read(episode, self._chosen.stems)
        most = self._config.batch_size
        with bulk_folder(self.spec.output / episode) as place:
            for start in range(0, len(found.stems), most):
                rows = found.codes[start : start + most].astype(np.int64)
                drawn = self._maker.decode(rows)
                for stem, pixels in zip(found.stems[start : start + most], drawn, strict=True):
                    place.write(f"{stem}.png", encode_png(pixels))
        entry = folder_entry(episode, place.files)
        return Receipt(episode, counts={"pictures": len(found.stems)}, files=(entry,))
