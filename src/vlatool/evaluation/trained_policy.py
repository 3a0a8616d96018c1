"""Trained policy of a run or checkpoint: configuration, weights and assets."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlatool.artifacts.run.checkpoint import EMA, CheckpointManifest, part_weights
from vlatool.artifacts.run.format import RunDir, find_checkpoint, local_run
from vlatool.config.resolve import load_config
from vlatool.errors import DataError, UsageError
from vlatool.evaluation.config import Weights
from vlatool.storage.cache import FileCache, default_cache_folder
from vlatool.storage.uri import pinned
from vlatool.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from vlatool.loading.robotics.kind import RoboticsAssets
    from vlatool.models.policy import Policy


@dataclass(frozen=True)
class TrainedPolicy:
    """Loaded policy.

    Attributes:
        policy: Policy on its device.
        run: Run folder, of any scheme.
        checkpoint: Checkpoint of the weights in that folder.
        weights: `ema` or `raw`.
        config: Configuration of the run.
        assets: Assets of the data kind: normalization, frames per second.
    """

    policy: "Policy"
    run: RunDir
    checkpoint: Path
    weights: str
    config: TrainConfig
    assets: "RoboticsAssets"


def load_trained(location: str, weights: Weights) -> TrainedPolicy:
    """Loads a policy.

    Raises:
        UsageError: The location is empty, or `ema` was requested and there are no averaged weights.
        DataError: There is no checkpoint, a file of it is damaged, or it does not match its
            configuration.
    """
    import torch

    from vlatool.models.weights import load_weights

    if not location:
        raise UsageError(
            "no checkpoint is given",
            hint="give a run folder of `vlatool train`",
            code="usage.missing_key",
        )
    source = find_checkpoint(pinned(location))
    run, checkpoint = local_run(*source, FileCache(default_cache_folder()))
    manifest = CheckpointManifest.read(checkpoint)
    manifest.check(checkpoint, None if run is source[0] else manifest.inference_files())
    run.config_tree()  # an empty one would be all defaults
    config = load_config(TrainConfig, files=[str(run.config)]).config
    assets = config.data_kind.load_assets(config.data, run.root)
    run.check_assets(source[0].recorded_files())
    model_type = config.model_type
    chosen = _weights(checkpoint, manifest, weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts: dict[str, nn.Module] = {}
    for name, part in model_type.build(config.model).items():
        if part.saved:
            averaged = part_weights(name, averaged=True)
            is_averaged = chosen == "ema" and averaged in manifest.files
            load_weights(
                part.module, checkpoint / (averaged if is_averaged else part_weights(name))
            )
            parts[name] = part.module.to(device).eval()
    policy = model_type.policy(config.model, parts, assets, run.root)
    if policy is None:
        raise DataError(
            f"{location}: the model type {model_type.name!r} is not a policy",
            code="data.no_policy",
        )
    return TrainedPolicy(policy, *source, chosen, config, assets)


def _weights(checkpoint: Path, manifest: CheckpointManifest, requested: Weights) -> str:
    has_averaged = EMA in manifest.files
    if requested == "ema" and not has_averaged:
        raise UsageError(
            f"{checkpoint}: has no averaged weights",
            hint="use --weights raw",
            code="usage.no_ema",
        )
    return "ema" if has_averaged and requested != "raw" else "raw"
