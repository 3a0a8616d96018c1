"""Export of a trained model in its published layout."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.run.checkpoint import is_checkpoint
from vlatool.artifacts.run.format import is_run
from vlatool.artifacts.run.locations import named_best, require_weights
from vlatool.config.base import ConfigModel, check_required, execution_field, required_field
from vlatool.config.resolve import load_config
from vlatool.episode import Array
from vlatool.errors import BugError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.command import JobConfig
from vlatool.jobs.record import OutputRecord, resumable_record, single_output
from vlatool.jobs.versions import versions_of
from vlatool.models.base import ModelType
from vlatool.models.titok.published import CONFIG, WEIGHTS
from vlatool.models.trained import Trained, open_trained
from vlatool.results import MERGED, UNLISTED, Result, outcome
from vlatool.storage.uri import location, pinned
from vlatool.training.config import TrainConfig

_SEED = 0
_NUM_EXAMPLES = 2
# Same weights and operations on one device, so only the alignment of memory may change a sum.
_TOLERANCE = 1e-4


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
        written = f"{content}, {self.bytes / 1e6:.1f} MB"
        return [outcome(self.output, self.status, written, f"would write {content}")]


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
    require_weights(config.checkpoint)
    output = location(config.output)
    return export_model(config.checkpoint, output, reporter, JobConfig(overwrite=config.overwrite))


def is_run_or_checkpoint(location: Path) -> bool:
    """True if the location is a run or one of its checkpoints."""
    return is_run(location) or is_checkpoint(location)


def export_model(
    checkpoint: str, output: Path, reporter: Reporter, options: JobConfig
) -> ModelExportResult:
    """Writes trained weights in the published layout of their model type.

    Of averaged and raw weights a layout with one file gets the averaged ones, if there are any. The
    same weights give equal bytes. The written files are opened, and their outputs compared. Of the
    `options`, `overwrite` and `dry_run` have a meaning.
    """
    source = named_best(pinned(checkpoint))
    trained = open_trained(str(source), device="cpu")
    problem = trained.model_type.export_problem(trained.config.model)
    exported = None if problem else trained.model_type.export(trained, _tree(trained), reporter)
    if exported is None:
        raise UsageError(
            f"{checkpoint}: cannot be exported: {problem or 'there is no published layout'}",
            hint="use the run itself; vlatool reads it wherever it reads an export",
            code="usage.not_exportable",
        )
    name = str(trained.origin.checkpoint)
    record = OutputRecord("export", {"checkpoint": Path(name).name, **versions_of([source])})
    if type(trained.model_type).tokenizer is not ModelType.tokenizer:
        name = checkpoint
        recorded = {"checkpoint": source.name, **versions_of([source])}
        record = OutputRecord("tokenizer export", recorded)
    resumable_record(output, record, overwrite=options.overwrite)
    if options.dry_run:
        return ModelExportResult(
            name, str(output), exported.parameters, 0, exported.summary, status="planned"
        )
    with single_output(output, record, exported.files):
        facts = exported.write(output)
        size = sum((output / name).stat().st_size for name in exported.weights)
        if not _can_read(trained.model_type):
            reporter.note(f"{output}: not compared, because its model type reads no export")
        names = exported.weights if exported.compared is None else exported.compared
        for name in names if _can_read(trained.model_type) else ():
            check_equal(trained, output / name)
    return ModelExportResult(
        name, str(output), exported.parameters, size, exported.summary, dict(facts)
    )


def _can_read(model_type: ModelType) -> bool:
    """True if a model type reads its published layout; layouts of plugins may be write-only."""
    return type(model_type).find_published is not ModelType.find_published


def check_equal(trained: Trained, path: Path) -> None:
    """Checks that exported weights give the outputs of the weights that they are from."""
    written = open_trained(str(path), device="cpu", before=trained.config.model)
    kind = written.origin.weights
    is_other = kind in ("raw", "ema") and kind != trained.origin.weights
    source = trained.with_weights("raw" if kind == "raw" else "ema") if is_other else trained
    expected, outputs = example_outputs(source), example_outputs(written)
    for name, values in expected.items():
        limit = _TOLERANCE * float(np.abs(values).max(initial=0))
        is_equal = name in outputs and outputs[name].shape == values.shape
        if not (is_equal and np.allclose(outputs[name], values, rtol=0, atol=limit)):
            raise BugError(
                f"{path}: the exported model gives other {name} than {trained.origin.text}",
                hint="do not use the export; report this with the configuration of the run",
                code="bug.export_differs",
                details={"path": str(path), "output": name},
            )


def example_outputs(trained: Trained) -> dict[str, Array]:
    """Outputs of a model on made-up inputs, by name: codes and pixels, or action fields."""
    import torch

    tokenizer = trained.model_type.tokenizer(trained.config.model, trained.parts, trained.assets)
    generator = np.random.default_rng(_SEED)
    if tokenizer is None:
        return _chunks(trained, generator)
    shape = (_NUM_EXAMPLES, tokenizer.image_size, tokenizer.image_size, 3)
    images = torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
    outputs: dict[str, Array] = {}
    if tokenizer.codebook_size:
        outputs["codes"] = tokenizer.encode(images).values.numpy()
    if tokenizer.has_decoder:
        outputs["pixels"] = tokenizer.reconstructor()(images).pixels.numpy()
    return outputs


def _chunks(trained: Trained, generator: np.random.Generator) -> dict[str, Array]:
    from vlatool.models.policy import SamplesInSteps, example_observation

    policy = trained.policy()
    if isinstance(policy, SamplesInSteps):
        policy = policy.with_steps(1)
    observations = [example_observation(policy.sees, generator) for _ in range(_NUM_EXAMPLES)]
    return dict(policy.act(observations, seeds=range(_NUM_EXAMPLES)))


def _tree(trained: Trained) -> Mapping[str, Any]:
    """Whole configuration of a run as plain data; empty for published files."""
    if trained.origin.run is None or trained.folder is None:
        return {}
    files = [str(trained.folder / trained.origin.run.config.name)]
    return load_config(TrainConfig, files=files).config.model_dump(mode="json")
