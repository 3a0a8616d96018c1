"""Decodes answers, token by token.

Decoding is constrained: tokens that an answer must have, such as its text, are read with the
prompt, and the head is computed for the possible tokens only. `ActionGrammar` says which action ids
can follow, `AnswerDecoder` asks the network. Source: reference/future-vla-model 4.

Legend of shapes: B rows, L tokens of a prompt, N past images, K codes of an image, Q future images,
C width of the language model.
"""

import codecs
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from vlatool.episode import Array, UInt8Array
from vlatool.models.future_vla.batch import SequenceEncoder, TokenSequence
from vlatool.models.future_vla.frame_cache import FrameCache
from vlatool.models.future_vla.model import FutureVla
from vlatool.models.policy import equal_groups
from vlatool.transforms.action_tokenizer import ActionTokenizer

_LONGEST_CHARACTER = 4  # bytes in UTF-8


class ChunkState(NamedTuple):
    """State of an action chunk that is being decoded."""

    partial: bytes  # bytes of a character that is not complete
    left: int  # number of characters that are missing, the partial one included


class ActionGrammar:
    """Knows which action ids can follow, so that every chunk gets its exact number of coefficients.

    Each coefficient is a character of a text in UTF-8, of which an action id is some bytes.
    """

    def __init__(
        self,
        fast: ActionTokenizer,
        values: int,  # coefficients of a chunk
        num_ids: int,  # action ids of the model
    ) -> None:
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
        """For each action id, the bytes that it leaves over and the characters it completes."""
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
    if rest and not _can_be_completed(rest):
        return None
    return ChunkState(rest, len(text))


def _can_be_completed(partial: bytes) -> bool:
    """True if the bytes begin a character; the decoder leaves over half a surrogate too."""
    for fill in (b"\x80", b"\xbf"):  # each lead byte takes one of them
        for missing in range(1, _LONGEST_CHARACTER):
            with suppress(UnicodeDecodeError):
                (partial + fill * missing).decode()
                return True
    return False


