"""Configuration, samples and assets of the data kind `vla`.

Legend of shapes: P past images, H height, W width, T actions, A values of an action.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self, TypeVar

from pydantic import model_validator

from vlatool.checkpoints.contract import Contract
from vlatool.config.base import derived_field, option, required_field
from vlatool.datasets.samples.episode import Conversation, SampleSizes
from vlatool.datasets.samples.profile import NormalizationProfile
from vlatool.episode import UInt8Array
from vlatool.loading.base import LoadingConfig
from vlatool.transforms.action_tokenizer import ActionTokenizer

T = TypeVar("T")

_FROM_SAMPLES = "manifest.json of the samples"


@dataclass(frozen=True)
class VlaSample:
    key: str  # file and number of its line from 1, such as `A/data/episode_000003.jsonl:17`
    conversation: Conversation  # instruction, action ids, and codes of the future images
    images: UInt8Array  # uint8 [P, H, W, 3], by time, and within a step by camera


@dataclass(frozen=True)
class VlaShape:
    """Sizes that all samples of a run share."""

    cameras: tuple[str, ...]  # cameras of a step, in the order of its images
    past_steps: int  # steps with past images, the anchor included
    future_steps: int  # steps with future images, the one after the anchor first
    image_size: tuple[int, int]  # (height, width) of the past images
    action_steps: int  # T, from the anchor on
    action_width: int
    action_field: str = "actions"  # field of raw episodes with the actions

    @property
    def past_images(self) -> int:
        """Number of past images, P."""
        return self.past_steps * len(self.cameras)

    @property
    def future_images(self) -> int:
        """Number of future images."""
        return self.future_steps * len(self.cameras)


@dataclass(frozen=True)
class VlaAssets:
    """Assets of the training data that a policy needs besides weights."""

    sizes: SampleSizes  # sizes of codes and action ids
    shape: VlaShape  # sizes of a sample
    fps: float  # frames per second
    fast: ActionTokenizer | None  # action tokenizer; None if the data have none
    profile: NormalizationProfile  # normalization of the actions
    codes_digest: str = ""  # digest of the visual tokenizer of the codes; empty if unknown
    contract: Contract = field(default_factory=Contract)  # what training saw


class VlaDataConfig(LoadingConfig):
    """Samples with instruction, actions and future images as numbers, and past images."""

    weighted_key: ClassVar[str] = "samples"

    type: Literal["vla"] = option(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        "vla", "Kind of the training data."
    )
    samples: list[str] = required_field(
        [],
        "Folders of samples: outputs of `vlatool build-dataset`, or published folders with "
        "data/*.jsonl, of any scheme.",
        affects_output=False,
    )
    val_samples: list[str] = option([], "Folders of validation samples.", affects_output=False)
    val_ratio: float = option(
        0.0,
        "Share of the episodes of each folder for validation, evenly spaced; 0 uses all for "
        "training.",
        ge=0,
        lt=1,
    )
    split: Literal["train", "val"] = option(
        "train", "Episodes to read if val_ratio is not 0: for training or for validation."
    )
    images_root: str | None = option(
        None,
        "Folder with images/, if the images are not where the samples say, as in published "
        "samples.",
        affects_output=False,
    )
    fast: str | None = option(
        None,
        "FAST action tokenizer; null uses fast/ in the folder of samples.",
        affects_output=False,
    )
    profile: str | None = option(
        None,
        "Normalization of the actions of published samples, as a name or file; null uses the one "
        "of the samples, or libero.",
    )
    max_dropped_share: float = option(
        0.0,
        "Share of broken samples that a run may drop; with 0, it ends at the first one.",
        ge=0,
        le=1,
        affects_output=False,
    )
    cameras: list[str] = derived_field(
        "the windows, or the names of the images", "Cameras in the order of images.", default=[]
    )
    past_steps: int | None = derived_field(_FROM_SAMPLES, "Steps with past images.", ge=1)
    future_steps: int | None = derived_field(_FROM_SAMPLES, "Steps with future images.", ge=1)
    image_size: tuple[int, int] | None = derived_field(
        "the first image", "Height and width of the images in pixels."
    )
    action_steps: int | None = derived_field(_FROM_SAMPLES, "Steps of an action chunk.", ge=1)
    action_width: int | None = derived_field(_FROM_SAMPLES, "Dimensions of an action.", ge=1)
    action_field: str = derived_field(
        "the windows", "Field of raw episodes with the actions.", default="actions"
    )
    fps: float | None = derived_field(
        "the windows, or 10 as in LIBERO", "Frames per second of the data.", gt=0
    )
    codes_per_image: int | None = derived_field(_FROM_SAMPLES, "Codes of an image.", ge=1)
    num_codes: int | None = derived_field(_FROM_SAMPLES, "Size of the codebook.", ge=1)
    num_actions: int | None = derived_field(_FROM_SAMPLES, "Number of action ids.", ge=1)
    codes_digest: str = derived_field(
        _FROM_SAMPLES, "Digest of the visual tokenizer of the codes.", default=""
    )
    fast_digest: str = derived_field(_FROM_SAMPLES, "Digest of the action tokenizer.", default="")
    profile_digest: str = derived_field(
        _FROM_SAMPLES, "Digest of the normalization of actions.", default=""
    )

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        if self.val_samples and self.val_ratio:
            raise ValueError("val_samples and val_ratio exclude each other")
        return self

    @property
    def is_held_out(self) -> bool:
        return self.split == "val" and self.val_ratio > 0

    @property
    def shape(self) -> VlaShape:
        """Sizes of a sample; of a derived section."""
        return VlaShape(
            tuple(self.cameras),
            _derived(self.past_steps),
            _derived(self.future_steps),
            _derived(self.image_size),
            _derived(self.action_steps),
            _derived(self.action_width),
            self.action_field,
        )

    @property
    def sizes(self) -> SampleSizes:
        """Sizes of the numbers; of a derived section."""
        return SampleSizes(
            _derived(self.codes_per_image), _derived(self.num_codes), _derived(self.num_actions)
        )

    @property
    def digests(self) -> Mapping[str, str]:
        """Digests of all that gives the numbers their meaning; empty texts are unknown."""
        return {
            "codes": self.codes_digest,
            "actions": self.fast_digest,
            "profile": self.profile_digest,
        }


def _derived(value: T | None) -> T:
    assert value is not None
    return value
