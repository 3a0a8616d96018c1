"""The run of the initial weights of a policy, which has the assets of its base model. No torch."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vlatool.artifacts.base_model import TOKENIZER
from vlatool.artifacts.run.format import RunDir
from vlatool.errors import DataError
from vlatool.models.diffusion_policy.sections import BaseModelConfig, NetworkConfig
from vlatool.models.pretrained import weights_file


@dataclass(frozen=True)
class Origin:
    """A run with the initial weights.

    Attributes:
        folder: The run folder, of any scheme.
        backbone: Its backbone section.
        denoiser: Its denoiser section.
    """

    folder: Path
    backbone: NetworkConfig
    denoiser: NetworkConfig

    def has_tokenizer_of(self, section: NetworkConfig) -> bool:
        """True if the run has the text tokenizer of the base model of a backbone section."""
        base = self.backbone
        if not isinstance(section, BaseModelConfig) or not isinstance(base, BaseModelConfig):
            return False
        is_same = (base.hf_pretrained, base.revision) == (section.hf_pretrained, section.revision)
        return is_same and (self.folder / TOKENIZER).is_file()


def find_origin(checkpoint: str | None, model: type[NetworkConfig]) -> Origin | None:
    """The run of a checkpoint; None if it is not in a run, or of another model type.

    Args:
        checkpoint: Value of `resume_from_checkpoint`.
        model: Config class of the model type.
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