class Answer(NamedTuple):
    """Action ids, and the logarithm of their probability at a temperature of 1."""

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
        frames: FrameCache,  # tokens of images
    ) -> None:
        self._network = network
        self._tokens = encoder.tokens
        self._texts = encoder.answer_texts("vla")
        self._grammar = grammar
        self._frames = frames

    def actions(
        self,
        prompts: Sequence[TokenSequence],
        images: UInt8Array,  # past images uint8 [B, N, H, W, 3]
        temperature: float = 0.0,  # 0: the most probable tokens
        seeds: Sequence[Sequence[int]] = (),  # of each row, for a temperature above 0
    ) -> list[Answer]:
        """Returns the action ids of each row, without the end."""
        answers = [Answer([], 0.0)] * len(prompts)
        begin = [*self._texts.lead, self._tokens.action_start]
        for rows, filled in equal_groups([len(prompt.ids) for prompt in prompts]):
            reading = self._read([prompts[row] for row in filled], [begin] * len(filled))
            noise: list[np.random.Generator] = []
            if temperature:
                noise = [np.random.default_rng(seeds[row]) for row in filled]
            decoded = self._decode_actions(reading, images[filled], temperature, noise)
            for index, row in enumerate(rows):
                answers[row] = decoded[index]
        return answers

    def _decode_actions(
        self,
        reading: "_Reading",
        images: UInt8Array,
        temperature: float,
        noise: Sequence[np.random.Generator],  # of each row, for a temperature above 0
    ) -> list[Answer]:
        """Answers of rows with prompts of equal length."""
        tokens = self._tokens
        grammar = self._grammar
        choices = [*range(tokens.first_action, tokens.first_action + tokens.num_actions)]
        choices.append(tokens.action_end)
        weight = self._network.head_weight[torch.tensor(choices, device=reading.device)]
        ids: list[list[int]] = [[] for _ in images]
        log_probabilities = [0.0] * len(images)
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
            picked = index[:, 0].tolist()
            picked_logs = logs.gather(1, index)[:, 0].tolist()
            for row, number in enumerate(picked):
                if not is_open[row]:
                    continue
                log_probabilities[row] += picked_logs[row]
                if number == tokens.num_actions:  # the end
                    is_open[row] = False
                else:
                    ids[row].append(number)
                    states[row] = grammar.after(states[row], number)
            if not any(is_open):
                return [Answer(*row) for row in zip(ids, log_probabilities, strict=True)]
            following = torch.tensor([choices[number] for number in picked], device=hidden.device)
            hidden = reading.step(following[:, None])

    def codes(
        self,
        prompts: Sequence[TokenSequence],
        images: UInt8Array,  # past images uint8 [B, N, H, W, 3]
        action_ids: Sequence[Sequence[int]],  # action ids of each row
        count: int,  # number of future images, Q
    ) -> tuple[Array, Array]:
        """Returns the most probable codes of future images after the given actions.

        Returns:
            The codes int64 [B, Q, K], and the mean logarithm of their probabilities float64 [B].
        """
        begins: list[list[int]] = []
        lengths: list[int] = []
        for prompt, ids in zip(prompts, action_ids, strict=True):
            actions = self._tokens.of_actions(ids)
            middle = [*self._texts.middle, self._tokens.future_start]
            begins.append([*self._texts.lead, *actions, *middle])
            lengths.append(len(prompt.ids) + len(begins[-1]))
        codes = np.zeros((len(prompts), count, self._tokens.codes_per_image), np.int64)
        mean_logs = np.zeros(len(prompts))
        for rows, filled in equal_groups(lengths):
            reading = self._read([prompts[row] for row in filled], [begins[row] for row in filled])
            decoded, decoded_logs = self._decode_codes(reading, images[filled], count)
            codes[rows] = decoded[: len(rows)]
            mean_logs[rows] = decoded_logs[: len(rows)]
        return codes, mean_logs

    def _decode_codes(
        self, reading: "_Reading", images: UInt8Array, count: int
    ) -> tuple[Array, Array]:
        """Codes of rows with prompts of equal length; see `codes`."""
        tokens = self._tokens
        first = tokens.first_code
        width = tokens.codes_per_image
        weight = self._network.head_weight[first : first + tokens.num_codes]
        between = torch.tensor([tokens.future_end, tokens.future_start], device=reading.device)
        hidden = reading.begin(self._frames.features(images))
        codes: list[Tensor] = []
        logs: list[Tensor] = []
        for number in range(1, count * width + 1):
            scores = functional.linear(hidden, weight).float().log_softmax(dim=-1)
            log, code = scores.max(dim=-1, keepdim=True)
            logs.append(log)
            codes.append(code)
            if number == count * width:
                break
            following = code + first
            if number % width == 0:  # the next image
                following = torch.cat([following, between.expand(len(images), 2)], dim=1)
            hidden = reading.step(following)
        stacked = torch.cat(codes, dim=1).unflatten(1, (count, width)).cpu().numpy()
        return stacked, torch.cat(logs, dim=1).double().mean(dim=1).cpu().numpy()

    def _read(
        self, prompts: Sequence[TokenSequence], begins: Sequence[Sequence[int]]
    ) -> "_Reading":
        """Prompts of equal length, each with the begin of its answer."""
        ids = []
        positions = []
        for prompt, begin in zip(prompts, begins, strict=True):
            ids.append(np.concatenate([prompt.ids, np.asarray(begin, np.int64)]))
            steps = prompt.next_position + np.arange(len(begin))
            positions.append(np.concatenate([prompt.positions, np.tile(steps, (3, 1))], axis=1))
        return _Reading(self._network, np.stack(ids), np.stack(positions))


class _Reading:
    """Tokens that a network has read, with their keys and values."""

    def __init__(
        self,
        network: FutureVla,
        ids: Array,  # token ids of the prompts, int64 [B, L]
        positions: Array,  # their positions, int64 [B, 3, L]
    ) -> None:
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
