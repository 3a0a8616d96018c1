"""Section `model` of the model type `lerobot`. No torch, and nothing of the package `lerobot`."""

from typing import Any, Literal

from vlatool.config.base import ConfigModel, derived_field, option

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
ENVIRONMENT = "observation.environment_state"


class LeRobotPolicyConfig(ConfigModel):
    """A policy of the package `lerobot`, and the names that it has for your data."""

    type: Literal["lerobot"] = option("lerobot", "Model type.")
    policy: str = option("act", "Policy of lerobot: act, diffusion, vqbet, smolvla, pi0, pi05, ...")
    config: dict[str, Any] = option(
        {}, "Keys of the configuration of the policy, such as chunk_size; lerobot checks them."
    )
    features: dict[str, str] = option(
        {}, "Names of the policy for your cameras and fields, such as top=camera1."
    )
    bases: dict[str, str] = option(
        {},
        "Locations of base models and tokenizers that the policy names, such as "
        "google/paligemma-3b-pt-224=DIR; by default the hub.",
        affects_output=False,
    )

    # These follow from the data: `derive` fills them in.
    cameras: dict[str, str] = derived_field(
        "data.camera_names and model.features", "Feature of each of your cameras.", default={}
    )
    fields: dict[str, list[str]] = derived_field(
        "data.proprioception_fields and data.action_fields",
        "Fields that are side by side in each feature.",
        default={},
    )
    shapes: dict[str, list[int]] | None = derived_field("your data", "Shape of each feature.")


def feature_of_camera(name: str) -> str:
    """Name of a camera in the features of a policy."""
    return name if name.startswith(IMAGES) else f"{IMAGES}{name}"


def kind_of(feature: str) -> str:
    """Kind of a feature, such as VISUAL, which lerobot normalizes in one way."""
    if feature.startswith("observation.image"):
        return "VISUAL"
    if feature == ENVIRONMENT:
        return "ENV"
    return "ACTION" if feature == ACTION else "STATE"
