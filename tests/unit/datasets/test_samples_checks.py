"""`verify` and `inspect` of codes and samples: a finding code per defect, pages with images."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.codes import plain_fast, published_windows, tokenizer_digest, write_tree_codes
from tests.builders.verifying import verified
from vlatool.datasets.codes.layout import CodesFolder, EpisodeCodes, write_codes
from vlatool.datasets.samples.profile import read_profile
from vlatool.jobs.files import NAME
from vlatool.jobs.record import OutputRecord
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.verify import InspectConfig, inspect

Break = Callable[[Path], Any]
FIRST = "episode_000000"
FAST_PROFILE, OTHER_PROFILE = "lines/fast/profile.yaml", read_profile("libero", "normalised")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows with codes of either layout, and samples as lines and packed."""
    folder = tmp_path_factory.mktemp("made")
    tree = published_windows(folder / "A", 2, 3)
    write_tree_codes(tree, "json")
    write_tree_codes(tree, "packed")
    options = {"data": str(tree), "fast": str(plain_fast(folder / "fast")), "workers": 1}
    for name in ("lines", "packed"):
        own = {"output": str(folder / name), "packed": name == "packed"}
        build_dataset(BuildDatasetConfig.model_validate({**options, **own}))
    return folder


@pytest.fixture
def workspace(outputs: Path, tmp_path: Path) -> Path:
    """Copy that a test may damage."""
    return Path(shutil.copytree(outputs, tmp_path / "place"))


def finding_codes(where: Path, **options: Any) -> set[str]:
    """Codes of errors and warnings, except those of the file list."""
    findings = verified(where, **options).findings
    codes = {finding.code for finding in findings if finding.severity != "info"}
    return {code for code in codes if not code.startswith("output.")}


@pytest.mark.parametrize("name", ["lines", "packed", "A/TiToken", "A/tokens"])
def test_an_unchanged_output_is_valid(outputs: Path, name: str) -> None:
    result = verified(outputs / name)
    assert result.kind == ("samples" if "/" not in name else "codes")
    assert not [finding for finding in result.findings if finding.severity != "info"]
    assert result.checked["samples"] == (12 if "/" not in name else 0)


def in_lines(old: bytes, new: bytes) -> Break:
    def change(workspace: Path) -> None:
        path = workspace / f"lines/data/{FIRST}.jsonl"
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return change


def in_manifest(**values: Any) -> Break:
    def change(workspace: Path) -> None:
        path = workspace / "lines/manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def cut(workspace: Path) -> None:
    path = workspace / f"lines/data/{FIRST}.jsonl"
    path.write_bytes(path.read_bytes()[:-5])


def drop_line(workspace: Path) -> None:
    path = workspace / f"lines/data/{FIRST}.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (in_lines(b"</Rec>.", b"</Rec>"), "broken_line"),
        (in_lines(b"<Rec>", b"<Rec>1 "), "broken_line"),
        (in_lines(b"<Rec>", b"<Rec>5000 "), "broken_line"),
        (in_lines(b'{"messages": [', b'{"messages":  ['), "other_spelling"),
        (in_lines(b"<image>", b""), "broken_line"),
        (in_manifest(shape={"pictures": 30, "future": 32}), "other_shape"),
        (in_manifest(samples=9), "count_mismatch"),
        (in_manifest(tasks={}), "count_mismatch"),
        (in_manifest(files=[[f"data/{FIRST}.jsonl", 7]]), "count_mismatch"),
        (in_manifest(files=[["data/x.jsonl", 7]]), "missing_file"),
        (in_manifest(files=[["../x", 7]]), "broken_manifest"),
        (in_manifest(version=9), "broken_manifest"),
        (lambda workspace: (workspace / f"lines/data/{FIRST}.jsonl").unlink(), "missing_file"),
        (cut, "broken_file"),
        (drop_line, "index_mismatch"),
        (
            lambda workspace: (workspace / f"lines/data/{FIRST}.index.npz").write_bytes(b"x"),
            "index_mismatch",
        ),
        (lambda workspace: shutil.rmtree(workspace / f"A/images/{FIRST}"), "missing_picture"),
        (lambda workspace: (workspace / "A").rename(workspace / "B"), "no_pictures"),
    ],
)
def test_a_defect_of_lines_has_its_code(workspace: Path, change: Break, code: str) -> None:
    change(workspace)
    assert f"samples.{code}" in finding_codes(workspace / "lines")


def test_damaged_packed_samples_and_each_missing_image_are_reported_once(workspace: Path) -> None:
    next((workspace / f"A/images/{FIRST}").iterdir()).unlink()
    assert verified(workspace / "packed").codes == {"samples.missing_picture": 1}
    path = workspace / f"packed/packed/{FIRST}.npz"
    path.write_bytes(path.read_bytes()[:-40])
    assert "samples.broken_file" in finding_codes(workspace / "packed")


