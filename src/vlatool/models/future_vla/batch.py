"""Turns samples of the data kind `vla` into sequences of token ids, and into batches.

Legend of shapes: B samples, L tokens, P past images, Q future images, K codes of an image,
H height, W width. Source: reference/future-vla-model 1.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlatool.datasets.jsonl.layout import Kind
from vlatool.datasets.samples.episode import Conversation, answer, question
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.loading.vla.config import VlaSample, VlaShape
from vlatool.models.base import Batch
from vlatool.models.future_vla.token_ids import TokenIds, parse_tokenizer

# Label of tokens without loss.
NO_LABEL = -100
# Values of `segments`.
NO_SEGMENT, TEXT, ACTION, FUTURE, MOVING = range(5)
SEGMENTS = {TEXT: "text", ACTION: "action", FUTURE: "future"}
# Position ids of padding, as in transformers.
_PAD_POSITION = 1
# Lengths of batches are multiples of it, so that few shapes occur.
_BUCKET = 16
_CACHED_TEXTS = 1024
_ACTIONS = "<Act></Act>"
_FUTURES = "<Rec></Rec>"
_TAGS = re.compile(f"({_ACTIONS}|{_FUTURES})")
_EXAMPLE_ACTIONS = 8


class TokenSequence(NamedTuple):
    """Token ids of a conversation, or of its beginning."""

    ids: Array  # int64 [L]
    labels: Array  # int64 [L]: the id where it is to be predicted, else `NO_LABEL`
    segments: Array  # uint8 [L]: `TEXT`, `ACTION` or `FUTURE` where there is a label
    positions: Array  # int64 [3, L]: time, row and column of rotary embeddings

    @property
    def next_position(self) -> int:
        """Position of a token after the sequence."""
        return int(self.positions[:, -1].max()) + 1


class AnswerTexts(NamedTuple):
    """Token ids of the texts in an answer of one kind."""

    lead: tuple[int, ...]  # before the action ids
    middle: tuple[int, ...]  # between the action ids and the future images
    end: tuple[int, ...]  # after them: the full stop, <|im_end|> and a newline


class _Piece(NamedTuple):
    segment: int
    ids: Sequence[int] | Array


@dataclass(frozen=True)
class SequenceEncoder:
    """Turns conversations into token ids, in the layout of the chat; picklable. Each text between
    segments is tokenized on its own.
    """

    # content of the tokenizer.json; None: every word is token 0, for made-up batches
    tokenizer: str | None = field(repr=False)
    tokens: TokenIds  # map from numbers to token ids
    sides: tuple[int, ...]  # tokens per side of each of P past images

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled form without cached values, which a worker computes again."""
        return type(self), (self.tokenizer, self.tokens, self.sides)

    def encode(self, conversation: Conversation) -> TokenSequence:
        """Token ids of a whole conversation."""
        # The numbers of a conversation must fit the model.
        tokens = self.tokens
        width = conversation.codes.shape[1]
        if conversation.images not in (0, len(self.sides)):
            raise ValueError(
                f"has {counted(conversation.images, 'past image')}, but the model expects "
                f"{len(self.sides)}"
            )
        if width != tokens.codes_per_image:
            raise ValueError(f"has {width} codes per image, not {tokens.codes_per_image}")
        largest_id = max(conversation.action_ids, default=0)
        if largest_id >= tokens.num_actions:
            raise ValueError(f"has the action id {largest_id}, not below {tokens.num_actions}")
        largest_code = int(conversation.codes.max(initial=0))
        if largest_code >= tokens.num_codes:
            raise ValueError(f"has the code {largest_code}, not below {tokens.num_codes}")
        prompt = self._question(conversation)
        answer_text = answer(conversation.kind, "", _FUTURES)
        ids = [prompt.ids]
        segments = [prompt.segments]
        for piece in (*self._parts(answer_text, conversation), _Piece(TEXT, self._close)):
            ids.append(np.asarray(piece.ids, np.int64))
            segments.append(np.full(len(piece.ids), piece.segment, np.uint8))
        all_ids = np.concatenate(ids)
        labels = all_ids.copy()
        labels[: len(prompt.ids)] = NO_LABEL
        rest = np.arange(len(all_ids) - len(prompt.ids)) + prompt.next_position
        positions = np.concatenate([prompt.positions, np.tile(rest, (3, 1))], axis=1)
        return TokenSequence(all_ids, labels, np.concatenate(segments), positions)

    def prompt(
        self, task: str, kind: Kind = "vla", action_ids: Sequence[int] = ()
    ) -> TokenSequence:
        """Token ids up to the first token of an answer; `action_ids`: ids of the action tokenizer;
        only for `wm`.
        """
        codes = np.zeros((0, self.tokens.codes_per_image), np.uint16)
        ids = tuple(action_ids)
        return self._question(Conversation(kind, task, len(self.sides), ids, codes))

    def answer_texts(self, kind: Kind = "vla") -> AnswerTexts:
        """Token ids of the texts in an answer."""
        lead, middle, end = map(self.text, _TAGS.split(answer(kind, "", _FUTURES))[::2])
        return AnswerTexts(lead, middle, (*end, *self._close))

    def text(self, text: str) -> tuple[int, ...]:
        """Token ids of a text; texts of special tokens become these."""
        if text not in self._texts:
            if len(self._texts) >= _CACHED_TEXTS:
                self._texts.clear()
            self._texts[text] = self._tokenize(text)
        return self._texts[text]

    def _question(self, conversation: Conversation) -> TokenSequence:
        """Token ids up to the first token of the answer; no token has a label."""
        kind = conversation.kind
        task = conversation.task
        parts = list(self._parts(question(kind, task, 0, ""), conversation))
        self._check_text(parts)
        begin = [self.tokens.im_start, *self.text("user\n")]
        opening = [*self._close, self.tokens.im_start, *self.text("assistant\n")]
        rest = np.concatenate([*(np.asarray(piece.ids, np.int64) for piece in parts), opening])
        images = self._images if conversation.images else _Images.of(self.tokens, ())
        ids = np.concatenate([begin, images.ids, rest]).astype(np.int64)
        first = len(begin)
        second = len(begin) + images.span
        positions = np.concatenate(
            [
                np.tile(np.arange(first), (3, 1)),
                images.positions + first,
                np.tile(np.arange(len(rest)) + second, (3, 1)),
            ],
            axis=1,
        )
        return TokenSequence(
            ids, np.full(len(ids), NO_LABEL), np.zeros(len(ids), np.uint8), positions
        )

    def _parts(self, text: str, conversation: Conversation) -> Iterator[_Piece]:
        """Texts of a message, and its segments in place of empty tags."""
        for part in _TAGS.split(text):
            if part == _ACTIONS:
                yield _Piece(ACTION, self.tokens.of_actions(conversation.action_ids))
            elif part == _FUTURES:
                yield _Piece(FUTURE, self.tokens.of_codes(conversation.codes))
            elif part:
                yield _Piece(TEXT, self.text(part))

    def _check_text(self, parts: Sequence[_Piece]) -> None:
        """Raises ValueError if a text of the user has ids that stand for something else."""
        ids = [number for piece in parts if piece.segment == TEXT for number in piece.ids]
        reserved = self.tokens.reserved(ids)
        if reserved:
            raise ValueError(
                f"the instruction contains the token {reserved[0]}, which is reserved for codes, "
                "action ids or markers"
            )

    def _tokenize(self, text: str) -> tuple[int, ...]:
        if self._library is None:
            return (0,) * len(text.split())
        return tuple(self._library.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _close(self) -> tuple[int, ...]:
        return (self.tokens.im_end, *self.text("\n"))

    @cached_property
    def _images(self) -> "_Images":
        return _Images.of(self.tokens, self.sides)

    @cached_property
    def _texts(self) -> dict[str, tuple[int, ...]]:
        return {}

    @cached_property
    def _library(self) -> Any:
        """The tokenizer; None for made-up batches."""
        return None if self.tokenizer is None else parse_tokenizer(self.tokenizer)


class _Images(NamedTuple):
    """Tokens of all past images."""

    ids: Array  # int64 [L]
    positions: Array  # int64 [3, L], from 0
    span: int  # number of positions that they take

    @classmethod
    def of(cls, tokens: TokenIds, sides: Sequence[int]) -> "_Images":
        """Each image is at one time and takes as many positions as it has rows."""
        ids = [np.zeros(0, np.int64)]
        columns = [np.zeros((3, 0), np.int64)]
        start = 0
        for side in sides:
            inside = start + 1 + np.stack(np.meshgrid([0], range(side), range(side), indexing="ij"))
            edges = np.full((3, 1), start), np.full((3, 1), start + 1 + side)
            columns += [edges[0], inside.reshape(3, -1), edges[1]]
            ids.append(np.array(tokens.of_image(side)))
            start += side + 2
        return cls(np.concatenate(ids), np.concatenate(columns, axis=1), start)


@dataclass(frozen=True)
class VlaBatcher:
    """Samples to a padded batch; picklable."""

    encoder: SequenceEncoder  # encoder of the conversations
    max_length: int | None = None  # largest number of tokens of a sample; None: no limit

    def __call__(self, samples: Sequence[VlaSample]) -> Batch:
        """Encodes and pads the samples.

        Returns input_ids: int64 [B, L], padded on the right with <|endoftext|>. labels: int64 [B,
        L], `NO_LABEL` where nothing is to be predicted. segments: uint8 [B, L], see
        `TokenSequence`. attention_mask: bool [B, L], False for padding. position_ids: int64 [B, 3,
        L]. images: uint8 [B, P, H, W, 3].
        """
        rows = [self._encode(sample) for sample in samples]
        images = np.stack([sample.images for sample in samples])
        return {**padded(rows, self.encoder.tokens.end_of_text), "images": torch.from_numpy(images)}

    def _encode(self, sample: VlaSample) -> TokenSequence:
        try:
            row = self.encoder.encode(sample.conversation)
            if self.max_length is not None and len(row.ids) > self.max_length:
                raise ValueError(f"has {len(row.ids)} tokens, but the limit is {self.max_length}")
        except ValueError as error:
            raise DataError(
                f"{sample.key}: {error}",
                hint="train a model that fits these data, or leave the sample out",
                code="data.broken",
                details={"sample": sample.key},
            ) from None
        return row


def padded(rows: Sequence[TokenSequence], pad: int) -> dict[str, Tensor]:
    """Sequences padded on the right to one length; keys as `VlaBatcher` returns them."""
    longest = max(len(row.ids) for row in rows)
    length = -(-longest // _BUCKET) * _BUCKET
    shape = len(rows), length
    batch = {
        "input_ids": np.full(shape, pad, np.int64),
        "labels": np.full(shape, NO_LABEL, np.int64),
        "segments": np.full(shape, NO_SEGMENT, np.uint8),
        "attention_mask": np.zeros(shape, np.bool_),
        "position_ids": np.full((len(rows), 3, length), _PAD_POSITION, np.int64),
    }
    for at, row in enumerate(rows):
        stop = len(row.ids)
        batch["input_ids"][at, :stop] = row.ids
        batch["labels"][at, :stop] = row.labels
        batch["segments"][at, :stop] = row.segments
        batch["attention_mask"][at, :stop] = True
        batch["position_ids"][at, :, :stop] = row.positions
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def with_futures(batch: Batch, future_start: int, is_kept: Tensor) -> Batch:
    """The batch with only some of its future images, bool [B, Q]. What is left keeps its positions.
    Nothing is predicted right after a gap.
    """
    is_future = batch["segments"] >= FUTURE
    number = (is_future & (batch["input_ids"] == future_start)).cumsum(dim=1) - 1
    is_used = ~is_future | is_kept.gather(1, number.clamp(min=0))
    is_used &= batch["attention_mask"]
    is_predicted = is_used & is_used.roll(1, dims=1)
    labels = batch["labels"].masked_fill(~is_predicted, NO_LABEL)
    changed = {**batch, "labels": labels, "attention_mask": is_used}
    length = -(-int(is_used.sum(dim=1).max()) // _BUCKET) * _BUCKET
    order = (~is_used).int().argsort(dim=1, stable=True)[:, :length]
    row = ("input_ids", "labels", "segments", "attention_mask")
    positions = batch["position_ids"].take_along_dim(order[:, None], dim=2)
    return {
        **batch,
        **{name: changed[name].take_along_dim(order, dim=1) for name in row},
        "position_ids": positions,
    }


def moving_codes(batch: Batch, per_step: int) -> Tensor:
    """Segments of a batch, where codes that change at their place of a camera are `MOVING`;
    `per_step`: tokens of the images of a step.
    """
    ids = batch["input_ids"]
    segments = batch["segments"]
    is_future = segments == FUTURE
    offset = (is_future.cumsum(dim=1) - 1) % per_step
    first = is_future.int().argmax(dim=1, keepdim=True) + offset
    differs = is_future & (ids != ids.gather(1, first.clamp(max=ids.shape[1] - 1)))
    changes = offset.new_zeros(len(ids), per_step).scatter_add(1, offset, differs.long())
    return segments.masked_fill(is_future & (changes.gather(1, offset) > 0), MOVING)


def example_batch(tokens: TokenIds, sides: tuple[int, ...], shape: VlaShape, size: int) -> Batch:
    """A made-up batch of `size` samples of a shape, which needs no tokenizer."""
    codes = np.zeros((shape.future_images, tokens.codes_per_image), np.uint16)
    action_ids = (0,) * _EXAMPLE_ACTIONS
    images = np.full((shape.past_images, *shape.image_size, 3), 128, np.uint8)
    conversation = Conversation("vla", "example", len(images), action_ids, codes)
    sample = VlaSample("example", conversation, images)
    return VlaBatcher(SequenceEncoder(None, tokens, sides))([sample] * size)
