"""The policy of FUTURE-VLA: past images and an instruction to actions and future images.

Tokens of past images are computed once per image and grid: at the next step of a robot most images
are the same, and their tokens too, because no operation before the language model mixes images.
Decoding is constrained: tokens that an answer must have, such as its text, are read with the
prompt, and the head is computed for the possible tokens only.

Legend of shapes: B rows or observations, L tokens of a prompt, N past images, K images or codes of
an image, T action steps or image tokens, t image tokens of one image, A values of an action, Q
future images, F future steps, D number of deepstack features, C width of the language model.
Source: reference/future-vla-model 4.
"""

import codecs
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from copy import copy
from hashlib import blake2b
from typing import ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from vlatool.episode import Array, CameraView, Observation, ObservationSpec, UInt8Array
from vlatool.errors import DataError, UsageError
from vlatool.formats.contract import SeenCamera
from vlatool.loading.robotics.assets import ImageTransform
from vlatool.loading.vla.config import VlaAssets
from vlatool.models.base import Candidates, Decision, Policy, Rule, Sampling, VisualTokenizer
from vlatool.models.codebook import true_float32
from vlatool.models.future_vla.batch import SequenceEncoder, TokenSequence
from vlatool.models.future_vla.model import FutureVla
from vlatool.models.policy import equal_groups
from vlatool.transforms.action_tokenizer import ActionTokenizer

# Images computed at once, filled up: the bits of an image must not depend on the others, and the
# shapes of a call change them.
_AT_ONCE = 8
# Images in the cache; one of 256 x 256 has about 4 MB in the published network.
_MAX_IMAGES = 512
_DIGEST_BYTES = 16

Key = TypeVar("Key", bound=Hashable)


class FrameCache:
    """Cache of the tokens of images by their content; not a part of the result; `network`: the
    network, in eval mode; its weights must not change.
    """

    def __init__(self, network: FutureVla) -> None:
        self._network = network
        self._maps: OrderedDict[bytes, Tensor] = OrderedDict()
        self._tokens: OrderedDict[tuple[bytes, int], Tensor] = OrderedDict()
        self._grids = [
            grid for grid, count in enumerate(network.config.frames) for _ in range(count)
        ]

    def features(self, images: UInt8Array) -> Tensor:
        """Returns the tokens of observations, [B, 1 + D, T, C], as `embed_images` does; `images`:
        uint8 [B, N, H, W, 3], oldest step first.
        """
        by_digest: dict[bytes, UInt8Array] = {}
        rows: list[list[tuple[bytes, int]]] = []
        for observation in images:
            digests = [_digest(image) for image in observation]
            by_digest |= dict(zip(digests, observation, strict=True))
            rows.append(list(zip(digests, self._grids, strict=True)))
        needed = list(dict.fromkeys(key for row in rows for key in row))
        tokens = _looked_up(self._tokens, needed, lambda keys: self._compute(keys, by_digest))
        return torch.stack([torch.cat([tokens[key] for key in row], dim=1) for row in rows])

    def _compute(
        self, keys: Sequence[tuple[bytes, int]], images: dict[bytes, UInt8Array]
    ) -> list[Tensor]:
        """Tokens [1 + D, t, C] of images with grids."""
        distinct = list(dict.fromkeys(digest for digest, _ in keys))
        maps = _looked_up(self._maps, distinct, lambda names: self._features(names, images))
        tokens: dict[tuple[bytes, int], Tensor] = {}
        for grid in range(len(self._network.config.compress)):
            chosen = [digest for digest, of_grid in keys if of_grid == grid]
            for start in range(0, len(chosen), _AT_ONCE):
                part = chosen[start : start + _AT_ONCE]
                filled = torch.stack([maps[digest] for digest in _filled(part)])
                grids = [filled[:0]] * len(self._network.config.compress)
                grids[grid] = filled
                computed = self._network.visual(grids)[grid]
                tokens |= {(digest, grid): computed[row] for row, digest in enumerate(part)}
        return [tokens[key] for key in keys]

    def _features(self, digests: Sequence[bytes], images: dict[bytes, UInt8Array]) -> list[Tensor]:
        """Features of DINOv3 [C, G, G] of images."""
        device = self._network.head_weight.device
        maps: list[Tensor] = []
        for start in range(0, len(digests), _AT_ONCE):
            part = digests[start : start + _AT_ONCE]
            pixels = np.stack([images[digest] for digest in _filled(part)])
            features = self._network.image_features(torch.from_numpy(pixels).to(device))
            maps += features[: len(part)].unbind()
        return maps


