"""`vlatool tokenizer fit-fast`: a FAST folder from windows or shards."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.fast import STEPS, smooth_actions, window_tree
from tests.builders.preprocessing import contents
from tests.builders.shards import shard_output
from tests.builders.training import world_shards
from tests.builders.web_server import web_server
from tests.surface.invoke import run_vlatool
from vlatool.artifacts.fast.format import NAMES, fast_digest, read_fast
from vlatool.artifacts.profile import read_profile
from vlatool.artifacts.windows.format import WindowManifest, write_manifest
from vlatool.errors import VlatoolError
from vlatool.jobs.record import OutputRecord
from vlatool.storage.uri import location
from vlatool.workflows.fit_fast import FitFastConfig, FitFastResult, fit_fast

MANIFEST = WindowManifest(
    names=("windows",),
    cameras=("image",),
    fps=None,
    action_fields=("actions",),
    action_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    action_width=7,
    past_steps=1,
    future_steps=16,
    qa_mode="both",
    image_size=None,
    episodes=2,
    frames=80,
    samples=160,
    pictures=0,
    untouched=0,
)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return window_tree(tmp_path_factory.mktemp("windows"))


def fit(source: Path, output: Path, **keys: Any) -> FitFastResult:
    options = {"vocab_size": 400, "workers": 1, **keys}
    return fit_fast(FitFastConfig(sources=[str(source)], output=str(output), **options))


def error_of(work: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(VlatoolError) as caught:
        work()
    assert caught.value.hint
    return caught.value.code, caught.value.exit_code


def test_the_command_prints_the_result_and_writes_the_published_files(
    windows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "fast"
    words = ("tokenizer", "fit-fast", str(windows), "--output", str(output))

    code, text = run_vlatool(*words, "--vocab-size", "400", "--workers", "1", "--json")

    report = json.loads(text)
    assert code == 0
    assert (report["chunks"], report["steps"], report["width"]) == (80, 16, 7)
    assert report["quality"]["exact"] == report["quality"]["in_range"] == 1
    assert report["digest"] == read_fast(output).digest
    assert all((output / name).is_file() for name in NAMES)


def test_the_computed_profile_counts_each_row_once(windows: Path, tmp_path: Path) -> None:
    fit(windows, tmp_path / "fast")

    loaded = read_profile(str(tmp_path / "fast"))
    rows = np.concatenate([smooth_actions(number, 40) for number in range(2)])
    np.testing.assert_allclose(loaded.mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(loaded.std, rows.std(axis=0), atol=1e-6)


def test_one_or_two_lines_per_step_give_the_same_tokenizer(windows: Path, tmp_path: Path) -> None:
    single = window_tree(tmp_path / "single", kinds=("wm",))

    digests = {fit(result, tmp_path / result.name / "fast").digest for result in (windows, single)}

    assert len(digests) == 1


def test_chunks_are_decoded_within_the_reported_error(windows: Path, tmp_path: Path) -> None:
    result = fit(windows, tmp_path / "fast", profile="libero")
    tokenizer, profile = read_fast(tmp_path / "fast"), read_profile("libero")
    chunk = smooth_actions(0, 40)[None, :STEPS]

    back, _ = tokenizer.decode(tokenizer.encode(profile.normalize(chunk)), *chunk.shape[1:])

    change = np.abs(profile.denormalize(back) - chunk).max(axis=(0, 1))
    largest = [row["largest"] for row in result.quality["error"].values()]
    assert (change <= np.array(largest) + 1e-6).all()
    assert list(result.quality["error"])[-1] == "gripper"


def test_the_next_command_leaves_the_profile_to_the_tokenizer(
    windows: Path, tmp_path: Path
) -> None:
    fast = tmp_path / "fast"
    result = fit(windows, fast, profile="libero", gripper="normalised")
    assert result.next == f"vlatool build-dataset {windows} --fast {fast}"


def test_an_equal_run_is_already_complete(windows: Path, tmp_path: Path) -> None:
    first = fit(windows, tmp_path / "fast")
    before = contents(tmp_path / "fast")

    again = fit(windows, tmp_path / "fast", workers=2)

    assert again.status == "already complete"
    assert again.document() == {**first.document(), "status": "already complete"}
    assert contents(tmp_path / "fast") == before


def test_other_options_are_rejected_without_overwrite(windows: Path, tmp_path: Path) -> None:
    fit(windows, tmp_path / "fast")

    code = error_of(lambda: fit(windows, tmp_path / "fast", scale=20))

    assert code == ("usage.output_differs", 2)


def test_other_data_are_rejected_without_overwrite(windows: Path, tmp_path: Path) -> None:
    data = tmp_path / "windows"
    shutil.copytree(windows, data)
    fit(data, tmp_path / "fast")
    shutil.rmtree(data)
    window_tree(data, episodes=1)

    code = error_of(lambda: fit(data, tmp_path / "fast"))

    assert code == ("usage.output_differs", 2)


def test_overwrite_writes_the_same_files_as_a_new_run(windows: Path, tmp_path: Path) -> None:
    fit(windows, tmp_path / "new", profile="libero")
    fit(windows, tmp_path / "old")

    fit(windows, tmp_path / "old", profile="libero", overwrite=True)

    assert contents(tmp_path / "old") == contents(tmp_path / "new")


def test_a_folder_with_other_content_is_not_changed(windows: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")

    code = error_of(lambda: fit(windows, tmp_path, overwrite=True))

    assert code == ("usage.output_exists", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_dry_run_writes_nothing(windows: Path, tmp_path: Path) -> None:
    result = fit(windows, tmp_path / "fast", dry_run=True)

    assert (result.status, result.chunks) == ("planned", 80)
    assert not (tmp_path / "fast").exists()


def test_a_limit_selects_chunks_with_the_seed(windows: Path, tmp_path: Path) -> None:
    results = [
        fit(windows, tmp_path / str(at), limit=20, seed=seed) for at, seed in enumerate((1, 1, 2))
    ]

    assert [result.fitted_on for result in results] == [20] * 3
    assert [result.digest == results[0].digest for result in results] == [True, True, False]
    assert all(
        result.quality["in_range"] == 1 for result in results
    )  # the range is that of all chunks


def test_the_published_alphabet_has_an_id_per_coefficient(windows: Path, tmp_path: Path) -> None:
    result = fit(windows, tmp_path / "fast", alphabet="published")

    vocabulary = json.loads(read_fast(tmp_path / "fast").document)["model"]["vocab"]
    span = result.highest - result.lowest + 1
    assert {chr(code) for code in range(span)} <= vocabulary.keys()
    assert result.quality["exact"] == 1


def test_a_vocabulary_that_is_too_small_is_rejected(windows: Path, tmp_path: Path) -> None:
    work = lambda: fit(windows, tmp_path / "fast", alphabet="published", scale=500)  # noqa: E731

    assert error_of(work) == ("usage.vocab_size", 2)


@pytest.mark.parametrize(("gripper", "raw"), [("raw", ("gripper",)), ("normalised", ())])
def test_a_named_gripper_is_raw_by_default(
    windows: Path, tmp_path: Path, gripper: str, raw: tuple[str, ...]
) -> None:
    data = tmp_path / "windows"
    shutil.copytree(windows, data)
    write_manifest(data, MANIFEST)

    fit(data, tmp_path / "fast", gripper=gripper)

    assert read_profile(str(tmp_path / "fast")).raw == raw


def test_incomplete_windows_are_rejected(windows: Path, tmp_path: Path) -> None:
    data = tmp_path / "windows"
    shutil.copytree(windows, data)
    OutputRecord("preprocess", {}).save(data)

    assert error_of(lambda: fit(data, tmp_path / "fast")) == ("data.incomplete_output", 3)


def test_tokenizer_and_profile_are_read_from_the_web(windows: Path, tmp_path: Path) -> None:
    result = fit(windows, tmp_path / "fast")

    with web_server(tmp_path) as server:
        loaded = fast_digest(location(f"{server.endpoint}/fast"))
        profile = read_profile(f"{server.endpoint}/fast")

    assert (loaded, profile.digest) == (result.digest, result.profile_digest)


def test_a_tokenizer_is_fitted_on_shards(tmp_path: Path) -> None:
    data = world_shards(tmp_path / "world", episodes=2, frames=20)

    result = fit(data, tmp_path / "fast", raw=["19"])

    assert result.width == 20
    assert result.quality["exact"] == 1
    assert read_profile(str(tmp_path / "fast")).raw == ("19",)


def test_shards_without_action_fields_need_the_option(tmp_path: Path) -> None:
    data = shard_output(tmp_path / "data")

    assert error_of(lambda: fit(data, tmp_path / "fast")) == ("usage.action_fields", 2)
    fit(data, tmp_path / "fast", action_fields=["action"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}\n", ":2"),
        (b"not json\n", ":2"),
        (b'{"messages": [], "images": []}\n', ":2"),
        (b"{", "truncated"),
    ],
)
def test_a_broken_line_is_reported(
    windows: Path, tmp_path: Path, line: bytes, message: str
) -> None:
    data = tmp_path / "windows" / "data"
    shutil.copytree(windows / "data", data)
    path = data / "episode_000001.jsonl"
    first = path.read_bytes().partition(b"\n")[0] + b"\n"
    path.write_bytes(first + line)

    with fails("data.broken_window", 3) as caught:
        fit(tmp_path / "windows", tmp_path / "fast")
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert not (tmp_path / "fast").exists()


def test_a_folder_without_chunks_is_rejected(tmp_path: Path) -> None:
    assert error_of(lambda: fit(tmp_path, tmp_path / "fast")) == ("data.no_chunks", 3)


def test_a_profile_of_another_width_is_rejected(tmp_path: Path) -> None:
    data = world_shards(tmp_path / "world", episodes=1, frames=20)

    code = error_of(lambda: fit(data, tmp_path / "fast", profile="libero"))

    assert code == ("data.profile_mismatch", 3)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"raw": ["9"]}, "usage.unknown_dimension"),
        ({"raw": ["6"], "profile": "libero"}, "usage.conflict"),
        ({"profile": "nothing"}, "usage.unknown_profile"),
        ({"action_fields": ["a"]}, "usage.action_fields"),
        ({"gripper": "normalised"}, "usage.no_gripper"),
    ],
)
def test_inconsistent_options_are_rejected(
    windows: Path, tmp_path: Path, keys: dict[str, Any], code: str
) -> None:
    assert error_of(lambda: fit(windows, tmp_path / "fast", **keys)) == (code, 2)
