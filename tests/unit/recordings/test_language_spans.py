"""Texts of frames: LeRobot's columns of annotations, and the findings on spans."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders.annotations import PERSISTENT, annotated, entry
from tests.builders.lerobot import TASKS, Columns
from vlatool.episode import Episode, LanguageSpan
from vlatool.findings import Finding
from vlatool.recordings.language import check_language, language_of
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader


def read(root: Path) -> tuple[Episode, list[Finding]]:
    reader = LeRobotReader(LeRobotConfig())
    ref = next(iter(reader.discover([root])))
    return reader.read(ref), list(reader.check(ref, deep=False))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_annotation_holds_until_the_next_of_its_style_and_an_event_at_its_frame(
    version: str, tmp_path: Path
) -> None:
    root = annotated(
        tmp_path / "set", events={4: [entry("interjection", "faster")]}, version=version
    )
    episode, _ = read(root)
    assert episode.language == {"original": [TASKS[0]], "task_aug": ["set the ball into the box"]}
    assert episode.language_spans == (
        LanguageSpan("subtask", "reach the ball", 0, 2),
        LanguageSpan("subtask", "lift the ball", 3, 5),
        LanguageSpan("interjection", "faster", 4, 4),
    )
    assert episode.texts(4) == {
        **episode.language,
        "subtask": ["lift the ball"],
        "interjection": ["faster"],
    }
    assert episode.instruction_at(4) == TASKS[0]


def test_calls_of_tools_and_answers_about_an_image_are_left_out_and_counted(tmp_path: Path) -> None:
    call = entry(None, None, tool_calls=[{"type": "function"}])
    answer = entry("vqa", "{}", camera="observation.images.front")
    episode, findings = read(annotated(tmp_path / "set", (), {0: [call, answer], 1: [answer]}))
    assert episode.language_spans == ()
    (finding,) = [f for f in findings if f.code == "lerobot.language_left_out"]
    assert finding.message.endswith("left out: 1 without a style, 2 vqa")


def other_rows(columns: Columns) -> None:
    rows = columns["language_persistent"].to_pylist()
    columns["language_persistent"] = [*rows[:-1], []]


@pytest.mark.parametrize(
    ("change", "used"),
    [
        (other_rows, 2),
        (lambda columns: columns.update(language_persistent=["lift"] * 6), 0),
        (lambda columns: columns.update(language_persistent=[["lift"]] * 6), 0),
    ],
)
def test_a_column_of_another_form_is_a_finding(
    change: Callable[[Columns], Any], used: int, tmp_path: Path
) -> None:
    episode, findings = read(annotated(tmp_path / "set", change=change))
    assert len(episode.language_spans) == used
    assert "lerobot.bad_language" in {finding.code for finding in findings}


@pytest.mark.parametrize(
    ("more", "code", "frame"),
    [
        (("subtask", 0.3, "drop the ball"), "source.spans_overlap", 3),
        (("subtask", 0.6, "rest"), "source.span_outside", 6),
        (("plan", -1.0, "lift it"), "source.span_outside", -1),
        (("plan", 0.1, " "), "source.empty_span", 1),
        (("plan", None, "lift it"), "lerobot.bad_language", None),
    ],
)
def test_a_defect_of_an_annotation_has_its_code_and_frame(
    more: tuple[str, Any, str], code: str, frame: int | None, tmp_path: Path
) -> None:
    episode, findings = read(annotated(tmp_path / "set", (*PERSISTENT, more)))
    (finding,) = [finding for finding in findings if finding.code == code]
    assert finding.place.get("frame") == frame
    assert code in {finding.code for finding in episode.findings}


@pytest.mark.parametrize(
    ("rows", "codes"),
    [
        (["a", "a", "b", "b"], []),
        (["", "a", " ", "b"], ["source.silent_frames"]),
        (["", "a", "a", ""], []),  # one sentence is that of the whole episode
    ],
)
def test_frames_without_a_text_between_others_are_a_finding(
    rows: list[str], codes: list[str]
) -> None:
    findings = list(check_language("e", len(rows), language_of([("original", rows)])))
    assert [finding.code for finding in findings] == codes
    assert all(finding.place["frame"] == 0 for finding in findings)
