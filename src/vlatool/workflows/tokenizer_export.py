"""Export of a trained visual tokenizer as the published pair of files."""

from dataclasses import asdict, dataclass
from typing import Any

from vlatool.artifacts.published_tokenizer import CONFIG, WEIGHTS
from vlatool.config.base import ConfigModel, check_required, required_field
from vlatool.events import NULL, Reporter
from vlatool.jobs.record import OutputRecord, versions_of
from vlatool.jobs.single_output import check_output_owner, single_output
from vlatool.storage.tree import sha256_of
from vlatool.storage.uri import location, pinned


class TokenizerExportConfig(ConfigModel):
    """Options of `vlatool tokenizer export`."""

    checkpoint: str = required_field("", "Run folder or checkpoint of a tokenizer, of any scheme.")
    output: str = required_field("", f"Folder for {CONFIG} and {WEIGHTS}.")


@dataclass(frozen=True)
class TokenizerExportResult:
    """Written files.

    Attributes:
        checkpoint: Location of the checkpoint, as given.
        output: The folder.
        stage: 1 or 2.
        parameters: Number of values in the weights file.
        bytes: Size of the weights file.
        sha256: SHA-256 of the weights file; equal for equal weights.
    """

    checkpoint: str
    output: str
    stage: int
    parameters: int
    bytes: int
    sha256: str

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping."""
        return asdict(self)

    def text(self) -> str:
        """The result as text."""
        size = f"{self.parameters / 1e6:.2f} M parameters, {self.bytes / 1e6:.1f} MB"
        return f"{self.output}: {CONFIG} and {WEIGHTS} of stage {self.stage}, {size}"


def tokenizer_export(
    config: TokenizerExportConfig, *, reporter: Reporter = NULL
) -> TokenizerExportResult:
    """Writes the averaged weights of a run, else the raw ones; the same run gives equal bytes.

    Raises:
        UsageError: A key is missing, or the output has different content.
        DataError: The checkpoint is not a visual tokenizer, or it is damaged.
    """
    from vlatool.models.titok.weights import open_titok, save_published
    from vlatool.tokens.stored_preprocessing import read_preprocessing

    check_required(config, "vlatool tokenizer export RUN --output DIR")
    source, output = str(pinned(config.checkpoint)), location(config.output)
    versions = versions_of([pinned(config.checkpoint)])
    record = OutputRecord("tokenizer export", {"checkpoint": pinned(source).name, **versions})
    check_output_owner(output, record)
    titok, model = open_titok(source)
    rule = read_preprocessing(source, titok.image_size)
    with single_output(output, record, (CONFIG, WEIGHTS)):
        save_published(output, titok, model, rule.model_dump(mode="json"))
        digest, size = sha256_of(output / WEIGHTS), (output / WEIGHTS).stat().st_size
    if titok.stage == 1 and titok.decoder_head == "proxy":
        reporter.note("a stage-1 tokenizer predicts codes of its teacher and has no pixel decoder")
    return TokenizerExportResult(
        checkpoint=config.checkpoint,
        output=str(output),
        stage=titok.stage,
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        bytes=size,
        sha256=digest,
    )