def _looked_up(
    cache: OrderedDict[Key, Tensor],
    keys: Sequence[Key],
    compute: Callable[[Sequence[Key]], Sequence[Tensor]],
) -> dict[Key, Tensor]:
    """Values of distinct keys; those that the cache lacks are computed together."""
    missing = [key for key in keys if key not in cache]
    if missing:
        cache.update(zip(missing, compute(missing), strict=True))
    for key in keys:
        cache.move_to_end(key)
    values = {key: cache[key] for key in keys}
    while len(cache) > _MAX_IMAGES:
        cache.popitem(last=False)
    return values


def _filled(keys: Sequence[bytes]) -> list[bytes]:
    return [*keys, *[keys[-1]] * (_AT_ONCE - len(keys))]


def _digest(image: UInt8Array) -> bytes:
    shape = repr(image.shape).encode()
    content = np.ascontiguousarray(image).data
    return blake2b(content, digest_size=_DIGEST_BYTES, key=shape).digest()


_LONGEST_CHARACTER = 4  # bytes in UTF-8


class ChunkState(NamedTuple):
    """State of an action chunk that is being decoded."""

    partial: bytes  # bytes of a character that is not complete
    left: int  # number of characters that are missing, the partial one included


class ActionGrammar:
    """Action ids that can follow, so that every chunk has exactly its number of coefficients. Each
    coefficient is a character of a text in UTF-8, of which an action id is some bytes.
    """

    def __init__(self, fast: ActionTokenizer, values: int, num_ids: int) -> None:
        self._id_bytes = fast.id_bytes[:num_ids]
        self._longest = max((len(piece or b"") for piece in self._id_bytes), default=0) + 1
        self._num_ids = num_ids
        self._tables: dict[bytes, list[ChunkState | None]] = {}
        self._allowed: dict[ChunkState, Array] = {}
        self.start = ChunkState(b"", values)

    def allowed(self, state: ChunkState) -> Array:
        """Tokens that can follow, bool [action ids + 1]; the last one is the end of the chunk."""
        # Beyond the longest token, the number of missing characters makes no difference.
        key = ChunkState(state.partial, min(state.left, self._longest))
        if key not in self._allowed:
            mask = np.zeros(self._num_ids + 1, np.bool_)
            for number, after in enumerate(self._table(key.partial)):
                if after is not None:
                    mask[number] = after.left + bool(after.partial) <= key.left
            # A vocabulary without an id for some byte may have no way on: an invalid chunk.
            mask[-1] = not mask.any()
            self._allowed[key] = mask
        return self._allowed[key]

    def after(self, state: ChunkState, action_id: int) -> ChunkState:
        """State after one of the allowed action ids."""
        change = self._table(state.partial)[action_id]
        assert change is not None, "the action id is not allowed"
        return ChunkState(change.partial, state.left - change.left)

    def _table(self, partial: bytes) -> list[ChunkState | None]:
        """Of each action id, the bytes that it leaves over and the characters that it completes."""
        if partial not in self._tables:
            self._tables[partial] = [_completed(partial, piece) for piece in self._id_bytes]
        return self._tables[partial]


def _completed(partial: bytes, piece: bytes | None) -> ChunkState | None:
    """Remaining bytes and number of complete characters; None if they are not UTF-8."""
    if not piece:
        return None
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(partial + piece)
    except UnicodeDecodeError:
        return None
    rest = decoder.getstate()[0]
    return ChunkState(rest, len(text)) if not rest or _can_be_completed(rest) else None


def _can_be_completed(partial: bytes) -> bool:
    """True if the bytes begin a character; the decoder leaves over half a surrogate too."""
    for fill in (b"\x80", b"\xbf"):  # each lead byte takes one of them
        for missing in range(1, _LONGEST_CHARACTER):
            with suppress(UnicodeDecodeError):
                (partial + fill * missing).decode()
                return True
    return False


class _Answer(NamedTuple):
    """Drawn tokens, and the logarithms of their probabilities at a temperature of 1."""

    ids: list[int]
    log_probability: float  # sum over all tokens


