"""The policy of FUTURE-VLA: past images and an instruction to actions and future images.

Source: reference/future-vla-model 4.

Legend of shapes: B observations, N past images, T action steps, A values of an action, Q future
images, F future steps, K codes of an image.
"""

from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np
import torch

from vlatool.episode import Array, CameraView, Observation, ObservationSpec, UInt8Array
from vlatool.errors import DataError, UsageError
from vlatool.loading.robotics.kind import ImageTransform
from vlatool.loading.vla.config import VlaAssets
from vlatool.models.codebook import true_float32
from vlatool.models.future_vla.batch import SequenceEncoder, TokenSequence
from vlatool.models.future_vla.decoding import ActionGrammar, AnswerDecoder
from vlatool.models.future_vla.frame_cache import FrameCache
from vlatool.models.future_vla.model import FutureVla
from vlatool.models.policy import Decision
from vlatool.models.tokenizer import VisualTokenizer

# Frame rate of LIBERO, for published samples, which do not say.
_DEFAULT_FPS = 10.0


class FutureVlaPolicy:
    """A policy that decodes the most probable answer; its seeds have no effect."""

    def __init__(self, network: FutureVla, encoder: SequenceEncoder, assets: VlaAssets) -> None:
        if assets.fast is None or assets.profile is None:
            raise DataError(
                "the run has no action tokenizer, so that its action ids mean nothing",
                hint="train on samples of `vlatool build-dataset`, or set data.fast",
                code="data.no_action_tokenizer",
            )
        shape = assets.shape
        self.fps = assets.fps or _DEFAULT_FPS
        self.horizon = shape.action_steps
        self._fast, self._profile = assets.fast, assets.profile
        self._shape = shape
        self._encoder = encoder
        self._codes_digest = assets.codes_digest
        self._images = ImageTransform(shape.image_size)
        self._device = network.head_weight.device
        values = shape.action_steps * shape.action_width
        grammar = ActionGrammar(assets.fast, values, encoder.tokens.num_actions)
        self._decoder = AnswerDecoder(network, encoder, grammar, FrameCache(network))
        self._tokenizer: VisualTokenizer | None = None

    @property
    def sees(self) -> ObservationSpec:
        """The past images of all cameras, and the instruction."""
        view = CameraView(tuple(range(1 - self._shape.past_steps, 1)), self._shape.image_size)
        return ObservationSpec(dict.fromkeys(self._shape.cameras, view))

    @property
    def actions(self) -> dict[str, int]:
        """The field of actions."""
        return {self._shape.action_field: self._shape.action_width}

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        """Returns chunks of commands, float64 [B, T, A]; see `models.policy.Policy`."""
        return dict(self.decide(observations, seeds=seeds).actions)

    def decide(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> Decision:
        """Returns the result of `act` and the number of tokens; see `models.policy.Decides`."""
        del seeds
        prompts, images = self._inputs(observations)
        ids = self._action_ids(prompts, images)
        chunks, _ = self._fast.decode(ids, self.horizon, self._shape.action_width)
        actions = self._profile.denormalize(chunks).astype(np.float64)
        tokens = tuple(len(row) + 1 for row in ids)  # the end is decoded too
        return Decision({self._shape.action_field: actions}, tokens)

    def with_tokenizer(self, tokenizer: VisualTokenizer) -> Self:
        """Returns the policy with the tokenizer of its codes; see
        `models.policy.PredictsImages`.
        """
        sizes = self._encoder.tokens.sizes
        own = tokenizer.codes_per_image, tokenizer.codebook_size
        is_other = self._codes_digest not in ("", tokenizer.digest)
        if own != (sizes.codes_per_image, sizes.codebook_size) or is_other:
            raise DataError(
                "the visual tokenizer is not the one of the data that the policy was trained on",
                hint="give the tokenizer that encoded their images",
                code="data.other_tokenizer",
            )
        policy = copy(self)
        policy._tokenizer = tokenizer
        return policy

    def future_codes(
        self, observations: Sequence[Observation], *, seeds: Sequence[int]
    ) -> dict[str, Array]:
        """Returns the codes of the steps after the current one by camera, int64 [B, F, K]."""
        del seeds
        prompts, images = self._inputs(observations)
        with torch.no_grad(), true_float32(self._device):
            ids = self._decoder.actions(prompts, images)
            codes = self._decoder.codes(prompts, images, ids, self._shape.future_images)
        cameras = self._shape.cameras
        return {name: codes[:, number :: len(cameras)] for number, name in enumerate(cameras)}

    def futures(
        self, observations: Sequence[Observation], *, seeds: Sequence[int]
    ) -> dict[str, UInt8Array]:
        """Returns the images of the steps after the current one by camera, uint8 [B, F,
        S, S, 3].
        """
        if self._tokenizer is None:
            raise UsageError(
                "the policy predicts codes, and has no visual tokenizer to decode them",
                hint="give the run of the tokenizer with --tokenizer",
                code="usage.needs_tokenizer",
            )
        codes = self.future_codes(observations, seeds=seeds)
        decode, size = self._tokenizer.decode, self._tokenizer.image_size
        images: dict[str, UInt8Array] = {}
        for name, values in codes.items():
            flat = decode(torch.from_numpy(values).flatten(0, 1).to(self._device))
            images[name] = flat.cpu().numpy().reshape(*values.shape[:2], size, size, 3)
        return images

    def _action_ids(self, prompts: Sequence[TokenSequence], images: UInt8Array) -> list[list[int]]:
        with torch.no_grad(), true_float32(self._device):
            return self._decoder.actions(prompts, images)

    def _inputs(
        self, observations: Sequence[Observation]
    ) -> tuple[list[TokenSequence], UInt8Array]:
        """Prompts and past images uint8 [B, N, H, W, 3]."""
        prompts = [self._prompt(observation.instruction) for observation in observations]
        return prompts, np.stack([self._stacked(observation) for observation in observations])

    def _prompt(self, instruction: str) -> TokenSequence:
        try:
            return self._encoder.prompt(instruction)
        except ValueError as error:
            raise DataError(
                f"{instruction!r}: {error}",
                hint="give another instruction",
                code="data.unusable_instruction",
            ) from None

    def _stacked(self, observation: Observation) -> UInt8Array:
        """Past images of an observation, by time and within a step by camera."""
        return np.stack(
            [
                self._images.apply(camera, observation.images[camera][step])
                for step in range(self._shape.past_steps)
                for camera in self._shape.cameras
            ]
        )
