"""JSON and YAML within limits."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vlatool.storage import documents

MULTIPLYING = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "line 1"),
        ("\n[1,,2]", "line 2"),
        ("[" * 100_000, "recursion"),
        ("9" * 5_000, "number"),
        (b"\xff", "line 1"),
        ('"\\ud800"', "escape"),
        ("[" + "[]," * 4_000_001 + "1]", "lists and mappings"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_that_cannot_be_read_has_a_reason(text: str | bytes, reason: str) -> None:
    with pytest.raises(documents.DocumentError, match=reason):
        documents.parse_json(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "not valid YAML"),
        ("[" * 100_000, "levels"),
        ("- " * 100_000, "levels"),
        (MULTIPLYING, "aliases"),
        ("&a [*a]", "itself"),
        ("a: " + "9" * 5_000, "YAML|digits"),
        ("a: 1" + ":59" * 100_000, "YAML|digits"),
        ("a: 2026-99-99", "YAML"),
        ("a: !!bool foo", "YAML"),
        ('a: !!int ""', "YAML"),
        ('a: !!float ""', "YAML"),
        ("a: !!timestamp foo", "YAML"),
    ],
)
def test_yaml_that_cannot_be_read_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(documents.DocumentError, match=reason):
        documents.parse_yaml(text)


@pytest.mark.parametrize("kind", ["bool", "int", "float", "timestamp", "binary", "null", "set"])
@pytest.mark.parametrize(
    "form", ["!!{} {}", "a: !!{} {}", "? !!{} {}\n: 1", "{{a: {{<<: !!{} {}}}}}"]
)
def test_text_with_any_tag_is_a_value_or_a_document_error(kind: str, form: str) -> None:
    marks = ["-", "+", "0x", "0b", "0o9", "1:", "-:", ".", "e", "_", "-_", "0b2", "~", "=", "<<"]
    times = ["2026-13-01", "2026-01-01T99:99:99", "2026-01-01 00:00:00 +99:99"]
    nodes = ["{=: foo}", "{=: {=: x}}", "[1]", "{a: b}", "!!int", '"\\0"', "1e999", "9" * 5_000]
    for text in ("", '""', "foo", *marks, *times, *nodes):
        with contextlib.suppress(documents.DocumentError):
            documents.parse_yaml(form.format(kind, text))


def test_depth_up_to_the_limit_aliases_and_constants_are_read() -> None:
    text = "[" * documents.MAX_DEPTH + "]" * documents.MAX_DEPTH

    assert documents.parse_json(text) == documents.parse_yaml(text)

    assert documents.check_yaml("a: &a [1, 2]\nb: *a") == 9

    assert documents.parse_json("[NaN]", constants=lambda _: None) == [None]


@pytest.mark.parametrize("read", [documents.read_json, documents.read_yaml])
def test_large_file_is_an_error_before_it_is_read_and_a_pipe_and_a_device_are_none(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    path, pipe = tmp_path / "large", tmp_path / "pipe"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(documents.DocumentError, match="300 MiB"):
        read(path)
    os.mkfifo(pipe)
    for endless in (pipe, Path("/dev/zero")):
        with pytest.raises(FileNotFoundError, match="no file"):
            read(endless)
