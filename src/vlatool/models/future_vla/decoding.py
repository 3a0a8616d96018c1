"""Constrained decoding of answers: action ids that form a chunk, and the codes of future images.

Tokens that an answer must have, such as its text, are not decoded but read with the prompt, and the
head is computed for the possible tokens only.

Source: reference/future-vla-model 4.1.

Legend of shapes: B rows, L tokens of a prompt, N past images, Q future images, K codes of an image,
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
    """Action ids that can follow, so that every chunk has exactly its number of coefficients.

    Each coefficient is a character of a text in UTF-8, of which an action id is some bytes.
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


class AnswerDecoder:
    """Decodes answers of a network, the most probable token at a time.

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

    def actions(self, prompts: Sequence[TokenSequence], images: UInt8Array) -> list[list[int]]:
        """Returns the action ids of each row, without the end; `images`: past images uint8 [B, N,
        H, W, 3].
        """
        answers: list[list[int]] = [[] for _ in prompts]
        begin = [*self._texts.lead, self._tokens.action_start]
        for rows, filled in equal_groups([len(prompt.ids) for prompt in prompts]):
            reading = self._read([prompts[row] for row in filled], [begin] * len(filled))
            decoded = self._actions(reading, images[filled])
            answers = _replaced(answers, rows, decoded)
        return answers

    def codes(
        self,
        prompts: Sequence[TokenSequence],
        images: UInt8Array,
        action_ids: Sequence[Sequence[int]],  # action ids of each row
        count: int,  # number of future images, Q
    ) -> Array:
        """Returns the codes of future images after the given actions, int64 [B, Q, K]."""
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
        lengths = [
            len(prompt.ids) + len(begin) for prompt, begin in zip(prompts, begins, strict=True)
        ]
        for rows, filled in equal_groups(lengths):
            reading = self._read([prompts[row] for row in filled], [begins[row] for row in filled])
            codes[rows] = self._codes(reading, images[filled], count)[: len(rows)]
        return codes

    def _read(
        self, prompts: Sequence[TokenSequence], begins: Sequence[Sequence[int]]
    ) -> "_Reading":
        """Prompts of equal length, continued by the beginnings of their answers."""
        ids, positions = [], []
        for prompt, begin in zip(prompts, begins, strict=True):
            ids.append(np.concatenate([prompt.ids, np.asarray(begin, np.int64)]))
            steps = prompt.next_position + np.arange(len(begin))
            positions.append(np.concatenate([prompt.positions, np.tile(steps, (3, 1))], axis=1))
        return _Reading(self._network, np.stack(ids), np.stack(positions))

    def _actions(self, reading: "_Reading", images: UInt8Array) -> list[list[int]]:
        """Action ids of rows with prompts of equal length."""
        tokens, grammar = self._tokens, self._grammar
        choices = [*range(tokens.first_action, tokens.first_action + tokens.num_actions)]
        choices.append(tokens.action_end)
        weight = self._network.head_weight[torch.tensor(choices, device=reading.device)]
        answers: list[list[int]] = [[] for _ in images]
        states = [grammar.start] * len(images)
        is_open = [True] * len(images)
        hidden = reading.begin(self._frames.features(images))
        while True:
            allowed = torch.from_numpy(np.stack([grammar.allowed(state) for state in states]))
            scores = functional.linear(hidden, weight).float()
            scores = scores.masked_fill(~allowed.to(scores.device), -torch.inf)
            chosen = scores.argmax(dim=-1).tolist()
            for row, number in enumerate(chosen):
                is_open[row] = is_open[row] and number < tokens.num_actions
                if is_open[row]:
                    answers[row].append(number)
                    states[row] = grammar.after(states[row], number)
            if not any(is_open):
                return answers
            following = torch.tensor([choices[number] for number in chosen], device=hidden.device)
            hidden = reading.step(following[:, None])

    def _codes(self, reading: "_Reading", images: UInt8Array, count: int) -> Array:
        """Codes [B, Q, K] of rows with prompts of equal length."""
        tokens = self._tokens
        first, width = tokens.first_code, tokens.codes_per_image
        weight = self._network.head_weight[first : first + tokens.num_codes]
        between = torch.tensor([tokens.future_end, tokens.future_start], device=reading.device)
        hidden = reading.begin(self._frames.features(images))
        chosen: list[Tensor] = []
        for number in range(count * width):
            code = functional.linear(hidden, weight).float().argmax(dim=-1, keepdim=True)
            chosen.append(code)
            following = code + first
            if number == count * width - 1:
                break
            if number % width == width - 1:
                following = torch.cat([following, between.expand(len(images), 2)], dim=1)
            hidden = reading.step(following)
        return torch.cat(chosen, dim=1).unflatten(1, (count, width)).cpu().numpy()


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


def _replaced(
    answers: list[list[int]], rows: Sequence[int], decoded: Sequence[list[int]]
) -> list[list[int]]:
    chosen = dict(zip(rows, decoded, strict=False))
    return [chosen.get(row, answer) for row, answer in enumerate(answers)]
