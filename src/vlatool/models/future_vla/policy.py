"""The policy of FUTURE-VLA: past images and an instruction to actions and future images.

`decide` draws one or more answers to each observation (`decoding.py`), with the tokens of images
that it has seen before (`frame_cache.py`), and executes the one that its rule chooses. Source:
reference/future-vla-model 4.

Legend of shapes: B observations, N past images or answers to an observation, T action steps, A
values of an action, K codes of an image, F future steps, S side of an image.
"""

from collections.abc import Sequence
from copy import copy
from typing import ClassVar, Self

import numpy as np
import torch

from vlatool.checkpoints.contract import SeenCamera
from vlatool.episode import Array, CameraView, Observation, ObservationSpec, UInt8Array
from vlatool.errors import DataError, UsageError
from vlatool.loading.robotics.options import ImageTransform
from vlatool.loading.vla.config import VlaAssets
from vlatool.models.base import Candidates, Decision, Policy, Rule, Sampling, VisualTokenizer
from vlatool.models.codebook import true_float32
from vlatool.models.future_vla.batch import SequenceEncoder, TokenSequence
from vlatool.models.future_vla.decoding import ActionGrammar, AnswerDecoder
from vlatool.models.future_vla.frame_cache import FrameCache
from vlatool.models.future_vla.model import FutureVla

# Frame rate of LIBERO, for published samples, which do not say.
_DEFAULT_FPS = 10.0


