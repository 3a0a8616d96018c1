"""Training of a new run from the weights of a checkpoint."""

from collections.abc import Collection, Mapping

from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.training.config import TrainConfig
from vlatool.workflows.train import TrainResult, train


def finetune(
    config: TrainConfig,
    *,
    typed: Collection[str] | None = None,
    origins: Mapping[str, str] | None = None,
    reporter: Reporter = NULL,
) -> TrainResult:
    """Trains a new run, with its own schedule, from the weights of `init_from`.

    Args:
        config: Configuration of the run.
        typed: As for `train`.
        origins: As for `train`.
        reporter: Receives progress and messages.

    Raises:
        UsageError: No checkpoint is given, or as for `train`.
        DataError: The checkpoint is missing, broken or of another architecture, or as for `train`.
    """
    return train(check_initial_weights(config), typed=typed, origins=origins, reporter=reporter)


def check_initial_weights(config: TrainConfig) -> TrainConfig:
    """The configuration with its initial weights; raises UsageError without any."""
    config.check_model()
    config, _ = config.derive_static()
    if not config.init_from:
        raise UsageError(
            "no checkpoint is given",
            hint="give a run, one of its checkpoints or a published file with --from CKPT",
            code="usage.missing_key",
        )
    if not config.init_weights_only:
        raise UsageError(
            "finetune begins a new schedule with the weights of a checkpoint, but "
            "init_weights_only is false",
            hint="to continue the training of that checkpoint use `vlatool train`; to take only "
            "its weights set init_weights_only (model.resume_weights_only) to true",
            code="usage.resume_weights_only",
        )
    return config
