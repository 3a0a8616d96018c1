"""Samples of the data kind `vla`, and the assets that a policy needs besides weights.

Legend of shapes: P past images, H height, W width, T actions, A values of an action.
"""

from dataclasses import dataclass

from vlatool.artifacts.profile import NormalizationProfile
from vlatool.artifacts.samples.episode import Conversation, SampleSizes
from vlatool.episode import UInt8Array
from vlatool.transforms.action_tokenizer import ActionTokenizer


@dataclass(frozen=True)
class VlaSample:
    """One sample.

    Attributes:
        key: File and number of its line from 1, such as `A/data/episode_000003.jsonl:17`.
        conversation: Instruction, action ids, and codes of the future images.
        images: uint8 [P, H, W, 3], by time, and within a step by camera.
    """

    key: str
    conversation: Conversation
    images: UInt8Array


@dataclass(frozen=True)
class VlaShape:
    """Sizes that all samples of a run share.

    Attributes:
        cameras: Cameras of a step, in the order of its images.
        past_steps: Steps with past images, the anchor included.
        future_steps: Steps with future images, the one after the anchor first.
        image_size: (height, width) of the past images.
        action_steps: T, from the anchor on.
        action_width: A.
        action_field: Field of raw episodes with the actions.
    """

    cameras: tuple[str, ...]
    past_steps: int
    future_steps: int
    image_size: tuple[int, int]
    action_steps: int
    action_width: int
    action_field: str = "actions"

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
    """Assets of the training data that a policy needs besides weights.

    Attributes:
        sizes: Sizes of codes and action ids.
        shape: Sizes of a sample.
        fps: Frames per second.
        fast: Action tokenizer; None if the data have none.
        profile: Normalization of the actions.
        codes_digest: Digest of the visual tokenizer of the codes; empty if unknown.
    """

    sizes: SampleSizes
    shape: VlaShape
    fps: float
    fast: ActionTokenizer | None
    profile: NormalizationProfile
    codes_digest: str = ""
