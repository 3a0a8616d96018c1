"""Maps action ids and codes to token ids of the language model. No torch.

The map belongs to the model: data have the numbers and their sizes only.

Legend of shapes: Q images, K codes of an image.
Source: reference/future-vla 5.2.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from pydantic import Field

from vlatool.config.base import ConfigModel
from vlatool.datasets.jsonl.layout import Kind
from vlatool.datasets.samples.episode import SampleSizes, answer, question
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.models.pretrained import tokenizers

# Tokens of the vocabulary by the key of their id.
_SPECIAL: Mapping[str, str] = {
    "end_of_text": "<|endoftext|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
}
# Tokens around action ids and around the codes of an image, which Qwen3-VL does not have.
_MARKERS: Mapping[str, str] = {
    "action_start": "<|A_START|>",
    "action_end": "<|A_END|>",
    "future_start": "<|B_START|>",
    "future_end": "<|B_END|>",
}
_BYTES = 256
# Room for codes and action ids in the tiny tokenizer.
TINY_RESERVED = 1280
# Texts with words of the tiny tokenizer, besides those of all samples.
_TINY_TASK = "put the red, green or blue block in the bin"
_TINY_ROLES = ("user\n", "assistant\n")


class TokenIds(ConfigModel):
    """Token ids of markers, action ids and codes. Action id a is the token `first_action + a`, code
    c the token `first_code + c`.
    """

    end_of_text: int = Field(ge=0, description="Id of <|endoftext|>, which also pads batches.")
    im_start: int = Field(ge=0, description="Id of <|im_start|>.")
    im_end: int = Field(ge=0, description="Id of <|im_end|>.")
    vision_start: int = Field(ge=0, description="Id of <|vision_start|>.")
    vision_end: int = Field(ge=0, description="Id of <|vision_end|>.")
    image_pad: int = Field(ge=0, description="Id of <|image_pad|>.")
    action_start: int = Field(ge=0, description="Id of <|A_START|>, before action ids.")
    action_end: int = Field(ge=0, description="Id of <|A_END|>, after action ids.")
    future_start: int = Field(ge=0, description="Id of <|B_START|>, before codes of an image.")
    future_end: int = Field(ge=0, description="Id of <|B_END|>, after codes of an image.")
    first_action: int = Field(ge=0, description="Token of action id 0.")
    num_actions: int = Field(ge=1, description="Number of action ids.")
    first_code: int = Field(ge=0, description="Token of code 0.")
    num_codes: int = Field(ge=1, description="Number of codes.")
    codes_per_image: int = Field(ge=1, description="Number of codes of an image.")

    @classmethod
    def of(cls, tokenizer: Any, sizes: SampleSizes) -> "TokenIds":
        """The published rule: action ids end directly below <|endoftext|>, codes below these. For
        the tokenizer of Qwen3-VL and the published sizes these are the published ids.
        """
        return cls.of_ids(special_ids(tokenizer), sizes)

    @classmethod
    def of_ids(cls, special: Mapping[str, int], sizes: SampleSizes) -> "TokenIds":
        ids = dict(special)
        first_action = ids["end_of_text"] - sizes.action_ids
        first_code = first_action - sizes.codebook_size
        if first_code < _BYTES:
            available = max(ids["end_of_text"] - _BYTES, 0)
            raise UsageError(
                f"the text tokenizer has room for {available} codes and action ids, but the data "
                f"have {sizes.codebook_size} codes and {sizes.action_ids} action ids",
                hint="use a base model with a larger vocabulary, or smaller tokenizers",
                code="usage.bad_value",
            )
        return cls(
            **ids,
            first_action=first_action,
            num_actions=sizes.action_ids,
            first_code=first_code,
            num_codes=sizes.codebook_size,
            codes_per_image=sizes.codes_per_image,
        )

    @property
    def sizes(self) -> SampleSizes:
        return SampleSizes(self.codes_per_image, self.num_codes, self.num_actions)

    @property
    def vocabulary(self) -> int:
        """Smallest number of rows of the embedding: one more than the largest id."""
        special = (getattr(self, key) for key in (*_SPECIAL, *_MARKERS))
        return 1 + max(*special, self.first_action + self.num_actions - 1)

    def of_actions(self, action_ids: Sequence[int]) -> list[int]:
        """Tokens of a segment of action ids, with the markers around it."""
        first = self.first_action
        return [self.action_start, *(first + number for number in action_ids), self.action_end]

    def of_codes(self, codes: Array) -> Array:
        """Tokens int64 [Q (K + 2)] of codes [Q, K] of images, with the markers around each row."""
        rows = np.empty((len(codes), codes.shape[1] + 2), np.int64)
        rows[:, 0], rows[:, -1] = self.future_start, self.future_end
        rows[:, 1:-1] = codes.astype(np.int64) + self.first_code
        return rows.reshape(-1)

    def of_image(self, side: int) -> list[int]:
        """Tokens of a past image of side x side tokens, with the markers around it."""
        return [self.vision_start, *[self.image_pad] * (side * side), self.vision_end]

    def reserved(self, token_ids: Sequence[int]) -> list[int]:
        """The given token ids that an instruction must not contain."""
        special = {getattr(self, key) for key in (*_SPECIAL, *_MARKERS)}
        stops = (
            (self.first_code, self.first_code + self.num_codes),
            (self.first_action, self.first_action + self.num_actions),
        )
        return [
            number
            for number in token_ids
            if number in special or any(start <= number < stop for start, stop in stops)
        ]


def special_ids(tokenizer: Any) -> dict[str, int]:
    """Token id of each special token and marker, by its key in `TokenIds`."""
    ids = {key: tokenizer.token_to_id(token) for key, token in _SPECIAL.items()}
    missing = [_SPECIAL[key] for key, token_id in ids.items() if token_id is None]
    if missing:
        raise DataError(
            f"the text tokenizer has no token {missing[0]}",
            hint="use the tokenizer.json of Qwen3-VL, or of `vlatool compose`",
            code="data.mismatch",
            details={"missing": missing},
        )
    new = tokenizer.get_vocab_size(with_added_tokens=True)
    for key, token in _MARKERS.items():
        ids[key] = tokenizer.token_to_id(token)
        if ids[key] is None:
            ids[key], new = new, new + 1
    return ids


def add_markers(tokenizer: Any) -> None:
    """Adds the four markers to a text tokenizer (`tokenizers.Tokenizer`), unless it has them."""
    added = tokenizers().AddedToken
    markers: list[Any] = []
    for token in _MARKERS.values():
        if tokenizer.token_to_id(token) is None:
            markers.append(added(token, special=True, normalized=False))
    tokenizer.add_special_tokens(markers)


def parse_tokenizer(document: str) -> Any:
    """Text tokenizer (`tokenizers.Tokenizer`) of a tokenizer.json, with the four markers."""
    library = tokenizers()
    try:
        tokenizer = library.Tokenizer.from_str(document)
    except Exception as error:  # noqa: BLE001 - the library raises no narrower type
        raise DataError(
            f"the text tokenizer of the model cannot be read: {error}",
            hint="copy the model or the run again",
            code="data.broken",
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    add_markers(tokenizer)
    return tokenizer


def tiny_tokenizer(reserved: int = TINY_RESERVED) -> Any:
    """A `tokenizers.Tokenizer` of UTF-8 bytes and a few words, with all special tokens."""
    library = tokenizers()
    words, merges = _words(library)
    words += [f"<|reserved_{number}|>" for number in range(reserved)]
    model = library.models.BPE(
        vocab={word: number for number, word in enumerate(words)}, merges=merges
    )
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [library.AddedToken(t, special=True, normalized=False) for t in _SPECIAL.values()]
    )
    add_markers(tokenizer)
    return tokenizer


def _words(library: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """Bytes, the words of all questions and answers, and the merges that make these words."""
    letters = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(initial_alphabet=letters, show_progress=False)
    texts: list[str] = []
    for kind in get_args(Kind):
        texts += [question(kind, _TINY_TASK, 0, ""), answer(kind, "", ""), *_TINY_ROLES]
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    merged = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    words = [*letters, *(word for word in merged if len(word) > 1)]
    return words, [(first, second) for first, second in trained["merges"]]
