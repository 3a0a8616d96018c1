"""Action chunks of an episode, and the FAST tokenizer: chunks to ids of a vocabulary, and back.

The rounded cosine coefficients of a chunk are the code points of a text, which byte-level BPE
compresses. No state is kept between calls: shapes are arguments. `fit_tokenizer` makes a
vocabulary, `action_quality` measures what is lost.

Legend of shapes: N chunks, H steps, D action dimensions. Source: reference/future-vla 4.2.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from vlatool.episode import Array, PoseGroup
from vlatool.errors import DataError
from vlatool.transforms.relative import reference_keys, relative_fields


def past_frames(at: int, steps: int) -> list[int]:
    """The last `steps` frames up to and including frame `at`, oldest first, clipped at frame 0."""
    return [max(0, frame) for frame in range(at - steps + 1, at + 1)]


def future_frames(at: int, steps: int, frames: int) -> list[int]:
    """The `steps` frames after frame `at`, clipped at the last of `frames` frames."""
    return [min(frame, frames - 1) for frame in range(at + 1, at + 1 + steps)]


def with_padding(actions: Array, steps: int) -> Array:
    """Actions [F, A] padded for windows at the end of the episode: [F + steps, A].

    A padded action does not move and keeps the gripper: zeros, except for the last value, which
    repeats the last real action.
    """
    still = np.zeros_like(actions[-1:])
    still[:, -1] = actions[-1, -1]
    return np.concatenate([actions, np.repeat(still, steps, axis=0)])


def relative_chunks(
    fields: Mapping[str, Array], names: Sequence[str], groups: Sequence[PoseGroup], steps: int
) -> Array:
    """Actions [F, steps, A] from each frame on; poses are relative to the measured one at it.

    After the end of the episode the last action is repeated.

    Args:
        fields: Map from field to its values [F, C].
        names: Fields of an action, in order; fields of `groups` have the suffix of relative ones.
        groups: Poses with relative fields.
        steps: Number of actions.
    """
    needed = {*names}
    for group in groups:
        needed.update((group.position_key, group.rotation_key), reference_keys(group))
    needed &= fields.keys()
    frames = len(fields[min(needed)])
    indices = np.minimum(np.arange(frames)[:, None] + np.arange(steps), frames - 1)
    windows = {name: fields[name].reshape(frames, -1)[indices] for name in needed}
    windows |= relative_fields(windows, groups, 0)
    return np.concatenate([windows[name] for name in names], axis=2)


def future_actions(padded: Array, at: int, steps: int) -> Sequence[Sequence[float]]:
    """The `steps` actions from frame `at` on; `padded` is the result of `with_padding`."""
    return padded[at : at + steps].tolist()


_LAST_CODE_POINT = 0x10FFFF
_FIRST_SURROGATE = 0xD800
_LAST_SURROGATE = 0xDFFF
_BYTES = 256
_LEAST_FREQUENT = 2
_LONGEST_TOKEN = 10_000  # characters


@dataclass(frozen=True)
class EncodedActions:
    ids: list[list[int]]  # action ids of each chunk
    # int64 [N], number of coefficients per chunk below `min_token`, which were raised to it; such a
    # chunk is not decoded exactly
    clamped: Array


@dataclass(frozen=True)
class ActionTokenizer:
    """Chunks of normalized actions to ids and back; picklable."""

    document: str = field(repr=False)  # content of a `tokenizer.json`: byte-level BPE
    scale: float = 10.0  # coefficients per unit: the rounding step is `1 / scale`
    min_token: int = 0  # the coefficient that has code point 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled form without cached values, which a worker computes again."""
        return type(self), (self.document, self.scale, self.min_token)

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids; they are 0 to `vocab_size` - 1."""
        return len(self.id_bytes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of scale, `min_token`, vocabulary and merges, in any layout of the file."""
        model = json.loads(self.document)["model"]
        merges: list[list[str]] = []
        for merge in model["merges"]:
            if isinstance(merge, str):
                merge = merge.split(" ", 1)
            merges.append(merge)
        vocabulary = sorted(model["vocab"].items())
        text = json.dumps([float(self.scale), int(self.min_token), vocabulary, merges])
        return sha256(text.encode()).hexdigest()

    def load(self) -> None:
        """Builds the tokenizer for encoding and decoding; `tokenizers` raises plain `Exception`."""
        assert self._tokenizer is not None
        assert self.id_bytes is not None

    def coefficients(self, chunks: Array) -> Array:
        """Rounded, scaled cosine coefficients, int64 [N, H, D], of chunks [N, H, D].

        Computed in float32, as published; halves are rounded to even.
        """
        from scipy.fft import dct  # the import takes 0.2 s

        values = np.asarray(chunks, np.float32)
        if values.ndim != 3 or 0 in values.shape[1:]:
            raise ValueError(f"chunks have the shape {list(values.shape)}, not [N, H, D]")
        if not len(values):
            return np.zeros(values.shape, np.int64)
        _refuse(~np.isfinite(values), "dimension {dimension} is not finite (row {row})")
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            scaled = np.rint(np.asarray(dct(values, axis=1, norm="ortho")) * self.scale)
        is_huge = ~(np.abs(scaled) < 2**31)  # also true for NaN
        _refuse(is_huge, "dimension {dimension} is far too large (row {row})")
        return scaled.astype(np.int64)

    def encode(self, chunks: Array) -> list[list[int]]:
        """Action ids of each of the chunks [N, H, D]; raises as `encode_counted`."""
        return self.encode_counted(chunks).ids

    def encode_counted(self, chunks: Array) -> EncodedActions:
        """Action ids of chunks [N, H, D] of normalized actions."""
        texts, clamped = self.texts(chunks)
        # One by one: batches start threads, which gain nothing in worker processes.
        ids = [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        if not self.covers_all_bytes:
            self._check_lossless(texts, ids)
        return EncodedActions(ids, clamped)

    def texts(self, chunks: Array) -> tuple[list[str], Array]:
        """Texts with one character per coefficient, and number of clamped coefficients per chunk.

        Frequency is the outer, dimension the inner index. Raises as `encode_counted`.
        """
        shifted = self.coefficients(chunks) - self.min_token
        is_surrogate = (shifted >= _FIRST_SURROGATE) & (shifted <= _LAST_SURROGATE)
        _refuse(
            is_surrogate | (shifted > _LAST_CODE_POINT),
            "the coefficient of dimension {dimension}, frequency {row}, is too large to be encoded",
        )
        clamped = np.count_nonzero(shifted < 0, axis=(1, 2))
        length = shifted.shape[1] * shifted.shape[2]
        text = np.maximum(shifted, 0).astype("<u4").tobytes().decode("utf-32-le")
        texts = [text[start : start + length] for start in range(0, len(text), length)]
        return texts, clamped

    def decode(
        self, ids: Sequence[Sequence[int]], steps: int, width: int
    ) -> tuple[Array, list[str | None]]:
        """Action chunks of ids.

        Returns:
            Chunks, float32 [N, H, D], and for each the reason why its ids are invalid, or None. An
            invalid chunk is NaN.
        """
        from scipy.fft import idct

        chunks = np.full((len(ids), steps, width), np.nan)
        problems: list[str | None] = []
        valid: list[int] = []
        for index, sequence in enumerate(ids):
            try:
                text = self._text(sequence)
                if len(text) != steps * width:
                    expected = f"expected {steps} x {width}"
                    raise ValueError(f"the ids decode to {len(text)} coefficients, {expected}")
            except ValueError as error:
                problems.append(str(error))
                continue
            codes = np.array([ord(character) for character in text], np.float64)
            chunks[index] = codes.reshape(steps, width)
            problems.append(None)
            valid.append(index)
        if valid:
            coefficients = (chunks[valid] + self.min_token) / self.scale
            chunks[valid] = np.asarray(idct(coefficients, axis=1, norm="ortho"))
        return chunks.astype(np.float32), problems

    def _text(self, ids: Sequence[int]) -> str:
        """Text of ids; ValueError with the reason if they are invalid."""
        parts: list[bytes] = []
        for action_id in ids:
            part = self.id_bytes[action_id] if 0 <= action_id < self.vocab_size else None
            if part is None:
                raise ValueError(
                    f"id {action_id} is not one of the {self.vocab_size} of this tokenizer"
                )
            parts.append(part)
        try:
            return b"".join(parts).decode()
        except UnicodeDecodeError as error:
            problem = f"the ids are not complete characters (byte {error.start})"
            raise ValueError(problem) from None

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        # Built from text, never trained in place, which would keep parts of an earlier vocabulary.
        return Tokenizer.from_str(self.document)

    @cached_property
    def id_bytes(self) -> list[bytes | None]:
        """Bytes of each id; None for an unused id."""
        vocabulary: Mapping[str, int] = json.loads(self.document)["model"]["vocab"]
        table: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        for token, action_id in vocabulary.items():
            table[action_id] = _token_bytes(token)
        return table

    @cached_property
    def covers_all_bytes(self) -> bool:
        """True if every byte has an id; bytes without one would be dropped silently."""
        vocabulary = json.loads(self.document)["model"]["vocab"]
        return all(character in vocabulary for character in _BYTE_OF)

    def _check_lossless(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        for chunk, (text, sequence) in enumerate(zip(texts, ids, strict=True)):
            if b"".join(self.id_bytes[action_id] or b"" for action_id in sequence) != text.encode():
                raise DataError(
                    f"chunk {chunk}: a coefficient cannot be encoded with this vocabulary",
                    hint="fit a tokenizer on these data, with an id for every byte",
                    code="data.not_finite",
                    details={"chunk": chunk},
                )


def fit_tokenizer(
    chunks: Array, *, scale: float, vocab_size: int, lowest: int, alphabet: Sequence[str]
) -> ActionTokenizer:
    """Tokenizer with the most frequent runs of coefficients as vocabulary; deterministic.

    `chunks`: float [N, H, D], normalized; `lowest`: the coefficient that gets code point 0; lower
    ones are clamped to it.

    Pairs that occur once get no id, so there may be fewer ids than `vocab_size`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    rounding = ActionTokenizer("", scale, lowest)
    fitted = Tokenizer(models.BPE())
    fitted.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    fitted.post_processor = processors.ByteLevel(trim_offsets=False)
    fitted.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_LEAST_FREQUENT,
        special_tokens=[],
        initial_alphabet=list(alphabet),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    fitted.train_from_iterator(rounding.texts(chunks)[0], trainer)
    return ActionTokenizer(fitted.to_str(pretty=True), scale, lowest)


def byte_characters() -> list[str]:
    """Character of byte-level BPE for each byte from 0 to 255.

    Printable Latin-1 maps to itself, the other bytes to the code points from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, _BYTES)}
    characters: list[str] = []
    next_code = _BYTES
    for byte in range(_BYTES):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(next_code))
            next_code += 1
    return characters


