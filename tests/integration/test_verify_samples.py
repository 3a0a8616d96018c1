"""`verify` and `inspect` of codes and built samples: a code per defect, pages with pictures."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.codes import plain_fast, published_windows, tokenizer_digest, write_tree_codes
from vlatool.artifacts.codes import EpisodeCodes, write_codes
from vlatool.artifacts.codes_folder import CodesFolder
from vlatool.artifacts.samples_folder import SamplesFolder
from vlatool.errors import DataError
from vlatool.inspection.token_samples import CodesReport, SamplesReport, view_token_sample
from vlatool.jobs.files import NAME
from vlatool.jobs.record import OutputRecord
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.inspect import InspectConfig, inspect
from vlatool.workflows.verify import VerifyConfig, VerifyResult, verify

Break = Callable[[Path], Any]
FIRST = "episode_000000"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows with codes of either layout, and samples as lines and packed."""
    folder = tmp_path_factory.mktemp("made")
    tree = published_windows(folder / "A", 2, 3)
    write_tree_codes(tree, "json")
    write_tree_codes(tree, "packed")
    given = {"data": str(tree), "fast": str(plain_fast(folder / "fast")), "workers": 1}
    for name in ("lines", "packed"):
        own = {"output": str(folder / name), "packed": name == "packed"}
        build_dataset(BuildDatasetConfig.model_validate({**given, **own}))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "place"))


def verified(where: Path, **options: Any) -> VerifyResult:
    """The result, whether it was returned or came with the error."""
    try:
        result = verify(VerifyConfig(location=str(where), **options))
    except DataError as error:
        result = error.result
    assert isinstance(result, VerifyResult)
    return result


def found(where: Path, **options: Any) -> set[str]:
    """Codes of everything that is more than worth knowing, the list of files aside."""
    findings = verified(where, **options).findings
    codes = {one.code for one in findings if one.severity != "info"}
    return {code for code in codes if not code.startswith("output.")}


@pytest.mark.parametrize("name", ["lines", "packed", "A/TiToken", "A/tokens"])
def test_what_was_written_is_whole(made: Path, name: str) -> None:
    result = verified(made / name)
    assert result.kind == ("samples" if "/" not in name else "codes")
    assert not [one for one in result.findings if one.severity != "info"]
    assert result.checked["samples"] == (12 if "/" not in name else 0)


def in_lines(old: bytes, new: bytes) -> Break:
    def change(place: Path) -> None:
        path = place / f"lines/data/{FIRST}.jsonl"
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return change


def in_manifest(**values: Any) -> Break:
    def change(place: Path) -> None:
        path = place / "lines/manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def cut(place: Path) -> None:
    path = place / f"lines/data/{FIRST}.jsonl"
    path.write_bytes(path.read_bytes()[:-5])


def drop_line(place: Path) -> None:
    path = place / f"lines/data/{FIRST}.jsonl"
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
        (in_manifest(fast={"vocab_size": 9}), "unknown_action_id"),
        (in_manifest(samples=9), "count_mismatch"),
        (in_manifest(tasks={}), "count_mismatch"),
        (in_manifest(files=[[f"data/{FIRST}.jsonl", 7]]), "count_mismatch"),
        (in_manifest(files=[["data/x.jsonl", 7]]), "missing_file"),
        (in_manifest(files=[["../x", 7]]), "broken_manifest"),
        (in_manifest(version=9), "broken_manifest"),
        (lambda place: (place / f"lines/data/{FIRST}.jsonl").unlink(), "missing_file"),
        (cut, "broken_file"),
        (drop_line, "index_mismatch"),
        (
            lambda place: (place / f"lines/data/{FIRST}.index.npz").write_bytes(b"x"),
            "index_mismatch",
        ),
        (lambda place: shutil.rmtree(place / f"A/images/{FIRST}"), "missing_picture"),
        (lambda place: (place / "A").rename(place / "B"), "no_pictures"),
    ],
)
def test_a_defect_of_lines_has_its_code(place: Path, change: Break, code: str) -> None:
    change(place)
    assert f"samples.{code}" in found(place / "lines")


def test_packed_samples_that_are_torn_are_found(place: Path) -> None:
    path = place / f"packed/packed/{FIRST}.npz"
    path.write_bytes(path.read_bytes()[:-40])
    assert found(place / "packed") == {"samples.broken_file"}


def test_missing_images_of_packed_samples_are_told_once_each(place: Path) -> None:
    next((place / f"A/images/{FIRST}").iterdir()).unlink()
    result = verified(place / "packed")
    assert result.counts == {"samples.missing_picture": 1}


def test_a_build_that_was_interrupted_is_incomplete(tmp_path: Path) -> None:
    OutputRecord("build-dataset", {}).save(tmp_path)
    assert verified(tmp_path).counts == {"output.incomplete": 1}


