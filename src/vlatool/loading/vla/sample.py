"""Samples of the data kind `vla`, and the assets that a policy needs besides weights.

Legend of shapes: P past images, H height, W width, T actions, A values of an action.
"""

from dataclasses import dataclass

from vlatool.artifacts.profile import NormalizationProfile
from vlatool.artifacts.samples.lines import Conversation, SampleSizes
from vlatool.episode import UInt8Array
from vlatool.transforms.action_tokenizer import ActionTokenizer


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