class AnswerDecoder:
    """Decodes answers of a network, the most probable token at a time, or drawn at a temperature.
    The answer of a row has the same bits whichever rows share the batch, if their number is equal.
    """

    def __init__(
        self,
        network: FutureVla,  # the network, in eval mode
        encoder: SequenceEncoder,  # encoder of prompts
        grammar: ActionGrammar,  # rule of the action ids
        frames: FrameCache,  # features of images
    ) -> None:
        self._network = network
        self._tokens = encoder.tokens
        self._texts = encoder.answer_texts("vla")
        self._grammar = grammar
        self._frames = frames

    def actions(
        self,
        prompts: Sequence[TokenSequence],
        images: UInt8Array,
        temperature: float = 0.0,  # 0: the most probable tokens
        seeds: Sequence[Sequence[int]] = (),  # of each row, for a temperature above 0
    ) -> list[_Answer]:
        """Returns the action ids of each row, without the end; `images`: past images uint8 [B, N,
        H, W, 3].
        """
        answers: list[_Answer] = [_Answer([], 0.0) for _ in prompts]
        begin = [*self._texts.lead, self._tokens.action_start]
        for rows, filled in equal_groups([len(prompt.ids) for prompt in prompts]):
            reading = self._read([prompts[row] for row in filled], [begin] * len(filled))
            noise = [np.random.default_rng(seeds[row]) for row in filled] if temperature else []
            decoded = self._actions(reading, images[filled], temperature, noise)
            chosen = dict(zip(rows, decoded, strict=False))
            answers = [chosen.get(row, answer) for row, answer in enumerate(answers)]
        return answers

    def codes(
        self,
        prompts: Sequence[TokenSequence],
        images: UInt8Array,
        action_ids: Sequence[Sequence[int]],  # action ids of each row
        count: int,  # number of future images, Q
    ) -> tuple[Array, Array]:
        """Returns the most probable codes of future images after the given actions, int64 [B, Q,
        K], and the mean logarithm of their probabilities float64 [B].
        """
        begins = [
            [
                *self._texts.lead,
                *self._tokens.of_actions(ids),
                *self._texts.middle,
                self._tokens.future_start,
            ]
            for ids in action_ids
        ]
        codes = np.zeros((len(prompts), count, self._tokens.codes_per_image), np.int64)
        logs = np.zeros(len(prompts))
        lengths = [
            len(prompt.ids) + len(begin) for prompt, begin in zip(prompts, begins, strict=True)
        ]
        for rows, filled in equal_groups(lengths):
            reading = self._read([prompts[row] for row in filled], [begins[row] for row in filled])
            decoded, mean_logs = self._codes(reading, images[filled], count)
            codes[rows], logs[rows] = decoded[: len(rows)], mean_logs[: len(rows)]
        return codes, logs

    def _read(
        self, prompts: Sequence[TokenSequence], begins: Sequence[Sequence[int]]
    ) -> "_Reading":
        ids = []
        positions = []
        for prompt, begin in zip(prompts, begins, strict=True):
            ids.append(np.concatenate([prompt.ids, np.asarray(begin, np.int64)]))
            steps = prompt.next_position + np.arange(len(begin))
            positions.append(np.concatenate([prompt.positions, np.tile(steps, (3, 1))], axis=1))
        return _Reading(self._network, np.stack(ids), np.stack(positions))

    def _actions(
        self,
        reading: "_Reading",
        images: UInt8Array,
        temperature: float,
        noise: Sequence[np.random.Generator],  # of each row, for a temperature above 0
    ) -> list[_Answer]:
        tokens = self._tokens
        grammar = self._grammar
        choices = [*range(tokens.first_action, tokens.first_action + tokens.num_actions)]
        choices.append(tokens.action_end)
        weight = self._network.head_weight[torch.tensor(choices, device=reading.device)]
        answers: list[list[int]] = [[] for _ in images]
        sums = [0.0] * len(images)
        states = [grammar.start] * len(images)
        is_open = [True] * len(images)
        hidden = reading.begin(self._frames.features(images))
        while True:
            allowed = torch.from_numpy(np.stack([grammar.allowed(state) for state in states]))
            scores = functional.linear(hidden, weight).float()
            scores = scores.masked_fill(~allowed.to(scores.device), -torch.inf)
            logs = scores.log_softmax(dim=-1)
            if temperature:  # the largest sum with Gumbel noise is a draw from the softmax
                drawn = np.stack([rng.gumbel(size=len(choices)) for rng in noise])
                scores = scores + torch.from_numpy(temperature * drawn).to(scores)
            index = scores.argmax(dim=-1, keepdim=True)
            chosen = index[:, 0].tolist()
            likely = logs.gather(1, index)[:, 0].tolist()
            for row, number in enumerate(chosen):
                sums[row] += likely[row] if is_open[row] else 0.0
                is_open[row] = is_open[row] and number < tokens.num_actions
                if is_open[row]:
                    answers[row].append(number)
                    states[row] = grammar.after(states[row], number)
            if not any(is_open):
                return [_Answer(*answer) for answer in zip(answers, sums, strict=True)]
            following = torch.tensor([choices[number] for number in chosen], device=hidden.device)
            hidden = reading.step(following[:, None])

    def _codes(self, reading: "_Reading", images: UInt8Array, count: int) -> tuple[Array, Array]:
        """Codes [B, Q, K] of rows with prompts of equal length; see `codes`."""
        tokens = self._tokens
        first = tokens.first_code
        width = tokens.codes_per_image
        weight = self._network.head_weight[first : first + tokens.num_codes]
        between = torch.tensor([tokens.future_end, tokens.future_start], device=reading.device)
        hidden = reading.begin(self._frames.features(images))
        chosen: list[Tensor] = []
        logs: list[Tensor] = []
        for number in range(count * width):
            scores = functional.linear(hidden, weight).float().log_softmax(dim=-1)
            log, code = scores.max(dim=-1, keepdim=True)
            logs.append(log)
            chosen.append(code)
            following = code + first
            if number == count * width - 1:
                break
            if number % width == width - 1:
                following = torch.cat([following, between.expand(len(images), 2)], dim=1)
            hidden = reading.step(following)
        codes = torch.cat(chosen, dim=1).unflatten(1, (count, width)).cpu().numpy()
        return codes, torch.cat(logs, dim=1).double().mean(dim=1).cpu().numpy()


