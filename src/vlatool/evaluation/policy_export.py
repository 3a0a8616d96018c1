"""A trained policy as the files of a published experiment."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.checkpoint import EMA, MODEL, CheckpointManifest, is_checkpoint
from vlatool.artifacts.provenance import read_preprocessing_config
from vlatool.artifacts.published_policy import (
    AVERAGE,
    FILES,
    NUMBER,
    WEIGHTS,
    write_published_config,
)
from vlatool.artifacts.run_dir import find_checkpoint, is_run, local_run
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
    """What was written.

    Attributes:
        checkpoint: Where the weights are from.
        output: The folder.
        parameters: Numbers in the file of weights, those that a policy does not use included.
        averaged: Whether there are averaged weights too.
        bytes: Of the files of weights together.
    """

    checkpoint: str
    output: str
    parameters: int
    averaged: bool
    bytes: int

    def document(self) -> dict[str, Any]:
        """The result for programs."""
        return asdict(self)

    def text(self) -> str:
        """The result for people."""
        files = f"{WEIGHTS} and {AVERAGE}" if self.averaged else WEIGHTS
        size = f"{self.parameters / 1e6:.2f} M parameters, {self.bytes / 1e6:.1f} MB"
        return f"{self.output}: {files}, {size}"


def is_trained(location: Path) -> bool:
    """Whether there is a run or one of its checkpoints."""
    return is_run(location) or is_checkpoint(location)


def export_policy(source: Path, output: Path, reporter: Reporter) -> PolicyExportResult:
    """Writes a run or a checkpoint as a published experiment.

    Args:
        source: A run, whose newest checkpoint is taken, or a checkpoint.
        output: The folder.
        reporter: Hears of what the published program does otherwise.

    Raises:
        UsageError: It is no policy that the published program can be, or the output holds
            something else.
        DataError: A file is damaged.
    """
    origin, found = find_checkpoint(source)
    run, checkpoint = local_run(origin, found, FileCache(default_cache_folder()))
    run.check_assets(origin.recorded_files())
    run.statistics()
    read_preprocessing_config(run.root)
    manifest = CheckpointManifest.read(checkpoint)
    manifest.check(checkpoint, manifest.inference_files())
    run.config_tree()  # an empty one would be all defaults
    config = load_config(TrainConfig, files=[str(run.config)]).config
    model = config.model
    if not isinstance(model, DiffusionPolicyConfig):
        raise UsageError(
            f"{source}: is a {config.model_type.name!r}, which has no published layout here",
            hint="give a run of a diffusion_policy; for a tokenizer `vlatool tokenizer export`",
            code="usage.not_exportable",
        )
    record = OutputRecord("export", {"checkpoint": checkpoint.name, **versions_of([source])})
    check_output_owner(output, record)
    state = _state(model, checkpoint / MODEL)
    if getattr(model.vision_language_backbone, "image_words", True) is False:
        reporter.warn(
            "export.image_words",
            "the published program writes `<image> ` before sentences, as this policy was not "
            "trained: train with model.vision_language_backbone.image_words=true to have it acted "
            "there as here",
        )
    averaged = EMA in manifest.files
    with single_output(output, record, FILES):
        tree = published_tree(config.model_dump(mode="json"), model)
        write_published_config(output, tree, run)
        size = _write_weights(output, state, manifest.step)
        size += _write_average(output, model, checkpoint, manifest.step) if averaged else 0
    parameters = sum(one.numel() for one in state.values())
    return PolicyExportResult(str(checkpoint), str(output), parameters, averaged, size)


def _write_weights(output: Path, state: dict[str, Any], step: int) -> int:
    """Raw weights; bytes written."""
    from vlatool.models.diffusion_policy.weights import write_published

    write_published(output / WEIGHTS, state, NUMBER, step)
    return (output / WEIGHTS).stat().st_size


def _write_average(output: Path, model: DiffusionPolicyConfig, checkpoint: Path, step: int) -> int:
    """Averaged weights; bytes written."""
    from vlatool.models.diffusion_policy.weights import write_published_average

    write_published_average(output / AVERAGE, _state(model, checkpoint / EMA), NUMBER, step)
    return (output / AVERAGE).stat().st_size


def _state(model: DiffusionPolicyConfig, path: Path) -> dict[str, Any]:
    """Weights of a run under published names, with what a policy does not use."""
    from vlatool.models.diffusion_policy.model import DiffusionPolicy
    from vlatool.models.diffusion_policy.weights import export_published
    from vlatool.models.weights import load_weights

    network = DiffusionPolicy(model)
    load_weights(network, path)
    return export_published(model, network.state_dict())
