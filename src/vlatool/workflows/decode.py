"""Reconstruction of images from the codes of a visual tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlatool.artifacts.run.locations import require_weights
from vlatool.config.base import check_required
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import JobResult
from vlatool.jobs.downloads import require_input
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.files import FileEntry
from vlatool.jobs.inputs import plan_digest
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_command
from vlatool.jobs.versions import versions_of
from vlatool.models.tokenizer import open_tokenizer, rank_device
from vlatool.storage.uri import location, pinned
from vlatool.tokens.config import DecodeConfig

__all__ = ["DecodeConfig", "DecodeJob", "DecodeResult", "decode"]


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
        return f"{counted(self.pictures, 'image')} of {episodes}, {self.bytes / 1e6:.1f} MB"


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

        source, output = pinned(config.codes), location(config.output)
        self._tokenizer = tokenizer = open_tokenizer(config.tokenizer, rank_device())
        tokenizer.check_codebook()
        tokenizer.check_decoder()
        selection = select_codes_of(tokenizer, source)
        self.items: Sequence[str] = selection.episodes
        work = EpisodeDecoder(tokenizer, selection, output, config.batch_size)
        options = {
            **config.model_dump(mode="json", exclude={*config.no_effect_on_output}),
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
            title=f"decode {config.codes}",
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
        del run
        return [entry for receipt in receipts for entry in receipt.files]

    def result(self, run: JobRun) -> DecodeResult:
        return DecodeResult(
            tokenizer=self._tokenizer.name,
            pictures=run.sums.get("pictures", 0),
            bytes=run.bytes_on_disk,
        )