class _Reading:
    """Tokens that a network has read, with their keys and values; `ids`: token ids of equal
    prompts, int64 [B, L]; `positions`: their positions, int64 [B, 3, L].
    """

    def __init__(self, network: FutureVla, ids: Array, positions: Array) -> None:
        self.device = network.head_weight.device
        self._network = network
        self._ids = torch.from_numpy(ids).to(self.device)
        self._positions = torch.from_numpy(positions).to(self.device)
        self._next = self._positions.amax(dim=(1, 2)) + 1
        self._cache = DynamicCache()

    def begin(self, features: Tensor) -> Tensor:
        """Reads the prompts with the features of their images; see `step`."""
        hidden = self._network(self._ids, self._positions, features=features, cache=self._cache)
        return hidden[:, -1]

    def step(self, ids: Tensor) -> Tensor:
        """Reads tokens int64 [B, n]; returns the hidden state after the last one, [B, C]."""
        steps = torch.arange(ids.shape[1], device=self.device)
        positions = (self._next[:, None] + steps)[:, None].expand(-1, 3, -1)
        self._next = self._next + ids.shape[1]
        return self._network(ids, positions, cache=self._cache)[:, -1]


def _mean_distances(chunks: Array) -> Array:
    """Mean distance [N] of each normalized chunk [N, T, A] to all of them."""
    flat = chunks.reshape(len(chunks), -1)
    return np.linalg.norm(flat[:, None] - flat[None], axis=-1).mean(axis=1)


# Frame rate of LIBERO, for published samples, which do not say.
_DEFAULT_FPS = 10.0


