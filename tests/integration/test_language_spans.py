"""Texts that change within an episode, from the source to each sink and to the page."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.builders import hdf5
from tests.builders.annotations import PERSISTENT, annotated, entry
from tests.builders.errors import fails
from tests.builders.lerobot import TASKS
from tests.builders.pages import charts_of
from tests.builders.preprocessing import metadata, run, samples
from vlatool.config.resolve import config_of
from vlatool.datasets.jsonl.layout import read_windows
from vlatool.episode import Episode, LanguageSpan
from vlatool.plugins import FORMATS
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.verify import InspectConfig, inspect

SAID = (b"reach", b"reach", b"lift", b"lift")


def recording(folder: Path, texts: tuple[bytes, ...] = SAID) -> dict[str, Any]:
    """Options that read an HDF5 file whose instruction changes at frame 2."""

    def change(file: Any) -> None:
        file["data/demo_0"].create_dataset("said", data=np.array(texts, h5py.string_dtype()))

    path = hdf5.robomimic(folder / "a.hdf5", {"demo_0": len(texts)}, change)
    mapping = (
        "episodes: data/*\nfields: {action: actions}\naction_fields: [action]\n"
        "cameras: {front: {path: obs/front_image}}\ninstruction: said\n"
        "language: {subtask: said}\n"
    )
    (folder / "mapping.yaml").write_text(mapping)
    return {"format": "hdf5", "sources": [str(path)], "fps": 10} | {
        "mapping": str(folder / "mapping.yaml")
    }


def written(output: Path, sink: str, tree: dict[str, Any], **options: Any) -> PreprocessResult:
    tree = {**tree, "workers": 1, "output": str(output)}
    tree["sink"] = {"type": sink, **options}
    return preprocess(config_of(PreprocessConfig, tree))


def episodes(folder: Path) -> list[Episode]:
    reader = FORMATS.get("lerobot")(FORMATS.get("lerobot").Config())
    return [reader.read(ref) for ref in reader.discover([folder])]


def test_a_window_has_the_texts_of_its_anchor(tmp_path: Path) -> None:
    root = annotated(tmp_path / "set", PERSISTENT[1:])
    run(root, tmp_path / "out", format="lerobot", max_padding_left=1)
    spans = {}
    for sample in samples(tmp_path / "out/episodes"):
        facts = metadata(sample)
        if facts["source_episode_index"] == 0:
            (span,) = facts["language_spans"]
            spans[facts["anchor_timestep"]] = span
            texts = json.loads(sample["language_instructions.json"])
            assert texts == {"original": [TASKS[0]], "subtask": [span["text"]]}
        else:
            assert "language_spans" not in facts
    assert spans[2] == {"kind": "subtask", "text": "reach the ball", "first": 0, "last": 2}
    assert spans[3] == {"kind": "subtask", "text": "lift the ball", "first": 3, "last": 5}


def test_a_line_has_the_instruction_of_its_frame(tmp_path: Path) -> None:
    sink = {"past_steps": 2, "future_steps": 2, "qa_mode": "vla", "resize_images_size": None}
    written(tmp_path / "out", "jsonl", recording(tmp_path), **sink)
    (path,) = (tmp_path / "out/data").glob("*.jsonl")
    assert [window.task for window in read_windows(path)] == ["reach", "reach", "lift", "lift"]

    tree = recording(tmp_path, (b"reach", b"", b"lift"))
    with fails("data.incomplete") as caught:
        written(tmp_path / "other", "jsonl", tree, **sink)
    (failure,) = caught.value.details["failures"]
    assert (failure["code"], "frame 1" in failure["message"]) == ("data.missing", True)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_rows_of_a_lerobot_set_have_the_instruction_of_their_frame(
    version: str, tmp_path: Path
) -> None:
    tree = recording(tmp_path, (b"", b"reach", b"lift", b""))
    result = written(tmp_path / "out", "lerobot", tree, layout_version=version, use_videos=False)
    (episode,) = episodes(tmp_path / "out")
    assert episode.language_spans == tuple(
        LanguageSpan(kind, text, frame, frame)
        for kind in ("original", *(["subtask"] if version == "v3.0" else []))
        for text, frame in (("reach", 1), ("lift", 2))
    )
    assert ("lerobot_sink.left_out: 1 episode" in result.warnings) == (version == "v2.1")


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_annotations_of_a_lerobot_set_are_copied_whatever_types_its_files_have(
    version: str, tmp_path: Path
) -> None:
    call = entry(None, None, tool_calls=[{"type": "function", "function": {"name": "say"}}])
    root = annotated(
        tmp_path / "set", events={2: [call, entry("interjection", "faster")]}, version=version
    )
    written(tmp_path / "out", "lerobot", {"format": "lerobot", "sources": [str(root)]})
    copies, sources = episodes(tmp_path / "out"), episodes(root)
    assert [e.language_spans for e in copies] == [e.language_spans for e in sources]
    assert [f.code for f in copies[0].findings] == [f.code for f in sources[0].findings]


def test_inspect_counts_texts_of_frames_and_draws_them(tmp_path: Path) -> None:
    root = annotated(tmp_path / "set")
    page = tmp_path / "page.html"
    result = inspect(InspectConfig(location=str(root), html=str(page)))
    assert result.document()["language_spans"] == {"subtask": 2}
    assert "2 subtask" in "\n".join(result.lines())
    (spans,) = [chart["spans"] for chart in charts_of(page.read_text()) if "spans" in chart]
    assert [text for _, _, _, text in spans].count("lift the ball") == 1