class FutureVlaPolicy(Policy):
    """A policy that decodes the most probable answer, unless `with_sampling` says otherwise.

    Seeds only matter if answers are drawn.
    """

    predicts_images: ClassVar[bool] = True

    def __init__(self, network: FutureVla, encoder: SequenceEncoder, assets: VlaAssets) -> None:
        if assets.fast is None or assets.profile is None:
            raise DataError(
                "the run has no action tokenizer, so its action ids cannot be decoded",
                hint="train on samples of `vlatool build-dataset`, or set data.fast",
                code="data.missing",
            )
        shape = assets.shape
        contract = assets.contract
        self.fps = assets.fps or _DEFAULT_FPS
        self.horizon = shape.action_steps
        self.actions = {shape.action_field: shape.action_width}
        self.contract = contract
        self.held = {
            f"{shape.action_field}: {name}": value for name, value in assets.profile.held.items()
        }
        offsets = tuple(range(1 - shape.past_steps, 1))
        views: dict[str, CameraView] = {}
        for name in shape.cameras:
            recorded = contract.cameras.get(name, SeenCamera()).recorded
            views[name] = CameraView(offsets, shape.image_size, recorded)
        self.sees = ObservationSpec(views)
        self._fast = assets.fast
        self._profile = assets.profile
        self._shape = shape
        self._encoder = encoder
        self._codes_digest = assets.codes_digest
        self._images = ImageTransform(
            shape.image_size,
            contract.resize_method or ImageTransform.method,
            contract.resize_filter or ImageTransform.resample,
        )
        self._device = network.head_weight.device
        values = shape.action_steps * shape.action_width
        grammar = ActionGrammar(assets.fast, values, encoder.tokens.num_actions)
        self._decoder = AnswerDecoder(network, encoder, grammar, FrameCache(network))
        self._tokenizer: VisualTokenizer | None = None
        self._sampling = Sampling()

    def with_sampling(self, sampling: Sampling) -> Self:
        policy = copy(self)
        policy._sampling = sampling
        return policy

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        return dict(self.decide(observations, seeds=seeds).actions)

    def decide(
        self, observations: Sequence[Observation], *, seeds: Sequence[int], look: bool = False
    ) -> Decision:
        """Draws the answers of each observation and chooses one by the rule."""
        samples = self._sampling.samples
        rule = self._sampling.selection
        prompts: list[TokenSequence] = []  # of each answer, `samples` rows per observation
        pixels: list[UInt8Array] = []
        noise: list[tuple[int, int]] = []
        for observation, seed in zip(observations, seeds, strict=True):
            prompt = self._prompt(observation.instruction)
            past_images = self._past_images(observation)
            for number in range(samples):
                prompts.append(prompt)
                pixels.append(past_images)
                noise.append((seed, number))
        images = np.stack(pixels)
        future = None
        with torch.no_grad(), true_float32(self._device):
            answers = self._decoder.actions(prompts, images, self._sampling.temperature, noise)
            ids = [answer.ids for answer in answers]
            if look or (rule == "future" and samples > 1):
                future = self._decoder.codes(prompts, images, ids, self._shape.future_images)
        chunks, _ = self._fast.decode(ids, self.horizon, self._shape.action_width)

        candidates: list[Candidates] = []
        executed: list[int] = []  # row of the answer to each observation
        num_tokens: list[int] = []
        for start in range(0, len(answers), samples):
            rows = slice(start, start + samples)
            scores: dict[Rule, Array] = {
                "probable": np.array([answer.log_probability for answer in answers[rows]]),
                "central": -_mean_distances(chunks[rows]),
            }
            codes: dict[str, Array] = {}
            if future is not None:
                future_codes, mean_logs = future
                scores["future"] = mean_logs[rows]
                for number, camera in enumerate(self._shape.cameras):
                    codes[camera] = future_codes[rows, number :: len(self._shape.cameras)]
            best = int(scores[rule].argmax()) if samples > 1 else 0
            candidates.append(Candidates(best, scores, codes))
            executed.append(start + best)
            num_tokens.append(sum(len(row) + 1 for row in ids[rows]))  # the end is decoded too
        actions = self._profile.denormalize(chunks[executed])
        return Decision({self._shape.action_field: actions}, num_tokens, candidates)

    def _prompt(self, instruction: str) -> TokenSequence:
        try:
            return self._encoder.prompt(instruction)
        except ValueError as error:
            raise DataError(
                f"{instruction!r}: {error}", hint="change the instruction", code="data.broken"
            ) from None

    def _past_images(self, observation: Observation) -> UInt8Array:
        """Past images uint8 [N, H, W, 3]: by time, and within a step by camera."""
        images: list[UInt8Array] = []
        for step in range(self._shape.past_steps):
            for camera in self._shape.cameras:
                images.append(self._images.apply(camera, observation.images[camera][step]))
        return np.stack(images)

    def with_tokenizer(self, tokenizer: VisualTokenizer) -> Self:
        sizes = self._encoder.tokens.sizes
        is_same = (
            tokenizer.codes_per_image == sizes.codes_per_image
            and tokenizer.codebook_size == sizes.codebook_size
            and self._codes_digest in ("", tokenizer.digest)
        )
        if not is_same:
            raise DataError(
                "this is not the visual tokenizer of the training data",
                hint="give the tokenizer that encoded the images of the training data",
                code="data.mismatch",
            )
        policy = copy(self)
        policy._tokenizer = tokenizer
        return policy

    def future_codes(
        self, observations: Sequence[Observation], *, seeds: Sequence[int]
    ) -> dict[str, Array]:
        """Returns the codes of the steps after the current one by camera, int64 [B, F, K]."""
        answers = self.decide(observations, seeds=seeds, look=True).candidates
        codes: dict[str, Array] = {}
        for camera in self._shape.cameras:
            codes[camera] = np.stack([answer.codes[camera][answer.chosen] for answer in answers])
        return codes

    def futures(
        self, observations: Sequence[Observation], *, seeds: Sequence[int]
    ) -> dict[str, UInt8Array]:
        """Returns the images of these steps by camera, uint8 [B, F, S, S, 3]."""
        if self._tokenizer is None:
            raise UsageError(
                "the policy predicts codes, but you have not given the tokenizer that decodes them",
                hint="add --tokenizer RUN",
                code="usage.unsupported",
            )
        size = self._tokenizer.image_size
        images: dict[str, UInt8Array] = {}
        for name, codes in self.future_codes(observations, seeds=seeds).items():
            rows = torch.from_numpy(codes).flatten(0, 1).to(self._device)
            decoded = self._tokenizer.decode(rows).cpu().numpy()
            images[name] = decoded.reshape(*codes.shape[:2], size, size, 3)
        return images


def _mean_distances(chunks: Array) -> Array:
    """Mean distance [N] of each normalized chunk [N, T, A] to all of them."""
    flat = chunks.reshape(len(chunks), -1)
    return np.linalg.norm(flat[:, None] - flat[None], axis=-1).mean(axis=1)
