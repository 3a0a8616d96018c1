"""Names of other programs: one table per class, applied when a layer is read."""

from typing import Any

import pytest

from tests.builders.errors import fails
from vlatool.config.base import ConfigModel, Converted, Ignored, Supported
from vlatool.config.resolve import Resolved, load_config, parse_override
from vlatool.config.rules import violations
from vlatool.workflows.preprocess import PreprocessConfig


class Part(ConfigModel):
    NAMES = {"start": "/weights", "old": Ignored("nothing uses it")}  # noqa: RUF012

    width: int = 1


def _folder(text: str) -> dict[str, Any]:
    if "/" not in text:
        raise ValueError("it has no parent")
    parent, _, name = text.rpartition("/")
    return {"parent": parent, "name": name}


class Root(ConfigModel):
    NAMES = {  # noqa: RUF012
        "to": "output",
        "target": "output",
        "size": "part.width",
        "is_fast": "speed=fast",
        "folders": ("first", "second"),
        "place": Converted(_folder),
        "database": Ignored("there is none", is_switch=True),
        "precision": Supported(("float32",), "no other number is exact"),
    }

    output: list[str] = []  # noqa: RUF012
    weights: str | None = None
    speed: str = "slow"
    first: list[str] = []  # noqa: RUF012
    second: list[str] = ["s"]  # noqa: RUF012
    parent: str = ""
    name: str = ""
    precision: str = "float32"
    part: Part = Part()


def typed(*options: str) -> Resolved[Root]:
    return load_config(Root, overrides=[parse_override(option) for option in options])


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("to=a", "output", ["a"]),
        ("is_fast=true", "speed", "fast"),
        ("folders=a", "first", ["a"]),
        ("folders=a", "second", []),
        ("place=runs/a", "name", "a"),
        ("part.start=w", "weights", "w"),
    ],
)
def test_name_sets_the_key_that_it_stands_for(option: str, key: str, value: Any) -> None:
    assert getattr(typed(option).config, key) == value


def test_name_in_a_file_keeps_its_line(write: Any) -> None:
    write("a.yaml", "# a job\nsize: 3\nplace: runs/a\n")
    resolved = load_config(Root, files=["a.yaml"])
    assert resolved.config.part.width == 3
    assert resolved.origins["part.width"] == "a.yaml:2"
    assert resolved.origins["name"] == "a.yaml:3"


def test_values_of_several_names_are_one_list_on_the_command_line() -> None:
    assert typed("to=a", "output=b", "target=c").config.output == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["to: a\noutput: b", "to: a\ntarget: b", "place: a/b\nname: c"])
def test_key_that_is_given_twice_in_a_file_is_an_error(write: Any, text: str) -> None:
    write("a.yaml", text)
    with fails("config.contradiction"):
        load_config(Root, files=["a.yaml"])


def test_value_that_a_name_cannot_have_is_an_error_with_all_others(write: Any) -> None:
    write("a.yaml", "place: a\nis_fast: false\nspeed: []\n")
    with fails("config.invalid_value") as caught:
        load_config(Root, files=["a.yaml"])
    origins = [problem["origin"] for problem in caught.value.details["problems"]]
    assert sorted(origins) == ["a.yaml:1", "a.yaml:2", "a.yaml:3"]


def test_ignored_name_is_reported_only_if_it_was_typed() -> None:
    assert dict(typed("database=true").ignored) == {"database": "there is none"}
    assert dict(typed("part.old=1").ignored) == {"part.old": "nothing uses it"}
    assert not typed().ignored


def test_unsupported_value_is_a_violation() -> None:
    [violation] = violations(typed("precision=int8").config)
    assert (violation.keys, violation.code) == (("precision",), "config.unsupported")


@pytest.mark.parametrize("option", ["source_episodes=raw", "samples_per_shard=3"])
def test_words_of_the_published_command_choose_its_sink(option: str) -> None:
    options = ["format=spartan", option]
    config = load_config(PreprocessConfig, overrides=list(map(parse_override, options))).config
    assert config.sink.type == "lbm"
    other = [*options[:1], "source_episodes=raw", "sink=jsonl"]
    config = load_config(PreprocessConfig, overrides=list(map(parse_override, other))).config
    assert config.sink.type == "jsonl"