def test_quick_looks_into_no_line(place: Path) -> None:
    in_lines(b"</Rec>.", b"</Rec>,")(place)
    assert found(place / "lines", quick=True) == set()


def code_file(place: Path) -> Path:
    return sorted((place / f"A/TiToken/{FIRST}").iterdir())[0]


def other_codes(place: Path) -> None:
    """The same pictures with other codes."""
    folder = CodesFolder.open(place / "A/tokens")
    codes = folder.read(FIRST)
    other = EpisodeCodes(FIRST, codes.stems, np.flip(codes.codes, axis=1))
    write_codes(place / "A/tokens", "packed", other, tokenizer_digest("builder"))


def another_tokenizer(place: Path) -> None:
    other = write_tree_codes(place / "A", "packed", folder=place / "other", name="another")
    (other / f"{FIRST}.npz").replace(place / f"A/tokens/{FIRST}.npz")


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("TiToken", lambda place: code_file(place).unlink(), "missing"),
        ("TiToken", lambda place: code_file(place).write_text("[1]"), "broken"),
        ("TiToken", lambda place: shutil.rmtree(code_file(place).parent), "count_mismatch"),
        ("TiToken", lambda place: code_file(place).write_text(str([[1]] * 32)), "digest_mismatch"),
        (
            "TiToken",
            lambda place: (place / "A/TiToken/manifest.json").write_text("{"),
            "broken_manifest",
        ),
        ("tokens", lambda place: (place / f"A/tokens/{FIRST}.npz").write_bytes(b"x"), "broken"),
        (
            "tokens",
            lambda place: next((place / f"A/images/{FIRST}").iterdir()).unlink(),
            "no_picture",
        ),
        ("tokens", other_codes, "digest_mismatch"),
        ("tokens", another_tokenizer, "other_tokenizer"),
    ],
)
def test_a_defect_of_codes_has_its_code(place: Path, name: str, change: Break, code: str) -> None:
    change(place)
    assert f"codes.{code}" in found(place / "A" / name)


def test_every_broken_file_of_codes_is_told(place: Path) -> None:
    for path in (place / f"A/TiToken/{FIRST}").iterdir():
        path.write_text("[]")
    assert verified(place / "A/TiToken").counts["codes.broken"] == 6


def test_published_codes_without_manifest_are_whole(place: Path) -> None:
    (place / "A/TiToken/manifest.json").unlink()
    result = verified(place / "A/TiToken")
    assert result.is_whole
    assert "codes.no_manifest" in result.counts


def test_samples_are_inspected_by_their_manifest(made: Path) -> None:
    report = inspect(InspectConfig(location=str(made / "packed"))).report
    assert isinstance(report, SamplesReport)
    assert (report.samples, report.kinds, report.layout) == (12, {"vla": 6, "wm": 6}, "packed")
    assert report.action_ids["min"] <= report.action_ids["mean"] <= report.action_ids["max"]
    assert sum(report.id_counts.values()) == 6
    assert len(report.tasks) == 2


@pytest.mark.parametrize("name", ["TiToken", "tokens"])
def test_codes_are_inspected(made: Path, name: str) -> None:
    report = inspect(InspectConfig(location=str(made / "A" / name))).report
    assert isinstance(report, CodesReport)
    assert (report.episodes, report.pictures, report.tokenizer) == (2, 12, "builder")


def test_a_sample_is_seen_with_its_images_and_actions(made: Path) -> None:
    view = view_token_sample(SamplesFolder.open(made / "packed"), 3)
    assert [len(shots) for shots in (*view.past.values(), *view.future.values())] == [16] * 4
    assert all(shot.image for shots in view.past.values() for shot in shots)
    assert view.actions is not None
    assert view.actions.shape == (16, 7)


def test_a_sample_is_seen_without_its_windows(place: Path) -> None:
    shutil.rmtree(place / "A")
    view = view_token_sample(SamplesFolder.open(place / "packed"), 3)
    assert (view.actions, view.future) == (None, {})
    assert not any(shot.image for shots in view.past.values() for shot in shots)


@pytest.mark.parametrize("name", ["lines", "packed"])
def test_a_page_shows_images_actions_and_ids(made: Path, tmp_path: Path, name: str) -> None:
    page = tmp_path / "page.html"
    inspect(InspectConfig(location=str(made / name), html=str(page), html_samples=2))
    text = page.read_text()
    assert text.count("<img") == 2 * 64
    assert len(re.findall(r"<h2>Sample \d+, episode_", text)) == 2
    assert "gripper" in text


def test_a_file_list_is_not_needed_to_look(place: Path) -> None:
    (place / "lines" / NAME).unlink()
    assert found(place / "lines") == set()
