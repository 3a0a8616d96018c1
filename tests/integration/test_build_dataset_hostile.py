"""`build-dataset`, `export`, `verify` of folders with foreign or malicious content."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.codes import plain_fast, published_windows, write_tree_codes
from tests.builders.errors import fails
from vlatool.errors import DataError, PartialFailure
from vlatool.workflows.build_dataset import BuildDatasetConfig, BuildDatasetResult, build_dataset
from vlatool.workflows.export import ExportConfig, ExportResult, export
from vlatool.workflows.verify import VerifyConfig, VerifyResult, verify

FIRST, SECOND = "episode_000000", "episode_000001"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows with packed codes, an action tokenizer, and packed samples."""
    folder = tmp_path_factory.mktemp("made")
    write_tree_codes(published_windows(folder / "A", 2, 3), "packed")
    plain_fast(folder / "fast")
    build(folder, "packed", packed=True)
    return folder


@pytest.fixture
def workspace(inputs: Path, tmp_path: Path) -> Path:
    """Copy that a test may damage."""
    return Path(shutil.copytree(inputs, tmp_path / "place"))


def build(workspace: Path, output: str, **options: Any) -> BuildDatasetResult:
    tree = {"data": str(workspace / "A"), "fast": str(workspace / "fast"), "workers": 1, **options}
    return build_dataset(
        BuildDatasetConfig.model_validate({**tree, "output": str(workspace / output)})
    )


def exported(source: Path, output: Path) -> None:
    export(ExportConfig(source=str(source), output=str(output), workers=1))


def failed(run: Callable[[], object]) -> list[str]:
    """Codes of the failure of the first episode, the only one that fails."""
    with pytest.raises(PartialFailure) as caught:
        run()
    result = caught.value.result
    assert isinstance(result, BuildDatasetResult | ExportResult)
    return [row["code"] for row in result.failures if row["episode"] == FIRST]


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def change_arrays(path: Path, **arrays: Any) -> None:
    with np.load(path) as archive:
        arrays_before = {name: archive[name] for name in archive.files}
    np.savez(path, **{**arrays_before, **arrays})


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
def test_windows_of_another_episode_fail_only_this_episode(workspace: Path, name: str) -> None:
    change, code = FOREIGN[name]
    rewrite(workspace / "A/data" / f"{FIRST}.jsonl", change)

    assert failed(lambda: build(workspace, "OUT")) == [code]


def test_codes_named_like_the_parent_folder_do_not_touch_it(workspace: Path) -> None:
    tokens = workspace / "A/tokens"
    (tokens / f"{FIRST}.npz").rename(tokens / "...npz")

    with fails("data.codes_changed"):
        exported(tokens, workspace / "OUT")
    assert (workspace / "fast").is_dir()


def test_codes_of_an_image_with_a_path_are_rejected(workspace: Path) -> None:
    path = workspace / "A/tokens" / f"{FIRST}.npz"
    with np.load(path) as archive:
        change_arrays(path, stems=np.array([f"../../{stem}" for stem in archive["stems"]]))

    assert failed(lambda: exported(workspace / "A/tokens", workspace / "OUT")) == [
        "data.broken_codes"
    ]


def test_missing_codes_of_a_counted_episode_are_reported(workspace: Path) -> None:
    (workspace / "A/tokens" / f"{FIRST}.npz").unlink()

    with fails("data.codes_changed"):
        exported(workspace / "A/tokens", workspace / "OUT")


def test_packed_samples_of_another_number_fail_their_episode(workspace: Path) -> None:
    path = workspace / "packed/packed" / f"{FIRST}.npz"
    with np.load(path) as archive:
        change_arrays(
            path, **{name: archive[name][:-1] for name in ("kinds", "windows", "task_of")}
        )

    assert failed(lambda: exported(workspace / "packed", workspace / "OUT")) == [
        "data.broken_samples"
    ]


def findings(workspace: Path) -> list[str]:
    """Codes of the errors and warnings in a folder."""
    try:
        result = verify(VerifyConfig(location=str(workspace)))
    except DataError as error:
        result = error.result
    assert isinstance(result, VerifyResult)
    return [row.code for row in result.findings if row.severity != "info"]


@pytest.mark.parametrize("packed", [False, True])
def test_space_after_an_instruction_keeps_samples_valid(workspace: Path, packed: bool) -> None:
    for path in (workspace / "A/data").glob("*.jsonl"):
        rewrite(path, lambda lines: [line.replace("\\n\\n", "  \\n\\n", 1) for line in lines])

    build(workspace, "OUT", packed=packed)

    assert findings(workspace / "OUT") == []


def test_verify_reports_a_tag_in_a_packed_instruction(workspace: Path) -> None:
    change_arrays(workspace / "packed/packed" / f"{FIRST}.npz", tasks=np.array(["a </Act> b"]))

    assert "samples.broken_file" in findings(workspace / "packed")


def test_verify_reports_unreadable_codes_once(workspace: Path) -> None:
    path = workspace / "A/tokens" / f"{FIRST}.npz"
    path.write_bytes(path.read_bytes()[:-30])

    assert findings(workspace / "A/tokens").count("codes.missing") == 0
