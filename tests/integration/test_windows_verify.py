"""`verify` and `inspect` of folders of windows, intact and damaged, ours and published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.codes import write_tree_codes
from tests.builders.libero import TASK, convert, convert_error, libero_dataset, png
from tests.builders.verifying import verified
from vlatool.artifacts.windows.format import is_windows
from vlatool.workflows.verify import InspectConfig, inspect

LINES = "data/episode_000000.jsonl"
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


def text(old: str, new: str, count: int = 1) -> Callable[[Path], object]:
    return lambda folder: (folder / LINES).write_text(
        (folder / LINES).read_text().replace(old, new, count)
    )


def without_last_line(folder: Path) -> None:
    lines = (folder / LINES).read_text().splitlines(keepends=True)
    (folder / LINES).write_text("".join(lines[:-1]))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (text("{", "", 1), "windows.bad_line"),
    "another sentence": (text("should be executed?", "should be done?"), "windows.bad_line"),
    "no full stop": (text("</Rec>.", "</Rec>"), "windows.bad_line"),
    "another image": (text("frame_000002.png", "frame_000001.png"), "windows.wrong_line"),
    "another instruction": (text(TASK, "do nothing"), "windows.wrong_line"),
    "another action": (line(0, lambda row: row.update(actions=[[1.0]] * 16)), "windows.wrong_line"),
    "a line lost": (without_last_line, "windows.wrong_line"),
    "cut off": (
        lambda at: (at / LINES).write_bytes((at / LINES).read_bytes()[:-1]),
        "windows.broken_lines",
    ),
    "missing image": (lambda at: (at / IMAGE).unlink(), "windows.missing_picture"),
    "extra image": (
        lambda at: (at / IMAGE).with_name("other.png").write_bytes(png(1)),
        "windows.unused_picture",
    ),
    "episode without lines": (
        lambda at: shutil.copytree((at / IMAGE).parent, at / "images/episode_000009"),
        "windows.unused_picture",
    ),
    "image of other bytes": (
        lambda at: (at / IMAGE).write_bytes((at / IMAGE).read_bytes()[::-1]),
        "output.digest_mismatch",
    ),
    "index of another file": (
        lambda at: (at / "data/episode_000000.index.npz").write_bytes(b""),
        "windows.index_mismatch",
    ),
    "no manifest": (lambda at: (at / "manifest.json").unlink(), "windows.no_manifest"),
    "broken manifest": (
        lambda at: (at / "manifest.json").write_text('{"format": "vlatool.windows"}'),
        "windows.broken_manifest",
    ),
    "manifest of more": (
        lambda at: (at / "manifest.json").write_text(
            (at / "manifest.json").read_text().replace('"samples": 6', '"samples": 7')
        ),
        "windows.count_mismatch",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_reported(folder: Path, case: str) -> None:
    damage, code = DAMAGES[case]
    damage(folder)
    assert code in verified(folder).codes


@pytest.mark.parametrize("options", [{}, {"full": True}, {"quick": True}])
def test_intact_folder_has_no_findings(intact: Path, options: dict[str, bool]) -> None:
    result = verified(intact, **options)
    assert (result.kind, result.findings) == ("windows", ())


def test_published_folder_with_codes_is_checked_against_the_published_rules(folder: Path) -> None:
    codes = write_tree_codes(folder, "json")
    (codes / "manifest.json").unlink()
    assert verified(folder).findings == ()
    assert set(verified(published(folder)).codes) == {"output.no_file_list", "windows.no_manifest"}

    text("frame_000002.png", "frame_000001.png")(folder)
    assert "windows.wrong_line" in verified(folder).codes


def test_pixels_are_decoded_with_full(folder: Path) -> None:
    (folder / IMAGE).write_bytes(png(1, size=64))
    assert "windows.broken_picture" in verified(folder, full=True).codes


def test_missing_episode_is_reported(tmp_path: Path) -> None:
    def lose(number: int, columns: dict[str, object]) -> None:
        if number:
            columns.pop("image")

    convert_error(libero_dataset(tmp_path / "raw", (1, 1), change=lose), tmp_path / "A")
    assert set(verified(tmp_path / "A").codes) == {"output.partial"}


def test_subfolders_are_not_recognized_as_windows(intact: Path) -> None:
    assert not any(is_windows(intact / name) for name in ("data", "images", ".vlatool"))


def test_report_of_a_folder(intact: Path) -> None:
    report = inspect(InspectConfig(location=str(intact))).document()
    summary = [report[key] for key in ("status", "samples", "episodes", "tasks")]
    assert summary == ["whole", 6, 1, (TASK,)]


def test_page_shows_all_images_of_a_window_and_reports_a_missing_one(
    folder: Path, tmp_path: Path
) -> None:
    config = InspectConfig(location=str(folder), html=str(tmp_path / "page.html"), html_samples=1)
    inspect(config)
    assert (tmp_path / "page.html").read_text().count("<img ") == 2 * (16 + 16)
    (folder / IMAGE).unlink()
    inspect(config)
    assert "is missing" in (tmp_path / "page.html").read_text()
