"""Export of a trained policy to an experiment folder of the published LBM program."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.run.checkpoint import EMA, MODEL, CheckpointManifest, is_checkpoint
from vlatool.artifacts.run.format import find_checkpoint, is_run, local_run
from vlatool.artifacts.run.published_policy import (
    AVERAGE,
    CHECKPOINT_NUMBER,
    FILES,
    WEIGHTS,
    write_published_config,
)
from vlatool.artifacts.shards.provenance import read_preprocessing_config
from vlatool.config.resolve import load_config
from vlatool.errors import UsageError
from vlatool.events import Reporter
from vlatool.jobs.record import OutputRecord, versions_of
from vlatool.jobs.single_output import check_output_owner, single_output
from vlatool.models.diffusion_policy.published import published_tree
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig
from vlatool.storage.cache import FileCache, default_cache_folder
from vlatool.training.config import TrainConfig


@dataclass(frozen=True)
class PolicyExportResult:
    """Result of an export.

    Attributes:
        checkpoint: Checkpoint that was exported.
        output: Folder that was written.
        parameters: Number of parameters in the weights file, including tensors of the published
            file that the policy does not use.
        averaged: True if averaged weights were written too.
        bytes: Total size of the weights files.
    """

    checkpoint: str
    output: str
    parameters: int
    averaged: bool
    bytes: int

    def document(self) -> dict[str, Any]:
        """Result as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Result as text."""
        files = f"{WEIGHTS} and {AVERAGE}" if self.averaged else WEIGHTS
        size = f"{self.parameters / 1e6:.2f} M parameters, {self.bytes / 1e6:.1f} MB"
        return f"{self.output}: {files}, {size}"


def is_run_or_checkpoint(location: Path) -> bool:
    """True if the location is a run or one of its checkpoints."""
    return is_run(location) or is_checkpoint(location)


def export_policy(source: Path, output: Path, reporter: Reporter) -> PolicyExportResult:
    """Writes a run or a checkpoint as a published experiment folder.

    Args:
        source: A run, whose newest checkpoint is exported, or a checkpoint.
        output: Folder to write.
        reporter: Gets a warning if the published program would run the policy differently.

    Raises:
        UsageError: The published program does not support this model, or the output belongs to
            another command.
        DataError: A file is damaged.
    """
    source_run, source_checkpoint = find_checkpoint(source)
    run, checkpoint = local_run(source_run, source_checkpoint, FileCache(default_cache_folder()))
    run.check_assets(source_run.recorded_files())
    run.statistics()
    read_preprocessing_config(run.root)
    manifest = CheckpointManifest.read(checkpoint)
    manifest.check(checkpoint, manifest.inference_files())
    # Raises if the file is empty; load_config would use only defaults.
    run.config_tree()
    config = load_config(TrainConfig, files=[str(run.config)]).config
    model = config.model
    if not isinstance(model, DiffusionPolicyConfig):
        raise UsageError(
            f"{source}: model type {config.model_type.name!r} has no published layout",
            hint="give a run of a diffusion_policy; for a tokenizer use `vlatool tokenizer export`",
            code="usage.not_exportable",
        )
    record = OutputRecord("export", {"checkpoint": checkpoint.name, **versions_of([source])})
    check_output_owner(output, record)
    state = _state(model, checkpoint / MODEL)
    if getattr(model.vision_language_backbone, "image_words", True) is False:
        reporter.warn(
            "export.image_words",
            "the published program prepends `<image> ` to instructions, but this policy was "
            "trained without it. Train with model.vision_language_backbone.image_words=true to get "
            "equal actions in both.",
        )
    averaged = EMA in manifest.files
    with single_output(output, record, FILES):
        tree = published_tree(config.model_dump(mode="json"), model)
        write_published_config(output, tree, run)
        size = _write_weights(output, state, manifest.step)
        size += _write_average(output, model, checkpoint, manifest.step) if averaged else 0
    parameters = sum(tensor.numel() for tensor in state.values())
    return PolicyExportResult(str(checkpoint), str(output), parameters, averaged, size)


def _write_weights(output: Path, state: dict[str, Any], step: int) -> int:
    """Writes raw weights and returns the number of bytes."""
    from vlatool.models.diffusion_policy.weights import write_published

    write_published(output / WEIGHTS, state, CHECKPOINT_NUMBER, step)
    return (output / WEIGHTS).stat().st_size


def _write_average(output: Path, model: DiffusionPolicyConfig, checkpoint: Path, step: int) -> int:
    """Writes averaged weights and returns the number of bytes."""
    from vlatool.models.diffusion_policy.weights import write_published_average

    write_published_average(
        output / AVERAGE, _state(model, checkpoint / EMA), CHECKPOINT_NUMBER, step
    )
    return (output / AVERAGE).stat().st_size


def _state(model: DiffusionPolicyConfig, path: Path) -> dict[str, Any]:
    """Weights of a run under published names.

    They include tensors of the published file that the policy does not use.
    """
    from vlatool.models.diffusion_policy.model import DiffusionPolicy
    from vlatool.models.diffusion_policy.weights import export_published
    from vlatool.models.weights import load_weights

    network = DiffusionPolicy(model)
    load_weights(network, path)
    return export_published(model, network.state_dict())
