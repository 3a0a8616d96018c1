"""State of training to continue from: checkpoints of runs, and published files. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlatool.artifacts.run.checkpoint import EMA, MANIFEST, TRAINER, CheckpointManifest
from vlatool.artifacts.run.locations import find_checkpoint, require_weights
from vlatool.errors import DataError, UsageError
from vlatool.models.trained import published_at
from vlatool.storage.cache import local_copy


@dataclass(frozen=True)
class ProgressOrigin:
    """Files with a state of training: those of a run, or published ones."""

    text: str  # location as the user wrote it
    model_type: str  # model type of the weights
    checkpoint: Path | None = None  # checkpoint of a run; None for published files
    files: Sequence[Path] = ()  # published files, as `ModelType.progress_files` returns them

    def local_checkpoint(self) -> Path:
        """Checkpoint of a run on the local disk; its files are compared with their digests."""
        assert self.checkpoint is not None
        manifest = CheckpointManifest.read(self.checkpoint)
        paths = manifest.paths(self.checkpoint, [MANIFEST, *manifest.files])
        above = self.checkpoint.parent
        names = [str(path.relative_to(above)) for path in paths]
        folder = local_copy(above, names) / self.checkpoint.name
        manifest.check(folder)
        return folder

    def local_files(self) -> list[Path]:
        """Local copies of the published files."""
        return [local_copy(path.parent, [path.name]) / path.name for path in self.files]


def locate_progress(text: str, *, averaged: bool) -> ProgressOrigin:
    """Files of a run, a checkpoint or a published checkpoint, from which its training continues."""
    location = require_weights(text)
    published = published_at(location)
    if published is not None:
        model_type, files = published
        paths = model_type.progress_files(files, averaged=averaged)
        _check_present(text, [path for path in paths if not path.is_file()], has_state=bool(paths))
        return ProgressOrigin(text, model_type.name, files=paths)
    run, checkpoint = find_checkpoint(location.parent if location.is_file() else location)
    names = CheckpointManifest.read(checkpoint).files
    missing = [] if TRAINER in names else [checkpoint / TRAINER]
    if averaged and not any(name.endswith(EMA) for name in names):
        missing.append(checkpoint / EMA)
    _check_present(text, missing)
    section = run.config_tree().get("model")
    kind = section.get("type") if isinstance(section, dict) else None
    return ProgressOrigin(text, str(kind), checkpoint)


def _check_present(text: str, missing: Sequence[Path], *, has_state: bool = True) -> None:
    hint = "to start a new run with the weights alone, set init_weights_only (in published files "
    hint += "model.resume_weights_only) to true"
    if not has_state:
        raise UsageError(
            f"{text}: has weights, but no state of training to continue from",
            hint=hint,
            code="usage.no_training_state",
        )
    if missing:
        raise DataError.at(
            missing[0],
            f"is missing, so the training of {text} cannot be continued",
            hint=f"copy it from where the checkpoint was trained; {hint}",
            code="data.no_training_state",
        )