class FutureVlaPolicy(Policy):
    """A policy that decodes the most probable answer, unless `with_sampling` says otherwise; its
    seeds have an effect on drawn answers only.
    """

    predicts_images: ClassVar[bool] = True

    def __init__(self, network: FutureVla, encoder: SequenceEncoder, assets: VlaAssets) -> None:
        if assets.fast is None or assets.profile is None:
            raise DataError(
                "the run has no action tokenizer, so that its action ids mean nothing",
                hint="train on samples of `vlatool build-dataset`, or set data.fast",
                code="data.missing",
            )
        shape = assets.shape
        self.fps = assets.fps or _DEFAULT_FPS
        self.horizon = shape.action_steps
        self.actions = {shape.action_field: shape.action_width}
        self.contract = assets.contract
        self.held = {
            f"{shape.action_field}: {name}": value for name, value in assets.profile.held.items()
        }
        offsets = tuple(range(1 - shape.past_steps, 1))
        seen = {name: assets.contract.cameras.get(name, SeenCamera()) for name in shape.cameras}
        self.sees = ObservationSpec(
            {name: CameraView(offsets, shape.image_size, seen[name].recorded) for name in seen}
        )
        self._fast = assets.fast
        self._profile = assets.profile
        self._shape = shape
        self._encoder = encoder
        self._codes_digest = assets.codes_digest
        self._images = ImageTransform(
            shape.image_size,
            assets.contract.resize_method or ImageTransform.method,
            assets.contract.resize_filter or ImageTransform.resample,
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
        count = self._sampling.samples
        rule = self._sampling.selection
        prompts, images = self._inputs(observations)
        prompts = [prompt for prompt in prompts for _ in range(count)]
        images = images.repeat(count, axis=0)
        noise = [(seed, number) for seed in seeds for number in range(count)]
        num_futures = self._shape.future_images
        cameras = self._shape.cameras
        with torch.no_grad(), true_float32(self._device):
            answers = self._decoder.actions(prompts, images, self._sampling.temperature, noise)
            ids = [answer.ids for answer in answers]
            seen = None
            if look or (rule == "future" and count > 1):
                seen = self._decoder.codes(prompts, images, ids, num_futures)
        chunks, _ = self._fast.decode(ids, self.horizon, self._shape.action_width)
        candidates: list[Candidates] = []
        for start in range(0, len(answers), count):
            rows = slice(start, start + count)
            scores: dict[Rule, Array] = {
                "probable": np.array([answer.log_probability for answer in answers[rows]]),
                "central": -_mean_distances(chunks[rows]),
            }
            codes: dict[str, Array] = {}
            if seen is not None:
                scores["future"] = seen[1][rows]
                codes = {
                    camera: seen[0][rows, number :: len(cameras)]
                    for number, camera in enumerate(cameras)
                }
            chosen = int(scores[rule].argmax()) if count > 1 else 0
            candidates.append(Candidates(chosen, scores, codes))
        picked = [row * count + each.chosen for row, each in enumerate(candidates)]
        actions = self._profile.denormalize(chunks[picked])
        # The end is decoded too
        tokens = [
            sum(len(each) + 1 for each in ids[i : i + count]) for i in range(0, len(ids), count)
        ]
        return Decision({self._shape.action_field: actions}, tokens, candidates)

    def with_tokenizer(self, tokenizer: VisualTokenizer) -> Self:
        sizes = self._encoder.tokens.sizes
        own = tokenizer.codes_per_image, tokenizer.codebook_size
        is_other = self._codes_digest not in ("", tokenizer.digest)
        if own != (sizes.codes_per_image, sizes.codebook_size) or is_other:
            raise DataError(
                "the visual tokenizer is not the one of the data that the policy was trained on",
                hint="give the tokenizer that encoded their images",
                code="data.mismatch",
            )
        policy = copy(self)
        policy._tokenizer = tokenizer
        return policy

    def future_codes(
        self, observations: Sequence[Observation], *, seeds: Sequence[int]
    ) -> dict[str, Array]:
        """Returns the codes of the steps after the current one by camera, int64 [B, F, K]."""
        decided = self.decide(observations, seeds=seeds, look=True).candidates
        return {
            camera: np.stack([each.codes[camera][each.chosen] for each in decided])
            for camera in self._shape.cameras
        }

    def futures(
        self, observations: Sequence[Observation], *, seeds: Sequence[int]
    ) -> dict[str, UInt8Array]:
        """Returns the images of the steps after the current one by camera, uint8 [B, F, S, S,
        3].
        """
        if self._tokenizer is None:
            raise UsageError(
                "the policy predicts codes, and has no visual tokenizer to decode them",
                hint="give the run of the tokenizer with --tokenizer",
                code="usage.unsupported",
            )
        codes = self.future_codes(observations, seeds=seeds)
        decode = self._tokenizer.decode
        size = self._tokenizer.image_size
        images: dict[str, UInt8Array] = {}
        for name, values in codes.items():
            flat = decode(torch.from_numpy(values).flatten(0, 1).to(self._device))
            images[name] = flat.cpu().numpy().reshape(*values.shape[:2], size, size, 3)
        return images

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
                code="data.broken",
            ) from None

    def _stacked(self, observation: Observation) -> UInt8Array:
        return np.stack(
            [
                self._images.apply(camera, observation.images[camera][step])
                for step in range(self._shape.past_steps)
                for camera in self._shape.cameras
            ]
        )