_BYTE_OF = {character: byte for byte, character in enumerate(byte_characters())}


def _token_bytes(token: str) -> bytes:
    """Bytes of a token; a token with other characters is encoded as UTF-8."""
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode()


def _refuse(is_invalid: Array, problem: str) -> None:
    """Raises DataError if a value [N, H, D] is invalid; `problem` has {dimension} and {row}."""
    if is_invalid.any():
        chunk, row, dimension = np.argwhere(is_invalid)[0].tolist()
        raise DataError(
            f"chunk {chunk}: {problem.format(dimension=dimension, row=row)}",
            hint="check the actions and the normalization",
            code="data.not_finite",
            details={"chunk": chunk, "row": row, "dimension": dimension},
        )


_AT_ONCE = 4096  # chunks


@dataclass(frozen=True)
class ActionQuality:
    """Measurements on action chunks."""

    lengths: Array  # int64 [N], number of ids of each chunk
    exact: float  # share of chunks with rounded coefficients that are decoded exactly
    in_range: float  # share of coefficients that were not clamped
    rms: Array  # float64 [D], root mean square error of normalized actions
    largest: Array  # float64 [D], largest absolute error


def action_quality(tokenizer: ActionTokenizer, chunks: Array) -> ActionQuality:
    """Encodes and decodes chunks [N, H, D] of normalized actions and compares them."""
    lengths: list[int] = []
    exact = 0
    clamped = 0
    squares = np.zeros(chunks.shape[2])
    largest = np.zeros(chunks.shape[2])
    for start in range(0, len(chunks), _AT_ONCE):
        part = chunks[start : start + _AT_ONCE]
        encoded = tokenizer.encode_counted(part)
        decoded, problems = tokenizer.decode(encoded.ids, *part.shape[1:])
        assert not any(problems), problems
        lengths += map(len, encoded.ids)
        clamped += int(encoded.clamped.sum())
        is_equal = tokenizer.coefficients(decoded) == tokenizer.coefficients(part)
        exact += int(is_equal.all(axis=(1, 2)).sum())
        change = np.abs(decoded.astype(np.float64) - part)
        squares += (change**2).sum(axis=(0, 1))
        largest = np.maximum(largest, change.max(axis=(0, 1)))
    return ActionQuality(
        lengths=np.array(lengths),
        exact=exact / len(chunks),
        in_range=1 - clamped / chunks.size,
        rms=np.sqrt(squares / (len(chunks) * chunks.shape[1])),
        largest=largest,
    )


def coefficient_range(scale: float, chunks: Array) -> tuple[int, int]:
    """(lowest, highest) coefficient of chunks [N, H, D]; raises as `coefficients`."""
    rounding = ActionTokenizer("", scale)
    lows: list[int] = []
    highs: list[int] = []
    for start in range(0, len(chunks), _AT_ONCE):
        part = rounding.coefficients(chunks[start : start + _AT_ONCE])
        lows.append(int(part.min()))
        highs.append(int(part.max()))
    return min(lows), max(highs)
