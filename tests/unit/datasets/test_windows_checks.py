"""`verify` and `inspect` of folders of windows, intact and damaged, ours and published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.codes import write_tree_codes
from tests.builders.libero import TASK, convert, convert_error, libero_dataset, png
from tests.builders.verifying import verified
from vlatool.datasets.jsonl.layout import is_windows
from vlatool.workflows.verify import InspectConfig, inspect

LINES = "data/episode_000000.jsonl"
INDEX, MANIFEST = "data/episode_000000.index.npz", "manifest.json"
IMAGE = "images/episode_000000/raw_image_episode_000000_frame_000001.png"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("windows")
    convert(libero_dataset(root / "raw", (3,)), root / "A")
    return root / "A"


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    """Copy that a test may damage."""
    return Path(shutil.copytree(intact, tmp_path / "A"))


def published(folder: Path) -> Path:
    """Folder in the form of the published converter."""
    shutil.rmtree(folder / ".vlatool")
    for path in [folder / "manifest.json", *folder.glob("data/*.npz")]:
        path.unlink()
    return folder


def line(number: int, change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Change of a line of the first episode."""

    def apply(folder: Path) -> None:
        lines = (folder / LINES).read_text().splitlines()
        row = json.loads(lines[number])
        change(row)
        lines[number] = json.dumps(row, ensure_ascii=False)
        (folder / LINES).write_text("".join(f"{row}\n" for row in lines))

    return apply


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Change of a file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def text(old: str, new: str) -> Callable[[Path], object]:
    return edit(LINES, lambda data: data.replace(old.encode(), new.encode(), 1))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (text("{", ""), "bad_line"),
    "another sentence": (text("should be executed?", "should be done?"), "bad_line"),
    "no full stop": (text("</Rec>.", "</Rec>"), "bad_line"),
    "a line lost": (
        edit(LINES, lambda data: data[: data[:-1].rindex(b"\n") + 1]),
        "count_mismatch",
    ),
    "cut off": (edit(LINES, lambda data: data[:-1]), "broken_lines"),
    "missing image": (lambda at: (at / IMAGE).unlink(), "missing_picture"),
    "episode without lines": (
        lambda at: shutil.copytree((at / IMAGE).parent, at / "images/episode_000009"),
        "unused_picture",
    ),
    "index of another file": (lambda at: (at / INDEX).write_bytes(b""), "index_mismatch"),
    "no manifest": (lambda at: (at / MANIFEST).unlink(), "no_manifest"),
    "broken manifest": (lambda at: (at / MANIFEST).write_text("{}"), "broken_manifest"),
    "manifest of more": (
        edit(MANIFEST, lambda data: data.replace(b'"samples": 6', b'"samples": 7')),
        "count_mismatch",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_reported(folder: Path, case: str) -> None:
    damage, code = DAMAGES[case]
    damage(folder)
    assert f"windows.{code}" in verified(folder).codes


def test_published_folder_with_codes_is_intact(folder: Path) -> None:
    codes = write_tree_codes(folder, "json")
    (codes / "manifest.json").unlink()
    assert verified(folder).findings == ()
    assert set(verified(published(folder)).codes) == {"output.no_file_list", "windows.no_manifest"}


PUBLISHED_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another image": (text("frame_000002.png", "frame_000001.png"), "wrong_line"),
    "another instruction": (text(TASK, "do nothing"), "wrong_line"),
    "another action": (line(0, lambda row: row.update(actions=[[1.0]] * 16)), "wrong_line"),
    "missing image": (lambda at: (at / IMAGE).unlink(), "missing_picture"),
    "extra image": (
        lambda at: (at / "images/episode_000000/other.png").write_bytes(png(1)),
        "unused_picture",
    ),
}


@pytest.mark.parametrize("case", PUBLISHED_DAMAGES)
def test_damage_of_a_published_folder_is_found_by_the_frames_of_its_lines(
    folder: Path, case: str
) -> None:
    damage, code = PUBLISHED_DAMAGES[case]
    damage(published(folder))
    assert f"windows.{code}" in verified(folder).codes


def test_other_bytes_are_found_and_pixels_decoded_with_full(folder: Path) -> None:
    (folder / IMAGE).write_bytes(png(1)[:60])
    assert verified(folder).codes.keys() == {"output.size_mismatch"}
    assert "windows.broken_picture" in verified(folder, full=True).codes


def test_missing_episode_is_reported(tmp_path: Path) -> None:
    def lose(number: int, columns: dict[str, object]) -> None:
        if number:
            columns.pop("image")

    convert_error(libero_dataset(tmp_path / "raw", (1, 1), change=lose), tmp_path / "A")
    assert set(verified(tmp_path / "A").codes) == {"output.partial"}


def test_intact_folder_has_no_findings_and_a_report(intact: Path) -> None:
    for options in ({}, {"full": True}, {"quick": True}):
        result = verified(intact, **options)
        assert (result.kind, result.findings) == ("windows", ())
    report = inspect(InspectConfig(location=str(intact))).document()
    summary = [report[key] for key in ("status", "samples", "episodes", "tasks")]
    assert summary == ["whole", 6, 1, (TASK,)]
    assert not any(is_windows(intact / name) for name in ("data", "images", ".vlatool"))


def test_page_shows_all_images_of_a_window_and_reports_a_missing_one(
    folder: Path, tmp_path: Path
) -> None:
    config = InspectConfig(location=str(folder), html=str(tmp_path / "page.html"), html_samples=1)
    inspect(config)
    assert (tmp_path / "page.html").read_text().count("<img ") == 2 * (16 + 16)
    (folder / IMAGE).unlink()
    inspect(config)
    assert "is missing" in (tmp_path / "page.html").read_text()
