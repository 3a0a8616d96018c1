"""A policy from a run folder or checkpoint: its configuration, weights and normalisation."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.artifacts.provenance import read_preprocessing_config
from vlatool.artifacts.run_dir import EMA, MODEL, RunDir, find_checkpoint
from vlatool.artifacts.stats import Statistics, read_stats
from vlatool.config.resolve import load_config
from vlatool.episode import PoseGroup
from vlatool.errors import DataError, UsageError
from vlatool.evaluation.config import Weights
from vlatool.loading.robotics.normalizer import Normalizer
from vlatool.plugins import MODELS
from vlatool.storage.uri import local_path
from vlatool.training.config import TrainConfig

if TYPE_CHECKING:
    from vlatool.models.policy import Policy


@dataclass(frozen=True)
class TrainedPolicy:
    """A loaded policy.

    Attributes:
        policy: Acts.
        run: Its run folder.
        checkpoint: The checkpoint it came from.
        weights: `ema` or `raw`.
        config: The run's configuration.
        statistics: Statistics it normalises with.
        fps: Frames per second of its training data.
    """

    policy: "Policy"
    run: RunDir
    checkpoint: Path
    weights: str
    config: TrainConfig
    statistics: Statistics
    fps: float


def load_policy(location: str, weights: Weights) -> TrainedPolicy:
    """Loads a policy.

    Raises:
        UsageError: No location, or averaged weights are asked for and there are none.
        DataError: There is no checkpoint, or it does not fit its configuration.
    """
    from vlatool.models.policy import Policy
    from vlatool.models.weights import load_weights

    if not location:
        raise UsageError(
            "no checkpoint is given",
            hint="give a run folder of `vlatool train`",
            code="usage.missing_key",
        )
    run, checkpoint = find_checkpoint(local_path(location))
    run.config_tree()  # an empty one would be all defaults
    config = load_config(TrainConfig, files=[str(run.config)]).config
    statistics = read_stats(run.stats)
    options = read_preprocessing_config(run.root)
    past = int(options["past_lowdim_steps"])
    normalizer = Normalizer(config.data, statistics, past)
    section: Any = config.model
    model_type = MODELS.get(section.type)()
    if not hasattr(model_type, "act"):
        raise DataError(
            f"{location}: the model type {section.type!r} is no policy", code="data.no_policy"
        )
    model = model_type.build(section)
    chosen = _weights(checkpoint, weights)
    load_weights(model, checkpoint / (EMA if chosen == "ema" else MODEL))
    policy = Policy(
        model_type,
        model,
        model_type.batcher(section, config.data, normalizer),
        config.data,
        normalizer,
        [PoseGroup(**group) for group in options.get("pose_groups") or []],
    )
    fps = float(options.get("fps") or 10.0)
    return TrainedPolicy(policy, run, checkpoint, chosen, config, statistics, fps)


def _weights(checkpoint: Path, wanted: Weights) -> str:
    averaged = (checkpoint / EMA).is_file()
    if wanted == "ema" and not averaged:
        raise UsageError(
            f"{checkpoint}: holds no averaged weights",
            hint="use --weights raw",
            code="usage.no_ema",
        )
    return "ema" if averaged and wanted != "raw" else "raw"
