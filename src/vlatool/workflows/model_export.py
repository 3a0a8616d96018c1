"""Export of a trained model in its published layout."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatool.artifacts.run.checkpoint import is_checkpoint
from vlatool.artifacts.run.format import is_run
from vlatool.config.base import ConfigModel, check_required, required_field
from vlatool.config.resolve import load_config
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.record import OutputRecord, versions_of
from vlatool.jobs.single_output import check_output_owner, single_output
from vlatool.models.base import ModelType
from vlatool.models.titok.published import CONFIG, WEIGHTS
from vlatool.models.trained import Trained, open_trained
from vlatool.storage.uri import location, pinned, require_existing
from vlatool.training.config import TrainConfig


class TokenizerExportConfig(ConfigModel):
    """Options of `vlatool tokenizer export`."""

    checkpoint: str = required_field("", "Run folder or checkpoint of a tokenizer, of any scheme.")
    output: str = required_field("", f"Folder for {CONFIG} and {WEIGHTS}.")


@dataclass(frozen=True)
class ModelExportResult:
    """Result of an export.

    Attributes:
        checkpoint: Checkpoint of a policy; location of a tokenizer, as given.
        output: Folder that was written.
        parameters: Number of parameters in the weights file, including tensors of the published
            file that the model does not use.
        bytes: Total size of the weights files.
        summary: Text on the written files.
        facts: Further values that the model type reports.
    """

    checkpoint: str
    output: str
    parameters: int
    bytes: int
    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping."""
        return {
            "checkpoint": self.checkpoint,
            "output": self.output,
            "parameters": self.parameters,
            "bytes": self.bytes,
            **self.facts,
        }

    def text(self) -> str:
        """The result as text."""
        size = f"{self.parameters / 1e6:.2f} M parameters, {self.bytes / 1e6:.1f} MB"
        return f"{self.output}: {self.summary}, {size}"


def tokenizer_export(
    config: TokenizerExportConfig, *, reporter: Reporter = NULL
) -> ModelExportResult:
    """As `export` of a run; takes published folders and files too.

    Raises:
        UsageError: A key is missing, the model has no published layout, or the output has
            different content.
        DataError: The checkpoint is damaged.
    """
    check_required(config, "vlatool tokenizer export RUN --output DIR")
    require_existing(config.checkpoint)
    return export_model(config.checkpoint, location(config.output), reporter)


def is_run_or_checkpoint(location: Path) -> bool:
    """True if the location is a run or one of its checkpoints."""
    return is_run(location) or is_checkpoint(location)


def export_model(checkpoint: str, output: Path, reporter: Reporter) -> ModelExportResult:
    """Writes trained weights in the published layout of their model type.

    Of averaged and raw weights a layout with one file gets the averaged ones, if there are any.
    The same weights give equal bytes.

    Raises:
        UsageError: The model has no published layout, or the output belongs to another command.
        DataError: A file is damaged.
    """
    source = pinned(checkpoint)
    trained = open_trained(str(source), device="cpu")
    exported = trained.model_type.export(trained, _tree(trained), reporter)
    if exported is None:
        raise UsageError(
            f"{checkpoint}: model type {trained.model_type.name!r} has no published layout",
            hint="give a run of a model type that has one, such as diffusion_policy or titok",
            code="usage.not_exportable",
        )
    name = str(trained.origin.checkpoint)
    record = OutputRecord("export", {"checkpoint": Path(name).name, **versions_of([source])})
    if type(trained.model_type).tokenizer is not ModelType.tokenizer:
        name = checkpoint
        options = {"checkpoint": source.name, **versions_of([source])}
        record = OutputRecord("tokenizer export", options)
    check_output_owner(output, record)
    with single_output(output, record, exported.files):
        facts = exported.write(output)
        size = sum((output / name).stat().st_size for name in exported.weights)
    return ModelExportResult(
        name, str(output), exported.parameters, size, exported.summary, dict(facts)
    )


def _tree(trained: Trained) -> Mapping[str, Any]:
    """Whole configuration of a run as plain data; empty for published files."""
    if trained.origin.run is None:
        return {}
    files = [str(trained.folder / trained.origin.run.config.name)]
    return load_config(TrainConfig, files=files).config.model_dump(mode="json")
