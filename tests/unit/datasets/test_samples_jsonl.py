"""Rendering and parsing of the published text of samples, and their packed form.

Source: reference/future-vla 5.1.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlatool.datasets.jsonl.layout import (
    Kind,
    Window,
    parse_window,
    parse_windows,
    render_window,
)
from vlatool.datasets.samples import episode

CODES = np.arange(64, dtype=np.uint16).reshape(2, 32)
SEGMENTS = "".join(f"<Rec>{' '.join(map(str, row))}</Rec>" for row in CODES.tolist())
TEXTS = {
    "vla": (
        "<image><image>Task: fold it. Based on the images, what action should be executed?",
        (
            "The robot should execute<Act>7 2047 0</Act>, which will lead to the next state"
            f"{SEGMENTS}."
        ),
    ),
    "wm": (
        (
            "<image><image>Task: fold it. Based on the images, If we execute the "
            "action<Act>7 2047 0</Act>, what will be the resulting state?"
        ),
        f"After executing<Act>7 2047 0</Act>, the system will transition to the state{SEGMENTS}.",
    ),
}


def conversation(
    kind: Any = "vla", task: str = "fold it", ids: tuple[int, ...] = (7, 2047, 0)
) -> Any:
    return episode.Conversation(kind, task, 2, ids, CODES)


def line_of(asked: str, answered: str, images: object = ("a.png", "b.png")) -> bytes:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return json.dumps({"messages": turns, "images": images}).encode()


@pytest.mark.parametrize("kind", TEXTS)
def test_text_is_the_published_one(kind: str) -> None:
    assert (conversation(kind).question(), conversation(kind).answer()) == TEXTS[kind]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("task", ["fold it", 'say "no"\\', "лей чай", "", "a. Based on the images"])
def test_rendered_line_is_parsed_back(kind: str, task: str) -> None:
    sample = episode.TokenSample(conversation(kind, task), ("../A/a.png", "../A/b.png"))
    line = episode.render_sample(sample)
    parsed = episode.parse_sample(line)
    assert (parsed.conversation.kind, parsed.conversation.task, parsed.images) == (
        kind,
        task,
        sample.images,
    )
    assert parsed.conversation.action_ids == (7, 2047, 0)
    np.testing.assert_array_equal(parsed.conversation.codes, CODES)
    assert episode.render_sample(parsed) == line
    assert line.endswith(b"\n")
    assert [*json.loads(line)] == ["messages", "images"]


def test_trailing_space_of_an_instruction_is_removed_as_published() -> None:
    assert conversation(task="fold it \n").question() == TEXTS["vla"][0]


def test_published_lines_are_parsed_and_rendered_unchanged() -> None:
    beside = Path(__file__).parents[3].parent / "shared/data/guide_sample.jsonl"
    path = Path(os.environ.get("VLATOOL_GUIDE_SAMPLE", beside))
    if not path.is_file():
        pytest.skip(f"no published lines at {path}; set VLATOOL_GUIDE_SAMPLE to their file")
    kinds: list[Kind] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        conversation = episode.parse_messages(messages)
        assert [conversation.question(), conversation.answer()] == [
            message["content"] for message in messages
        ]
        assert (conversation.images, conversation.codes.shape) == (32, (32, 32))
        assert conversation.action_ids[:4] == (300, 496, 1179, 273)
        kinds.append(conversation.kind)
    assert kinds == ["vla", "wm"]


ASKED, ANSWERED = TEXTS["vla"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"messages": []}',
        line_of(ASKED, ANSWERED, "a.png"),
        line_of(ASKED, ANSWERED, ["a.png"]),
        line_of(ASKED, ANSWERED[:-1]),
        line_of(ASKED, ANSWERED.replace("2047", "2048")),
        line_of(ASKED, ANSWERED.replace("7 2047", "7  2047")),
        line_of(ASKED, ANSWERED.replace("<Act>7", "<Act>07")),
        line_of(ASKED, ANSWERED.replace(" 63<", " 4096<")),
        line_of(ASKED, ANSWERED.replace(" 63<", "<")),
        line_of(ASKED, ANSWERED.replace("62 63", "62 x")),
        line_of(ASKED, ANSWERED.replace("</Rec><Rec>", "</Rec> <Rec>")),
        line_of(ASKED, ANSWERED.replace("should execute", "shall execute")),
        line_of(ASKED, TEXTS["wm"][1]),
        line_of(TEXTS["wm"][0].replace("2047", "2046"), TEXTS["wm"][1]),
        line_of(ASKED.replace("images, what", "observation, what"), ANSWERED),
        line_of(ASKED.replace("Task: ", ""), ANSWERED),
        line_of("<image>" + ASKED, ANSWERED),
    ],
)
def test_an_invalid_line_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        episode.parse_sample(line)


@pytest.mark.parametrize("word", ["<image>", "<Act>", "</Act>", "<Rec>", "</Rec>", "<action>"])
def test_an_instruction_with_a_tag_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=word):
        episode.render_sample(episode.TokenSample(conversation(task=f"do {word}"), ()))


def windows() -> list[Window]:
    """Two windows, each of both kinds."""
    return [
        Window(kind, f"task {step}", (f"p{step}", "p0"), (f"p{step + 1}", "p3"), [[0.1 * step]])
        for step in range(2)
        for kind in episode.KINDS
    ]


def packed() -> episode.EpisodeSamples:
    codes = {f"p{n}": np.arange(32, dtype=np.uint16) + 32 * n for n in range(4)}
    return episode.assemble(windows(), [[5, 6], [7]], codes)


def test_windows_with_two_questions_are_encoded_once() -> None:
    distinct, indices = episode.distinct_windows(windows())
    assert ([window.task for window in distinct], indices) == (["task 0", "task 1"], [0, 0, 1, 1])


def test_packed_samples_render_the_lines_of_samples_and_are_read_back() -> None:
    samples = packed()
    expected = [episode.render_sample(samples.sample(at, "../A/")) for at in range(len(samples))]
    assert list(samples.lines("../A/")) == expected
    assert [samples.line(at, "../A/") for at in range(len(samples))] == expected
    third = samples.sample(3, "../A/")
    asked = third.conversation
    assert (asked.kind, asked.task, asked.action_ids) == ("wm", "task 1", (7,))
    assert third.images == ("../A/p1", "../A/p0")
    assert asked.codes[:, 0].tolist() == [64, 96]
    content = samples.content()
    assert content == packed().content()
    assert list(episode.EpisodeSamples.parse(content).lines("../A/")) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"future": np.array([[0, 9], [0, 1]])},
        {"images": np.array([[0, -1], [0, 1]])},
        {"windows": np.array([0, 0, 1, 2])},
        {"kinds": np.array([0, 1, 2, 0])},
        {"kinds": np.array([0, 1])},
        {"id_ends": np.array([2, 9])},
        {"id_ends": np.array([3, 2])},
        {"ids": np.array([5, 6, 2048])},
        {"codes": np.full((4, 32), 4096)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_packed_arrays_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    content = replace(packed(), **change).content()
    with pytest.raises(ValueError, match=r"\w"):
        episode.EpisodeSamples.parse(content)


def test_lines_parsed_together_equal_lines_parsed_alone_and_are_validated() -> None:
    changed = replace(windows()[1], images=("p9", "p0"))
    lines = [render_window(window)[:-1] for window in [*windows(), changed, windows()[0]]]
    assert list(parse_windows(lines)) == [parse_window(line) for line in lines]

    first, second = (render_window(window)[:-1] for window in windows()[:2])
    for broken in (second.replace(b'"user"', b'"system"'), second.replace(b"{", b"[", 1)):
        with pytest.raises(ValueError, match=r"\w"):
            list(parse_windows([first, broken]))
