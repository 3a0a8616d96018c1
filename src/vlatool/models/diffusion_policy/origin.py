"""The run whose weights a policy begins with: it keeps what belongs to its base model. Light."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vlatool.artifacts.base_model import TOKENIZER
from vlatool.artifacts.run_dir import RunDir
from vlatool.errors import DataError
from vlatool.models.diffusion_policy.sections import BaseModelConfig, NetworkConfig
from vlatool.models.pretrained import weights_file


@dataclass(frozen=True)
class Origin:
    """A run.

    Attributes:
        folder: Where it is, of any scheme.
        backbone: Its section of the backbone.
        denoiser: Its section of the denoiser.
    """

    folder: Path
    backbone: NetworkConfig
    denoiser: NetworkConfig

    def has_tokenizer_of(self, section: NetworkConfig) -> bool:
        """Whether its tokenizer is that of a backbone's base model."""
        own = self.backbone
        if not isinstance(section, BaseModelConfig) or not isinstance(own, BaseModelConfig):
            return False
        is_same = (own.hf_pretrained, own.revision) == (section.hf_pretrained, section.revision)
        return is_same and (self.folder / TOKENIZER).is_file()


def find_origin(checkpoint: str | None, model: type[NetworkConfig]) -> Origin | None:
    """The run behind a checkpoint; None where it is none, or of another model type.

    Args:
        checkpoint: What `resume_from_checkpoint` says.
        model: The model type's config.
    """
    if checkpoint is None:
        return None
    with suppress(DataError, ValidationError):
        run = RunDir(weights_file(checkpoint).parent.parent.parent)
        section = model.model_validate(run.config_tree().get("model"))
        backbone = getattr(section, "vision_language_backbone", None)
        denoiser = getattr(section, "transformer", None)
        if isinstance(backbone, NetworkConfig) and isinstance(denoiser, NetworkConfig):
            return Origin(run.root, backbone, denoiser)
    return None
