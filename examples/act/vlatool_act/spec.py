"""The model type `act`: its configuration, and the methods that vlatool calls. No torch.

vlatool imports this file for `--help`, so everything that imports torch is imported in the methods.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlatool.plugin import (
    Batch,
    ConfigModel,
    DataError,
    ModelType,
    Objective,
    Part,
    RoboticsAssets,
    RoboticsDataConfig,
    derivation_rules,
    derived_field,
    option,
)

if TYPE_CHECKING:
    from torch import nn

    from vlatool.models.policy import RoboticsPolicy
    from vlatool_act.network import ActBatcher


class ActConfig(ConfigModel):
    """Section `model`."""

    type: Literal["act"] = option("act", "Model type.")
    width: int = option(64, "Width of a token.", ge=8, le=1024, multiple_of=8)
    n_heads: int = option(4, "Heads of an attention; the width is a multiple.", ge=1)
    n_layers: int = option(2, "Layers of each encoder.", ge=1, le=64)
    latent_dim: int = option(8, "Width of the latent.", ge=1, le=1024)
    kl_weight: float = option(1.0, "Weight of the KL divergence.", ge=0)

    # These follow from the data: `derive` fills them in.
    chunk_size: int | None = derived_field(
        "data.lowdim_future_timesteps + 1", "Actions in a chunk.", ge=1, le=2**14
    )
    action_dim: int | None = derived_field("data.action_dim", "Numbers in an action.", ge=1)
    state_dim: int | None = derived_field(
        "data.proprioception_dim", "Numbers that the robot measures.", ge=0
    )


class ActType(ModelType):
    """The model type `act`, in the order in which a run calls its methods."""

    name: ClassVar[str] = "act"
    Config: ClassVar[type[ConfigModel]] = ActConfig
    kinds: ClassVar[tuple[str, ...]] = ("robotics",)

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
        }
        return config.model_copy(update=sizes), derivation_rules(config, sizes)

    def build(self, config: ActConfig) -> Mapping[str, Part]:
        """The network with random weights; opens no file."""
        from vlatool_act.network import Act

        return {"model": Part(Act(config))}

    def objective(
        self, config: ActConfig, data: RoboticsDataConfig, info: Any, parts: Mapping[str, Part]
    ) -> Objective:
        """What training minimizes."""
        from vlatool_act.network import ActObjective

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
        from vlatool_act.network import ActBatcher

        return ActBatcher(assets)

    def example(self, config: ActConfig, data: RoboticsDataConfig, size: int) -> Batch:
        """A made-up batch like those of `batcher`."""
        from vlatool_act.network import example_batch

        return example_batch(config, data, size)

    def policy(
        self,
        config: ActConfig,
        parts: Mapping[str, "nn.Module"],
        assets: RoboticsAssets,
        folder: Path | None,
    ) -> "RoboticsPolicy":
        """The policy that `serve`, `eval` and `load_policy` use. It reads no instruction."""
        from vlatool.models.policy import RoboticsPolicy
        from vlatool_act.network import ActBatcher, ActSampler

        network: Any = parts["model"]
        sampler = ActSampler(network, assets.data.lowdim_past_timesteps or 0)
        policy = RoboticsPolicy(sampler, ActBatcher(assets), assets, network.head.weight.device)
        policy.sees = replace(policy.sees, instruction=False)
        return policy
