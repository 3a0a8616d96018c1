"""Samples of one episode as arrays, in which each image, its codes and each action occur once.

Lines are rendered on request; a file of lines is a hundred times as large.

Legend: N images, the first F of them with codes, W windows, S samples, P past images of a window,
Q future images, K codes of an image. Source: reference/future-vla 5.3; formats/samples 4.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from vlatool.datasets.codes.layout import CODEBOOK_SIZE, CODES_PER_IMAGE
from vlatool.datasets.jsonl.layout import IMAGE, Kind, Window, reserved_word
from vlatool.episode import Array
from vlatool.events import counted
from vlatool.media.npz import read_arrays, write_arrays
from vlatool.storage.documents import parse_json

KINDS: tuple[Kind, ...] = ("vla", "wm")


class SampleSizes(NamedTuple):
    """Bounds of the numbers in samples; the manifests of the inputs have them."""

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
_OPEN = "<Rec>"
_CLOSE = "</Rec>"
_END = "."
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
        return question(self.kind, self.task, self.images, numbers_text(self.action_ids))

    def answer(self) -> str:
        segments = "".join(map(segment, self.codes.tolist()))
        return answer(self.kind, numbers_text(self.action_ids), segments)


@dataclass(frozen=True)
class TokenSample:
    """Content of one line."""

    conversation: Conversation
    images: tuple[str, ...]  # Paths of P images, relative to the folder of the data or absolute


def question(kind: Kind, task: str, images: int, ids: str) -> str:
    """Text of the user; `ids` are numbers separated by spaces."""
    word = reserved_word(task)
    if word:
        raise ValueError(f"the instruction contains the tag {word}")
    prompt = f"{_TASK}{task}".rstrip()
    return f"{IMAGE * images}{prompt}{_QUESTIONS[kind].format(ids=ids)}"


def answer(kind: Kind, ids: str, segments: str) -> str:
    """Text of the assistant; `segments` belong to all future images."""
    return f"{_ANSWERS[kind].format(ids=ids)}{segments}{_END}"


def segment(codes: Sequence[int]) -> str:
    """Codes of an image as text of an answer."""
    return f"{_OPEN}{numbers_text(codes)}{_CLOSE}"


def numbers_text(numbers: Sequence[int]) -> str:
    """Numbers separated by spaces."""
    return " ".join(map(str, numbers))


def render_sample(sample: TokenSample) -> bytes:
    """Line, UTF-8, with its newline; raises ValueError if the instruction contains a tag."""
    messages = [
        {"role": "user", "content": sample.conversation.question()},
        {"role": "assistant", "content": sample.conversation.answer()},
    ]
    row = {"messages": messages, "images": list(sample.images)}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def parse_sample(line: bytes, sizes: SampleSizes = PUBLISHED_SIZES) -> TokenSample:
    """Sample in a line; `sizes` bound its numbers."""
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
    roles: list[Any] = []
    texts: list[str] = []
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, Mapping) and isinstance(message.get("content"), str):
            roles.append(message.get("role"))
            texts.append(message["content"])
    if tuple(roles) != _ROLES or len(messages) != len(_ROLES):
        raise ValueError("expected one message of the user and one of the assistant, with texts")
    question_text, answer_text = texts
    match = _ANSWER.fullmatch(answer_text)
    if match is None:
        raise ValueError("the answer is none of the known ones")
    before, ids_text, after, segments = match.groups()
    ids = tuple(_numbers(ids_text, "action ids", sizes.action_ids))
    codes = _codes(segments, sizes)
    kind = _kind(f"{before}<Act>{{ids}}</Act>{after}")
    task, images = _task(kind, question_text, ids_text)
    conversation = Conversation(kind, task, images, ids, codes)
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
    end = len(question_text) - len(suffix)
    if match is None or not question_text.endswith(suffix) or match.end() > end:
        raise ValueError("the question does not match its answer")
    task = question_text[match.end() : end]
    return task.removeprefix(" "), len(match[1]) // len(IMAGE)


def _codes(segments: str, sizes: SampleSizes) -> Array:
    """The codes, uint16 [Q, K]."""
    rows: list[list[int]] = []
    for text in segments[len(_OPEN) : -len(_CLOSE)].split(_CLOSE + _OPEN):
        rows.append(_numbers(text, f"codes of image {len(rows)}", sizes.codebook_size))
    for number, row in enumerate(rows):
        if len(row) != sizes.codes_per_image:
            problem = f"has {counted(len(row), 'code')}, not {sizes.codes_per_image}"
            raise ValueError(f"image {number} {problem}")
    return np.array(rows, np.uint16)


def _numbers(text: str, label: str, limit: int) -> list[int]:
    numbers = [int(number) for number in text.split()]
    if not numbers or max(numbers) >= limit:
        raise ValueError(f"{label} are not 0 to {limit - 1}")
    return numbers


_TYPES: Mapping[str, str] = {
    "pictures": "U",
    "codes": "<u2",
    "images": "<i4",
    "future": "<i4",
    "ids": "<u2",
    "id_ends": "<i8",
    "tasks": "U",
    "kinds": "<u1",
    "windows": "<i4",
    "task_of": "<i4",
}


@dataclass(frozen=True)
class EpisodeSamples:
    pictures: tuple[str, ...]  # Paths of N images, relative to the folder of windows
    codes: Array  # uint16 [F, K], codes of the first F images
    images: Array  # int32 [W, P], indices into `pictures`
    future: Array  # int32 [W, Q], indices into `pictures`, below F
    ids: Array  # uint16, action ids of all windows, concatenated
    id_ends: Array  # int64 [W], end of the ids of each window
    tasks: tuple[str, ...]  # instructions
    kinds: Array  # uint8 [S], indices into `KINDS`
    windows: Array  # int32 [S], window of each sample
    task_of: Array  # int32 [S], indices into `tasks`

    def __len__(self) -> int:
        return len(self.kinds)

    def content(self) -> bytes:
        """Bytes of the file; equal samples give equal bytes."""
        arrays: dict[str, Array] = {}
        for name, dtype in _TYPES.items():
            arrays[name] = np.asarray(getattr(self, name), dtype)
        return write_arrays(arrays)

    @classmethod
    def parse(cls, content: bytes, sizes: SampleSizes = PUBLISHED_SIZES) -> "EpisodeSamples":
        """Samples in the bytes of a file; `sizes` bound the numbers."""
        try:
            values: dict[str, Any] = dict(read_arrays(content, [*_TYPES]))
        except KeyError as error:
            raise ValueError(f"lacks the array {error}") from None
        for name in ("pictures", "tasks"):
            values[name] = tuple(map(str, values[name].reshape(-1)))
        samples = cls(**values)
        samples._check(sizes)
        return samples

    def _check(self, sizes: SampleSizes) -> None:
        """Raises ValueError if an array does not fit the others, as in a damaged file."""
        shapes = (self.codes.ndim, self.images.ndim, self.future.ndim, self.id_ends.shape)
        if shapes != (2, 2, 2, (len(self.images),)) or len(self.future) != len(self.images):
            raise ValueError("arrays have shapes that do not fit each other")
        for task in self.tasks:
            word = reserved_word(task)
            if word:
                raise ValueError(f"an instruction contains the tag {word}")
        if self.codes.shape[1] != sizes.codes_per_image:
            count = f"{counted(self.codes.shape[1], 'code')}, not {sizes.codes_per_image}"
            raise ValueError(f"images have {count}")
        if not len(self.kinds) == len(self.windows) == len(self.task_of):
            raise ValueError("arrays of samples have different lengths")
        bounds = [0, *self.id_ends.tolist()]
        if bounds != sorted(bounds) or bounds[-1] != len(self.ids):
            raise ValueError("id_ends does not ascend to the number of action ids")
        limits = (
            (self.codes, sizes.codebook_size),
            (self.ids, sizes.action_ids),
            (self.images, len(self.pictures)),
            (self.future, min(len(self.codes), len(self.pictures))),
            (self.kinds, len(KINDS)),
            (self.windows, len(self.images)),
            (self.task_of, len(self.tasks)),
        )
        for indices, limit in limits:
            is_integer = indices.dtype.kind in "iu"
            if not is_integer or (indices.size and not 0 <= indices.min() <= indices.max() < limit):
                raise ValueError("arrays have values that are out of range")

    def sample(self, number: int, prefix: str = "") -> TokenSample:
        """Sample by its number; `number`: index from 0."""
        window = int(self.windows[number])
        conversation = Conversation(
            KINDS[int(self.kinds[number])],
            self.tasks[int(self.task_of[number])],
            self.images.shape[1],
            tuple(self._ids(window)),
            self.codes[self.future[window]],
        )
        paths = tuple(prefix + self.pictures[index] for index in self.images[window])
        return TokenSample(conversation, paths)

    def line(self, number: int, prefix: str = "") -> bytes:
        """Line of a sample, with its newline; arguments as in `sample`."""
        window = int(self.windows[number])
        paths: dict[int, str] = {}
        for index in self.images[window].tolist():
            paths[index] = _path_text(prefix, self.pictures[index])
        return self._line(number, *self._window_text(window, paths))

    def lines(self, prefix: str = "") -> Iterator[bytes]:
        """Lines of all samples; parts that samples of one window share are rendered once."""
        previous = -1
        shared = ("", "", "")
        paths = {index: _path_text(prefix, name) for index, name in enumerate(self.pictures)}
        for number, window in enumerate(self.windows.tolist()):
            if window != previous:
                previous = window
                shared = self._window_text(window, paths)
            yield self._line(number, *shared)

    def _line(self, number: int, ids: str, segments: str, images: str) -> bytes:
        """Line as `json.dumps` writes it; only the question may need escapes."""
        kind = KINDS[int(self.kinds[number])]
        task = self.tasks[int(self.task_of[number])]
        user = json.dumps(question(kind, task, self.images.shape[1], ids), ensure_ascii=False)
        return (
            f'{{"messages": [{{"role": "user", "content": {user}}}'
            f', {{"role": "assistant", "content": "{answer(kind, ids, segments)}"}}], '
            f'"images": [{images}]}}\n'
        ).encode()

    def _window_text(self, window: int, paths: Mapping[int, str]) -> tuple[str, str, str]:
        """Action ids, segments of codes, and paths as JSON."""
        segments = "".join([self._segments[index] for index in self.future[window].tolist()])
        images = ", ".join([paths[index] for index in self.images[window].tolist()])
        return numbers_text(self._ids(window)), segments, images

    def _ids(self, window: int) -> list[int]:
        start = int(self.id_ends[window - 1]) if window else 0
        return self.ids[start : int(self.id_ends[window])].tolist()

    @cached_property
    def _segments(self) -> list[str]:
        return [segment(row) for row in self.codes.tolist()]


def _path_text(prefix: str, name: str) -> str:
    return json.dumps(prefix + name, ensure_ascii=False)


def distinct_windows(windows: Sequence[Window]) -> tuple[list[Window], list[int]]:
    """Windows with distinct content, and the index among them of each window.

    Consecutive windows that differ only in kind or instruction count as one.
    """
    distinct: list[Window] = []
    indices: list[int] = []
    for window in windows:
        if not distinct or _content(distinct[-1]) != _content(window):
            distinct.append(window)
        indices.append(len(distinct) - 1)
    return distinct, indices


def _content(window: Window) -> tuple[object, ...]:
    return window.images, window.future, window.actions


def assemble(
    windows: Sequence[Window], action_ids: Sequence[Sequence[int]], codes: Mapping[str, Array]
) -> EpisodeSamples:
    """Samples of an episode; `codes`: uint16 [K] by the path of each future image."""
    distinct, indices = distinct_windows(windows)
    rows: dict[str, int] = {}  # by path; images with codes are first
    for window in distinct:
        for path in window.future:
            rows.setdefault(path, len(rows))
    code_rows = np.array([codes[path] for path in rows], np.uint16)
    for window in distinct:
        for path in window.images:
            rows.setdefault(path, len(rows))
    tasks: dict[str, int] = {}
    for window in windows:
        tasks.setdefault(window.task, len(tasks))
    return EpisodeSamples(
        pictures=tuple(rows),
        codes=code_rows,
        images=np.array([[rows[path] for path in item.images] for item in distinct], np.int32),
        future=np.array([[rows[path] for path in item.future] for item in distinct], np.int32),
        ids=np.array([*chain.from_iterable(action_ids)], np.uint16),
        id_ends=np.cumsum([len(ids) for ids in action_ids], dtype=np.int64),
        tasks=tuple(tasks),
        kinds=np.array([KINDS.index(item.kind) for item in windows], np.uint8),
        windows=np.array(indices, np.int32),
        task_of=np.array([tasks[item.task] for item in windows], np.int32),
    )
