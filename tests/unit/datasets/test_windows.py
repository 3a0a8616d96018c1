"""Lines of raw windows. Source: reference/future-vla 1.3, 1.4."""

import json
from dataclasses import replace

import pytest

from vlatool.datasets.jsonl.layout import RESERVED, Kind, Window, parse_window, render_window

WINDOW = Window(
    "vla",
    "put the bowl on the plate",
    images=("images/e/a.png", "images/e/b.png"),
    future=("images/e/c.png",),
    actions=((0.1, -1.0), (0.0, -1.0)),
)
# As the published converter writes them.
TEXTS: dict[Kind, tuple[str, str]] = {
    "vla": (
        (
            "<image><image>Task: put the bowl on the plate\n\nBased on the observation, what "
            "action should be executed?"
        ),
        (
            "The robot should execute<Act><action></Act>, which will lead to the next state"
            "<Rec><Recimage></Rec>."
        ),
    ),
    "wm": (
        (
            "<image><image>Task: put the bowl on the plate\n\nIf we execute the action"
            "<Act><action></Act>, what will be the resulting state?"
        ),
        (
            "After executing<Act><action></Act>, the system will transition to the state"
            "<Rec><Recimage></Rec>."
        ),
    ),
}


@pytest.mark.parametrize("kind", ["vla", "wm"])
def test_line_is_the_published_one(kind: Kind) -> None:
    user, assistant = TEXTS[kind]
    expected = (
        '{"messages": [{"role": "user", "content": '
        + json.dumps(user)
        + '}, {"role": "assistant", "content": '
        + json.dumps(assistant)
        + '}], "images": ["images/e/a.png", "images/e/b.png"], "Recimage": ["images/e/c.png"], '
        '"actions": [[0.1, -1.0], [0.0, -1.0]]}\n'
    )
    assert render_window(replace(WINDOW, kind=kind)).decode() == expected


@pytest.mark.parametrize("kind", ["vla", "wm"])
@pytest.mark.parametrize("task", ["", "Task: a / b", 'über "x"\n\n', "a\\u0041"])
def test_parsed_window_equals_the_rendered_one(kind: Kind, task: str) -> None:
    window = replace(WINDOW, kind=kind, task=task)
    assert parse_window(render_window(window)) == window


def test_letters_beyond_ascii_are_not_escaped_and_numbers_finite() -> None:
    assert "ü".encode() in render_window(replace(WINDOW, task="ü"))

    with pytest.raises(ValueError, match="JSON"):
        render_window(replace(WINDOW, actions=((float("nan"),),)))


@pytest.mark.parametrize("word", RESERVED)
def test_instruction_with_a_tag_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="instruction"):
        render_window(replace(WINDOW, task=f"take {word}"))


def changed(key: str, value: object) -> bytes:
    return json.dumps({**json.loads(render_window(WINDOW)), key: value}).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"messages": []}',
        render_window(WINDOW)[:-20],
        changed("more", 1),
        changed("images", ["images/e/a.png"]),
        changed("images", [1, 2]),
        changed("Recimage", []),
        changed("messages", [{"role": "user", "content": TEXTS["vla"][0]}]),
        changed("messages", [{"role": "user", "content": "?"}, {"role": "assistant"}]),
        changed(
            "messages",
            [
                {"role": "user", "content": TEXTS["wm"][0]},
                {"role": "assistant", "content": TEXTS["vla"][1]},
            ],
        ),
        changed("actions", []),
        changed("actions", [[1], [1, 2]]),
        changed("actions", [["1"]]),
        changed("actions", [[True]]),
        render_window(WINDOW).replace(b"0.1", b"NaN"),
    ],
)
def test_invalid_line_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the reason is for people
        parse_window(line)
