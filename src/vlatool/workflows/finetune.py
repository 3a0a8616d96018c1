"""Training that begins with the weights of a checkpoint."""

from collections.abc import Collection

from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.training.config import TrainConfig
from vlatool.training.result import TrainResult
from vlatool.workflows.train import train

__all__ = ["TrainConfig", "TrainResult", "finetune"]


def finetune(
    config: TrainConfig, *, typed: Collection[str] | None = None, reporter: Reporter = NULL
) -> TrainResult:
    """Trains a new run, with a schedule of its own, from `model.resume_from_checkpoint` on.

    Args:
        config: The run; `model.resume_weights_only` is true.
        typed: As for `train`.
        reporter: Who hears of it.

    Raises:
        UsageError: No checkpoint is named, the model type cannot begin with one, or as for `train`.
        DataError: The checkpoint is missing, broken or of another architecture, or as for `train`.
    """
    config.check_model()
    if not getattr(config.model, "resume_from_checkpoint", None):
        raise UsageError(
            "no checkpoint is given",
            hint="name a run, one of its checkpoints or a published file with --from CKPT",
            code="usage.missing_key",
        )
    return train(config, typed=typed, reporter=reporter)
