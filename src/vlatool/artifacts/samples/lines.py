"""Lines of samples: question and answer, with actions and future images as integers.

Legend: P past images, Q future images, K codes of an image.
Source: reference/future-vla 5.1, 5.2; formats/samples 2, 3.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vlatool.artifacts.codes.format import CODEBOOK_SIZE, CODES_PER_IMAGE
from vlatool.artifacts.windows.format import IMAGE, RESERVED, Kind
from vlatool.episode import Array
from vlatool.events import counted
from vlatool.storage.documents import parse_json

KINDS: tuple[Kind, ...] = ("vla", "wm")


class SampleSizes(NamedTuple):
    """Sizes of the numbers in samples, which the manifests of their inputs have."""

    codes_per_image: int  # K
    codebook_size: int  # codes are below it
    action_ids: int  # action ids are below it


# Sizes of published samples, which have no manifest. Source: reference/future-vla 5.1, 5.2
PUBLISHED_SIZES = SampleSizes(CODES_PER_IMAGE, CODEBOOK_SIZE, 2048)

_TASK = "Task: "
_QUESTIONS: Mapping[Kind, str] = {
    "vla": ". Based on the images, what action should be executed?",
    "wm": ". Based on the images, If we execute the action<Act>{ids}</Act>, "
    "what will be the resulting state?",
}
_ANSWERS: Mapping[Kind, str] = {
    "vla": "The robot should execute<Act>{ids}</Act>, which will lead to the next state",
    "wm": "After executing<Act>{ids}</Act>, the system will transition to the state",
}
_OPEN, _CLOSE, _END = "<Rec>", "</Rec>", "."
_ANSWER = re.compile(r"([^<]*)<Act>([0-9 ]*)</Act>([^<]*)((?:<Rec>[0-9 ]*</Rec>)+)\.")
_PROMPT = re.compile(rf"((?:{IMAGE})*){_TASK.rstrip()}")
_KEYS = ("messages", "images")
_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """Conversation of a line."""

    kind: Kind  # `vla` asks for the action, `wm` (world model) for the state after the action
    task: str  # the instruction
    images: int  # number of past images, P
    action_ids: tuple[int, ...]  # ids of the action tokenizer
    codes: Array  # uint16 [Q, K], codes of the future images, frame by frame, cameras in order

    def question(self) -> str:
        """Text of the user."""
        return question(self.kind, self.task, self.images, numbers_text(self.action_ids))

    def answer(self) -> str:
        """Text of the assistant."""
        segments = "".join(map(segment, self.codes.tolist()))
        return answer(self.kind, numbers_text(self.action_ids), segments)


@dataclass(frozen=True)
class TokenSample:
    """Content of one line."""

    conversation: Conversation
    images: tuple[str, ...]  # Paths of P images, relative to the folder of the data or absolute


def question(kind: Kind, task: str, images: int, ids: str) -> str:
    """Text of the user; `ids` are numbers separated by spaces."""
    reserved = [word for word in RESERVED if word in task]
    if reserved:
        raise ValueError(f"the instruction contains the tag {reserved[0]}")
    return f"{IMAGE * images}{f'{_TASK}{task}'.rstrip()}{_QUESTIONS[kind].format(ids=ids)}"


def answer(kind: Kind, ids: str, segments: str) -> str:
    """Text of the assistant; `segments` are those of all future images."""
    return f"{_ANSWERS[kind].format(ids=ids)}{segments}{_END}"


def segment(codes: Sequence[int]) -> str:
    """Codes of an image as text of an answer."""
    return f"{_OPEN}{numbers_text(codes)}{_CLOSE}"


def numbers_text(numbers: Sequence[int]) -> str:
    """Numbers separated by spaces."""
    return " ".join(map(str, numbers))


def render_line(question_text: str, answer_text: str, images: Sequence[str]) -> bytes:
    """Line of a sample, UTF-8, with its newline."""
    messages = [
        {"role": role, "content": text}
        for role, text in zip(_ROLES, (question_text, answer_text), strict=True)
    ]
    row = {"messages": messages, "images": list(images)}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def render_sample(sample: TokenSample) -> bytes:
    """Line, UTF-8, with its newline; raises ValueError if the instruction contains a tag."""
    return render_line(sample.conversation.question(), sample.conversation.answer(), sample.images)


def parse_sample(line: bytes, sizes: SampleSizes = PUBLISHED_SIZES) -> TokenSample:
    """Sample in a line, whose numbers have these sizes."""
    row = parse_json(line)
    if not isinstance(row, Mapping) or tuple(row) != _KEYS:
        raise ValueError(f"expected an object with the keys {', '.join(_KEYS)}, in this order")
    images: Any = row["images"]
    if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
        raise ValueError("images is not a list of paths")
    conversation = parse_messages(row["messages"], sizes)
    if conversation.images != len(images):
        raise ValueError(
            f"the question has {conversation.images} {IMAGE}, {len(images)} are listed"
        )
    return TokenSample(conversation, tuple(images))


def parse_messages(messages: Any, sizes: SampleSizes = PUBLISHED_SIZES) -> Conversation:
    """Conversation in the two messages of a line."""
    entries: list[Any] = messages if isinstance(messages, list) else []
    pairs = [
        (entry.get("role"), entry.get("content")) for entry in entries if isinstance(entry, Mapping)
    ]
    texts = [text for _, text in pairs if isinstance(text, str)]
    if [role for role, _ in pairs] != [*_ROLES] or not len(texts) == len(entries) == len(_ROLES):
        raise ValueError("expected one message of the user and one of the assistant, with texts")
    question_text, answer_text = texts
    match = _ANSWER.fullmatch(answer_text)
    if match is None:
        raise ValueError("the answer is none of the known ones")
    ids = tuple(_numbers(match[2], "action ids", sizes.action_ids))
    codes = _codes(match[4], sizes)
    kind = _kind(f"{match[1]}<Act>{{ids}}</Act>{match[3]}")
    conversation = Conversation(kind, *_task(kind, question_text, match[2]), ids, codes)
    if (conversation.question(), conversation.answer()) != (question_text, answer_text):
        raise ValueError("numbers have extra spaces or leading zeros")
    return conversation


def _kind(lead: str) -> Kind:
    for kind in KINDS:
        if _ANSWERS[kind] == lead:
            return kind
    raise ValueError("the answer is none of the known ones")


def _task(kind: Kind, question_text: str, ids: str) -> tuple[str, int]:
    """Instruction and number of past images."""
    match = _PROMPT.match(question_text)
    suffix = _QUESTIONS[kind].format(ids=ids)
    if (
        match is None
        or not question_text.endswith(suffix)
        or match.end() > len(question_text) - len(suffix)
    ):
        raise ValueError("the question does not match its answer")
    task = question_text[match.end() : -len(suffix)]
    return task.removeprefix(" "), len(match[1]) // len(IMAGE)


def _codes(segments: str, sizes: SampleSizes) -> Array:
    """The codes, uint16 [Q, K]."""
    parts = segments[len(_OPEN) : -len(_CLOSE)].split(_CLOSE + _OPEN)
    count, limit = sizes.codes_per_image, sizes.codebook_size
    rows = [_numbers(part, f"codes of image {n}", limit) for n, part in enumerate(parts)]
    for number, row in enumerate(rows):
        if len(row) != count:
            raise ValueError(f"image {number} has {counted(len(row), 'code')}, not {count}")
    return np.array(rows, np.uint16)


def _numbers(text: str, label: str, limit: int) -> list[int]:
    numbers = [int(number) for number in text.split()]
    if not numbers or max(numbers) >= limit:
        raise ValueError(f"{label} are not 0 to {limit - 1}")
    return numbers