def test_an_interrupted_build_is_incomplete(tmp_path: Path) -> None:
    OutputRecord("build-dataset", {}).save(tmp_path)
    assert verified(tmp_path).codes == {"output.incomplete": 1}


def test_missing_file_list_and_an_unread_line_with_quick_are_no_errors(workspace: Path) -> None:
    (workspace / "lines" / NAME).unlink()
    assert finding_codes(workspace / "lines") == set()

    in_lines(b"</Rec>.", b"</Rec>,")(workspace)
    assert finding_codes(workspace / "lines", quick=True) == set()


def code_file(workspace: Path) -> Path:
    return sorted((workspace / f"A/TiToken/{FIRST}").iterdir())[0]


def other_codes(workspace: Path) -> None:
    """Replaces the codes of the same images."""
    folder = CodesFolder.open(workspace / "A/tokens")
    codes = folder.read(FIRST)
    other = EpisodeCodes(FIRST, codes.stems, np.flip(codes.codes, axis=1))
    write_codes(workspace / "A/tokens", "packed", other, tokenizer_digest("builder"))


def another_tokenizer(workspace: Path) -> None:
    other = write_tree_codes(workspace / "A", "packed", folder=workspace / "other", name="another")
    (other / f"{FIRST}.npz").replace(workspace / f"A/tokens/{FIRST}.npz")


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("TiToken", lambda workspace: code_file(workspace).unlink(), "missing"),
        ("TiToken", lambda workspace: code_file(workspace).write_text("[1]"), "broken"),
        ("TiToken", lambda workspace: shutil.rmtree(code_file(workspace).parent), "count_mismatch"),
        (
            "TiToken",
            lambda workspace: code_file(workspace).write_text(str([[1]] * 32)),
            "digest_mismatch",
        ),
        (
            "TiToken",
            lambda workspace: (workspace / "A/TiToken/manifest.json").write_text("{"),
            "broken_manifest",
        ),
        (
            "tokens",
            lambda workspace: (workspace / f"A/tokens/{FIRST}.npz").write_bytes(b"x"),
            "broken",
        ),
        (
            "tokens",
            lambda workspace: next((workspace / f"A/images/{FIRST}").iterdir()).unlink(),
            "no_picture",
        ),
        ("tokens", other_codes, "digest_mismatch"),
        ("tokens", another_tokenizer, "other_tokenizer"),
    ],
)
def test_a_defect_of_codes_has_its_code(
    workspace: Path, name: str, change: Break, code: str
) -> None:
    change(workspace)
    assert f"codes.{code}" in finding_codes(workspace / "A" / name)


def test_every_broken_file_of_codes_is_reported_and_a_missing_manifest_is_valid(
    workspace: Path,
) -> None:
    (workspace / "A/TiToken/manifest.json").unlink()
    result = verified(workspace / "A/TiToken")
    assert result.whole
    assert "codes.no_manifest" in result.codes

    for path in (workspace / f"A/TiToken/{FIRST}").iterdir():
        path.write_text("[]")
    assert verified(workspace / "A/TiToken").codes["codes.broken"] == 6


def test_samples_and_codes_are_inspected_by_their_manifests(outputs: Path) -> None:
    report = inspect(InspectConfig(location=str(outputs / "packed"))).document()
    assert (report["samples"], report["layout"]) == (12, "packed")
    assert report["kinds"] == {"vla": 6, "wm": 6}
    ids = report["action_ids"]
    assert ids["min"] <= ids["mean"] <= ids["max"]
    assert sum(report["id_counts"].values()) == 6
    assert len(report["tasks"]) == 2
    for name in ("TiToken", "tokens"):
        codes = inspect(InspectConfig(location=str(outputs / "A" / name))).document()
        assert (codes["episodes"], codes["pictures"], codes["tokenizer"]) == (2, 12, "builder")


def test_a_sample_is_shown_without_its_windows(workspace: Path, tmp_path: Path) -> None:
    shutil.rmtree(workspace / "A")
    page = tmp_path / "page.html"
    inspect(InspectConfig(location=str(workspace / "packed"), html=str(page), html_samples=1))
    text = page.read_text()
    assert "the actions cannot be shown" in text
    assert text.count('class="image missing"') == 32
    assert "<img" not in text


@pytest.mark.parametrize("name", ["lines", "packed"])
def test_a_page_shows_images_actions_and_ids(outputs: Path, tmp_path: Path, name: str) -> None:
    page = tmp_path / "page.html"
    inspect(InspectConfig(location=str(outputs / name), html=str(page), html_samples=2))
    text = page.read_text()
    assert text.count("<img") == 2 * 64
    assert re.findall(r"<h2>Sample \d+, (\w+), episode_", text) == ["vla", "wm"]
    labels = {*re.findall(r'class="label">([^<]*)', text)}
    assert labels
    assert not [label for label in labels if "episode_" in label]
    assert "gripper" in text
