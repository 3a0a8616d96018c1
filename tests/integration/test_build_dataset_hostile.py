"""`build-dataset`, `export`, `verify` of folders that lead elsewhere or hold what is not theirs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.codes import plain_fast, published_windows, write_tree_codes
from vlatool.errors import DataError, PartialFailure
from vlatool.workflows.build_dataset import BuildDatasetConfig, BuildDatasetResult, build_dataset
from vlatool.workflows.export import ExportConfig, ExportResult, export
from vlatool.workflows.verify import VerifyConfig, VerifyResult, verify

FIRST, SECOND = "episode_000000", "episode_000001"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows with packed codes, an action tokenizer, and packed samples."""
    folder = tmp_path_factory.mktemp("made")
    write_tree_codes(published_windows(folder / "A", 2, 3), "packed")
    plain_fast(folder / "fast")
    build(folder, "packed", packed=True)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "place"))


def build(place: Path, output: str, **options: Any) -> BuildDatasetResult:
    tree = {"data": str(place / "A"), "fast": str(place / "fast"), "workers": 1, **options}
    return build_dataset(BuildDatasetConfig.model_validate({**tree, "output": str(place / output)}))


def exported(source: Path, output: Path) -> None:
    export(ExportConfig(source=str(source), output=str(output), workers=1))


def failed(run: Callable[[], object]) -> list[str]:
    """Why the first episode failed, where it is the only one."""
    with pytest.raises(PartialFailure) as caught:
        run()
    result = caught.value.result
    assert isinstance(result, BuildDatasetResult | ExportResult)
    return [one["code"] for one in result.failures if one["episode"] == FIRST]


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def change_arrays(path: Path, **arrays: Any) -> None:
    with np.load(path) as there:
        kept = {name: there[name] for name in there.files}
    np.savez(path, **{**kept, **arrays})


FOREIGN: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "path_upwards": (
        lambda lines: [line.replace("images/", "images/../") for line in lines],
        "data.foreign_picture",
    ),
    "whole_path": (
        lambda lines: [line.replace('"images/', '"/images/') for line in lines],
        "data.foreign_picture",
    ),
    "another_episode": (
        lambda lines: [line.replace(FIRST, SECOND) for line in lines],
        "data.foreign_picture",
    ),
    "line_twice": (lambda lines: [*lines, lines[-1]], "data.duplicate_window"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_windows_that_are_not_of_their_episode_fail_it_alone(place: Path, name: str) -> None:
    change, code = FOREIGN[name]
    rewrite(place / "A/data" / f"{FIRST}.jsonl", change)

    assert failed(lambda: build(place, "OUT")) == [code]


def test_codes_called_like_the_folder_above_leave_it_alone(place: Path) -> None:
    tokens = place / "A/tokens"
    (tokens / f"{FIRST}.npz").rename(tokens / "...npz")

    with pytest.raises(DataError) as caught:
        exported(tokens, place / "OUT")

    assert caught.value.code == "data.codes_changed"
    assert (place / "fast").is_dir()


def test_codes_of_a_image_with_a_path_are_refused(place: Path) -> None:
    path = place / "A/tokens" / f"{FIRST}.npz"
    with np.load(path) as there:
        change_arrays(path, stems=np.array([f"../../{stem}" for stem in there["stems"]]))

    assert failed(lambda: exported(place / "A/tokens", place / "OUT")) == ["data.broken_codes"]


def test_codes_of_an_episode_that_the_manifest_counts_are_missed(place: Path) -> None:
    (place / "A/tokens" / f"{FIRST}.npz").unlink()

    with pytest.raises(DataError) as caught:
        exported(place / "A/tokens", place / "OUT")

    assert caught.value.code == "data.codes_changed"


def test_packed_samples_of_another_number_fail_their_episode(place: Path) -> None:
    path = place / "packed/packed" / f"{FIRST}.npz"
    with np.load(path) as there:
        change_arrays(path, **{name: there[name][:-1] for name in ("kinds", "windows", "task_of")})

    assert failed(lambda: exported(place / "packed", place / "OUT")) == ["data.broken_samples"]


def findings(place: Path) -> list[str]:
    """Codes of the errors and warnings in a folder."""
    try:
        result = verify(VerifyConfig(location=str(place)))
    except DataError as error:
        result = error.result
    assert isinstance(result, VerifyResult)
    return [one.code for one in result.findings if one.severity != "info"]


@pytest.mark.parametrize("packed", [False, True])
def test_space_behind_an_instruction_leaves_samples_whole(place: Path, packed: bool) -> None:
    for path in (place / "A/data").glob("*.jsonl"):
        rewrite(path, lambda lines: [line.replace("\\n\\n", "  \\n\\n", 1) for line in lines])

    build(place, "OUT", packed=packed)

    assert findings(place / "OUT") == []


def test_verify_tells_of_a_tag_in_a_packed_instruction(place: Path) -> None:
    change_arrays(place / "packed/packed" / f"{FIRST}.npz", tasks=np.array(["a </Act> b"]))

    assert "samples.broken_file" in findings(place / "packed")


def test_verify_tells_once_of_codes_that_cannot_be_read(place: Path) -> None:
    path = place / "A/tokens" / f"{FIRST}.npz"
    path.write_bytes(path.read_bytes()[:-30])

    assert findings(place / "A/tokens").count("codes.missing") == 0
