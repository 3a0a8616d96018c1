"""The model type `act`: its configuration, and the methods that vlatool calls. No torch.

vlatool imports this file for `--help`, so everything that imports torch is imported in the methods.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from vlatool.plugin import (
    Batch,
    ConfigModel,
    DataError,
    Layout,
    ModelType,
    Objective,
    Part,
    RoboticsAssets,
    RoboticsDataConfig,
    Violation,
    WeightsOrigin,
    derivation_rules,
    derived_field,
    option,
)
from vlatool_act.lerobot import LeRobotLayout

if TYPE_CHECKING:
    from torch import nn

    from vlatool.models.policy import RoboticsPolicy
    from vlatool_act.training import ActBatcher

# Largest sizes of a network. A config.json comes from anywhere: it must not fill the memory.
_MOST_LAYERS = 64
_MOST_WIDTH = 2**14


class ActConfig(ConfigModel):
    """Section `model`. The defaults are the published network; the names are those of LeRobot."""

    type: Literal["act"] = option("act", "Model type.")
    backbone_width: int = option(
        64, "Channels of the first stage; 64 is the ResNet-18.", ge=8, le=1024, multiple_of=8
    )
    backbone_weights: str | None = option(
        None, "Safetensors file of a ResNet-18, by the names of torchvision; null: random."
    )
    backbone_lr_factor: float = option(1.0, "Factor on the learning rate of the backbone.", ge=0)
    dim_model: int = option(512, "Width of a token.", ge=4, le=_MOST_WIDTH)
    n_heads: int = option(8, "Heads of an attention.", ge=1)
    dim_feedforward: int = option(3200, "Width between two layers.", ge=1, le=_MOST_WIDTH)
    feedforward_activation: Literal["relu", "gelu"] = option("relu", "Activation between them.")
    pre_norm: bool = option(False, "Normalize before each layer, not after it.")
    n_encoder_layers: int = option(4, "Layers of the encoder.", ge=1, le=_MOST_LAYERS)
    n_decoder_layers: int = option(1, "Layers of the decoder.", ge=1, le=_MOST_LAYERS)
    use_vae: bool = option(True, "Train with a latent that an encoder reads from the actions.")
    n_vae_encoder_layers: int = option(4, "Layers of that encoder.", ge=1, le=_MOST_LAYERS)
    latent_dim: int = option(32, "Width of the latent.", ge=1, le=_MOST_WIDTH)
    kl_weight: float = option(10.0, "Weight of the KL divergence.", ge=0)
    dropout: float = option(0.1, "Share of values that training drops.", ge=0, lt=1)

    # These follow from the data: `derive` fills them in.
    chunk_size: int | None = derived_field(
        "data.lowdim_future_timesteps + 1", "Actions in a chunk.", ge=1, le=_MOST_WIDTH
    )
    action_dim: int | None = derived_field("data.action_dim", "Numbers in an action.", ge=1)
    state_dim: int | None = derived_field(
        "data.proprioception_dim", "Numbers that the robot measures; 0: none.", ge=0
    )
    num_images: int | None = derived_field("data.image_names", "Images of an observation.", ge=1)

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if self.dim_model % self.n_heads:
            raise ValueError(f"dim_model {self.dim_model} is no multiple of n_heads {self.n_heads}")
        if self.dim_model % 4:  # sine and cosine, of rows and columns
            raise ValueError(f"dim_model {self.dim_model} is no multiple of 4")
        return self


class ActType(ModelType):
    """The model type `act`, in the order in which a run calls its methods."""

    name: ClassVar[str] = "act"
    Config: ClassVar[type[ConfigModel]] = ActConfig
    kinds: ClassVar[tuple[str, ...]] = ("robotics",)
    layout: ClassVar[Layout] = LeRobotLayout()

    def violations(self, config: ActConfig, data: RoboticsDataConfig) -> Iterator[Violation]:
        """Refuses the options of the data that this network has no input for."""
        for key in ("pad_missing_fields", "mask_padded_images", "max_delay"):
            if getattr(data, key):
                message = f"data.{key} is set, and the model type act does not use it"
                yield Violation((f"data.{key}",), message, "error")

    def check_init(self, config: ActConfig, init_from: str | None) -> None:
        """Checks that the file of the backbone can be one, before data are read."""
        if config.backbone_weights is None or init_from is not None:
            return
        path = Path(config.backbone_weights)
        if path.suffix != ".safetensors" or not path.is_file():
            raise DataError.at(
                path,
                "is not a safetensors file with the weights of a ResNet-18",
                hint="write one from the weights of torchvision, as the README of vlatool-act "
                "shows, or leave model.backbone_weights out",
                code="data.missing",
            )

    def derive(
        self, config: ActConfig, data: RoboticsDataConfig, info: Any
    ) -> tuple[ActConfig, dict[str, str]]:
        """Fills in the sizes that follow from the data."""
        if not data.cameras:
            raise DataError(
                "the data have no camera, and ACT sees images",
                hint="choose cameras with data.camera_names, or preprocess episodes with images",
                code="data.missing",
            )
        assert data.lowdim_future_timesteps is not None, "the section is derived"
        sizes = {
            "chunk_size": data.lowdim_future_timesteps + 1,
            "action_dim": data.action_dim,
            "state_dim": data.proprioception_dim,
            "num_images": len(data.cameras) * len(data.image_indices),
        }
        return config.model_copy(update=sizes), derivation_rules(config, sizes)

    def build(self, config: ActConfig) -> Mapping[str, Part]:
        """The network with random weights; opens no file."""
        from vlatool_act.model import Act

        network = Act(config)
        return {"model": Part(network, blocks=network.blocks())}

    def load(self, config: ActConfig, parts: Mapping[str, Part], names: Sequence[str]) -> None:
        """Loads the weights of the backbone; a resumed run has them in its checkpoint."""
        from vlatool_act.model import load_backbone

        if "model" in names and config.backbone_weights is not None:
            network: Any = parts["model"].module
            load_backbone(network.backbone, Path(config.backbone_weights))

    def load_init(
        self,
        config: ActConfig,
        parts: Mapping[str, Part],
        init: WeightsOrigin,
        init_except: Sequence[str],
    ) -> Sequence[str] | None:
        """Starts from another run, or from a checkpoint of LeRobot."""
        from vlatool_act.lerobot import load_checkpoint

        if init.run is not None:
            return super().load_init(config, parts, init, init_except)
        return load_checkpoint(parts["model"].module, init, init_except)

    def objective(
        self,
        config: ActConfig,
        data: RoboticsDataConfig,
        info: Any,
        parts: Mapping[str, Part],
    ) -> Objective:
        """What training minimizes."""
        from vlatool_act.training import ActObjective

        return ActObjective(config)

    def batcher(
        self,
        config: ActConfig,
        data: RoboticsDataConfig,
        assets: RoboticsAssets,
        folder: Path | None,
        *,
        training: bool,
    ) -> "ActBatcher":
        """Samples to a batch; loader workers call it."""
        from vlatool_act.training import ActBatcher

        return ActBatcher(assets)

    def example(self, config: ActConfig, data: RoboticsDataConfig, size: int) -> Batch:
        """A made-up batch like those of `batcher`."""
        from vlatool_act.training import example_batch

        return example_batch(config, size)

    def policy(
        self,
        config: ActConfig,
        parts: Mapping[str, "nn.Module"],
        assets: RoboticsAssets,
        folder: Path | None,
    ) -> "RoboticsPolicy":
        """The policy that `serve`, `eval` and `load_policy` use. It reads no instruction."""
        from vlatool.models.policy import RoboticsPolicy
        from vlatool_act.training import ActBatcher, ActSampler

        network: Any = parts["model"]
        sampler = ActSampler(network, assets.data.lowdim_past_timesteps or 0)
        policy = RoboticsPolicy(sampler, ActBatcher(assets), assets, network.device)
        policy.sees = replace(policy.sees, instruction=False)
        return policy
