"""Reuse of journal entries: only for the same input and the same plan."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.builders.preprocessing import FRAMES, contents, processed, refusal, run
from tests.builders.spartan import CAMERAS, Documents, spartan_task
from vlatool.errors import PartialFailure
from vlatool.jobs.record import read_record
from vlatool.sources.spartan.config import _ACTION_WIDTHS


def partial_run(source: Path, output: Path, **options: Any) -> None:
    """Runs with a broken second episode, which is left out; the journal remains."""
    with pytest.raises(PartialFailure):
        run(source, output, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return spartan_task(tmp_path / "raw", 3, FRAMES)


def break_actions(source: Path) -> bytes:
    path = processed(source) / "actions.npz"
    content = path.read_bytes()
    path.write_bytes(b"cut")
    return content


def action_file(path: Path, names: list[str]) -> Path:
    stops = np.cumsum(list(_ACTION_WIDTHS.values())).tolist()
    path.write_text(yaml.safe_dump({"action_key_fields": names, "action_index_fields": stops}))
    return path


def test_other_content_of_a_side_file_is_another_run(source: Path, tmp_path: Path) -> None:
    names = list(_ACTION_WIDTHS)
    path = action_file(tmp_path / "fields.yaml", names)
    run(source, tmp_path / "out", source={"action_fields_config_path": str(path)})
    action_file(path, [f"my_{name}" for name in names])

    error = refusal(source, tmp_path / "out", source={"action_fields_config_path": str(path)})

    assert error.code == "usage.output_differs"


def test_pose_groups_of_an_action_file_reach_the_workers(source: Path, tmp_path: Path) -> None:
    path = action_file(tmp_path / "fields.yaml", list(_ACTION_WIDTHS))

    result = run(
        source, tmp_path / "out", source={"action_fields_config_path": str(path)}, workers=2
    )

    assert not any(name.endswith("_relative") for name in result.action_fields)
    stats = json.loads((tmp_path / "out/shards/stats.json").read_text())
    assert not any(name.endswith("_relative") for name in stats)


def test_repaired_first_episode_with_more_cameras_gives_the_undisturbed_bytes(
    tmp_path: Path,
) -> None:
    def one_camera(documents: Documents) -> None:
        (first, name), *_ = CAMERAS.items()
        documents["metadata"]["camera_id_to_semantic_name"] = {first: name}

    source = spartan_task(tmp_path / "raw", 3, FRAMES, changes={1: one_camera})
    path = processed(source, 0) / "actions.npz"
    content = path.read_bytes()
    path.write_bytes(b"cut")
    partial_run(source, tmp_path / "out")
    path.write_bytes(content)

    run(source, tmp_path / "out")
    run(source, tmp_path / "fresh")

    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_killed_overwrite_uses_nothing_of_the_earlier_run(source: Path, tmp_path: Path) -> None:
    output, content = tmp_path / "out", break_actions(source)
    partial_run(source, output, jpeg_quality=50)
    (processed(source) / "actions.npz").write_bytes(content)
    record = read_record(output)
    assert record is not None
    # After the new record is written and before the old data are removed.
    options = {**record.options, "jpeg_quality": 95}
    journal = output / ".vlatool/journal"
    assert journal.is_dir()
    type(record)(record.command, options).save(output)

    run(source, output, jpeg_quality=95)
    run(source, tmp_path / "fresh", jpeg_quality=95)

    assert contents(output) == contents(tmp_path / "fresh")


def test_same_layout_at_another_location_is_read_again(tmp_path: Path) -> None:
    def shifted(documents: Documents) -> None:
        documents["observations"]["robot__version"] += 1

    here = spartan_task(tmp_path / "a/raw", 3, FRAMES)
    there = spartan_task(tmp_path / "b/raw", 3, FRAMES, changes=dict.fromkeys(range(3), shifted))
    break_actions(here)
    partial_run(here, tmp_path / "out")

    run(there, tmp_path / "out")
    run(there, tmp_path / "fresh")

    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_file_edited_in_place_with_the_same_size_is_detected(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    path = processed(source) / "observations.npz"
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))

    error = refusal(source, tmp_path / "out")

    assert error.code == "usage.output_differs"
    assert "its last change was at" in error.message


def test_numbers_too_large_to_square_are_stored_and_reported_as_null(tmp_path: Path) -> None:
    def huge(documents: Documents) -> None:
        documents["observations"]["robot__version"][:] = np.finfo(np.float64).max

    source = spartan_task(tmp_path / "raw", 2, FRAMES, changes={1: huge})

    run(source, tmp_path / "out")

    stats = json.loads((tmp_path / "out/shards/stats.json").read_text(), parse_constant=pytest.fail)
    assert stats["robot__version"]["std"] == [None]
