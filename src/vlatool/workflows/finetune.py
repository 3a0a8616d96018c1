"""Training that starts from the weights of a checkpoint."""

from collections.abc import Collection

from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.training.config import TrainConfig
from vlatool.workflows.train import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "finetune"]


def finetune(
    config: TrainConfig, *, typed: Collection[str] | None = None, reporter: Reporter = NULL
) -> TrainResult:
    """Trains a new run, with its own schedule, from the weights of `init_from`.

    Args:
        config: Configuration of the run.
        typed: As for `train`.
        reporter: Receives progress and messages.

    Raises:
        UsageError: No checkpoint is given, or as for `train`.
        DataError: The checkpoint is missing, broken or of another architecture, or as for `train`.
    """
    config.check_model()
    config, _ = config.derive_static()
    if not config.init_from:
        raise UsageError(
            "no checkpoint is given",
            hint="give a run, one of its checkpoints or a published file with --from CKPT",
            code="usage.missing_key",
        )
    return train(config, typed=typed, reporter=reporter)
