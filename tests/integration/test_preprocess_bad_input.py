"""What a user sees when raw data, files or the disk are bad. Source: lbm-data 7.2-7.5."""

import ctypes
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.builders.lerobot import Columns, lerobot_dataset
from tests.builders.preprocessing import (
    arrays,
    contents,
    metadata,
    options_for,
    refusal,
    run,
    samples,
)
from tests.builders.spartan import CAMERAS, Documents, session_folder, spartan_task
from vlatool.artifacts.stats import read_stats
from vlatool.errors import VlatoolError
from vlatool.events import NullReporter
from vlatool.sinks.journal import Journal
from vlatool.workflows.preprocess import PreprocessResult
from vlatool.workflows.preprocessing.config import PreprocessConfig

FRAMES = 6
CAMERA = next(iter(CAMERAS))
XYZ = "robot__actual__poses__left::panda__xyz"
PREPROCESS = [sys.executable, "-m", "vlatool", "--json", "preprocess"]


def told_in_two_lines(failure: Mapping[str, Any]) -> bool:
    """Whether a failure says what and where in one line and what to do in another."""
    lines = (failure["message"], failure["hint"])
    return all(lines) and not any("\n" in line for line in lines)


def failure_of(error: VlatoolError) -> Mapping[str, Any]:
    """The only failed episode of a run."""
    assert error.exit_code == 4, error
    (failure,) = error.details["failures"]
    return failure


def with_broken(tmp_path: Path, change: Callable[[Documents], None]) -> Path:
    return spartan_task(tmp_path / "raw", 2, FRAMES, changes={1: change})


def processed(source: Path, episode: int = 1) -> Path:
    return session_folder(source) / f"episode_{episode}" / "processed"


def value(document: str, key: str, content: Any) -> Callable[[Documents], None]:
    """A change that sets one entry of a document."""

    def change(documents: Documents) -> None:
        documents[document][key] = content

    return change


def without(document: str, key: str | None = None) -> Callable[[Documents], None]:
    """A change that removes a document or one entry of it."""

    def change(documents: Documents) -> None:
        del (documents[document] if key else documents)[key or document]

    return change


def named(name: str) -> Callable[[Documents], None]:
    """A change of the name of the first camera."""
    return value("metadata", "camera_id_to_semantic_name", {**CAMERAS, CAMERA: name})


# what one episode can hold


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize(
    ("document", "key"),
    [("observations", "robot__x"), ("actions", "actions"), ("intrinsics", CAMERA)],
)
def test_pickled_array_is_never_executed(tmp_path: Path, document: str, key: str) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * FRAMES, dtype=object)
    source = with_broken(tmp_path, value(document, key, trap))

    failure = failure_of(refusal(source, tmp_path / "out"))

    assert (failure["code"], failure["details"]["key"]) == ("data.object_array", key)
    assert not (tmp_path / "sprung").exists()


BAD_CONTENT = {
    "observation of dates": (
        value("observations", "robot__x", np.zeros((FRAMES, 1), "M8[s]")),
        "data.bad_field",
        "robot__x",
    ),
    "observation of complex numbers": (
        value("observations", "robot__x", np.zeros((FRAMES, 1), complex)),
        "data.bad_field",
        "robot__x",
    ),
    "observation of records": (
        value("observations", "robot__x", np.zeros(FRAMES, [("a", "f8")])),
        "data.bad_field",
        "robot__x",
    ),
    "observation without channels": (
        value("observations", "robot__x", np.zeros((FRAMES, 0))),
        "data.bad_field",
        "robot__x",
    ),
    "observation of one value": (
        value("observations", "robot__x", np.float64(3)),
        "data.length_mismatch",
        "robot__x",
    ),
    "observation of another length": (
        value("observations", "robot__version", np.zeros((FRAMES - 1, 1))),
        "data.length_mismatch",
        "robot__version",
    ),
    "pictures of another length": (
        value("observations", CAMERA, np.zeros((FRAMES - 1, 24, 32, 3), np.uint8)),
        "data.length_mismatch",
        "camera scene_right_0",
    ),
    "actions of another length": (
        value("actions", "actions", np.zeros((FRAMES - 1, 20))),
        "data.length_mismatch",
        "robot__action__poses__right::panda__xyz",
    ),
    "extrinsics of another length": (
        value("extrinsics", CAMERA, np.tile(np.eye(4), (FRAMES - 1, 1, 1))),
        "data.length_mismatch",
        "scene_right_0",
    ),
    "actions of text": (
        value("actions", "actions", np.full((FRAMES, 20), "x")),
        "data.narrow_actions",
        "actions",
    ),
    "actions too narrow": (
        value("actions", "actions", np.zeros((FRAMES, 19))),
        "data.narrow_actions",
        "actions",
    ),
    "archive without actions": (without("actions", "actions"), "data.missing_array", "actions"),
    "intrinsics of text": (
        value("intrinsics", CAMERA, np.full((3, 3), "x")),
        "data.bad_calibration",
        CAMERA,
    ),
    "intrinsics with NaN": (
        value("intrinsics", CAMERA, np.full((3, 3), np.nan)),
        "data.bad_calibration",
        CAMERA,
    ),
    "extrinsics of another shape": (
        value("extrinsics", CAMERA, np.eye(3)),
        "data.bad_calibration",
        CAMERA,
    ),
    "pictures in floats": (
        value("observations", CAMERA, np.zeros((FRAMES, 24, 32, 3))),
        "data.not_pictures",
        CAMERA,
    ),
    "pictures without pixels": (
        value("observations", CAMERA, np.zeros((FRAMES, 0, 32, 3), np.uint8)),
        "data.broken_npz",
        CAMERA,
    ),
    "NaN": (
        value("observations", XYZ, np.full((FRAMES, 3), np.nan)),
        "data.not_finite",
        XYZ,
    ),
    "infinity": (
        value("actions", "actions", np.full((FRAMES, 20), np.inf)),
        "data.not_finite",
        "robot__action__poses__right::panda__xyz",
    ),
    "other fields than the first": (
        without("observations", "robot__version"),
        "data.schema_mismatch",
        "robot__version",
    ),
    "no camera mapping": (
        without("metadata", "camera_id_to_semantic_name"),
        "data.missing_field",
        "camera_id_to_semantic_name",
    ),
    "camera mapping of another form": (
        value("metadata", "camera_id_to_semantic_name", ["a"]),
        "data.missing_field",
        "camera_id_to_semantic_name",
    ),
    "mapping to cameras that are not there": (
        value("metadata", "camera_id_to_semantic_name", {"none": "front"}),
        "data.no_cameras",
        "observations.npz",
    ),
    "camera name with a comma": (named("a,b"), "data.bad_camera_name", "a,b"),
    "camera name with a slash": (named("a/b"), "data.bad_camera_name", "a/b"),
    "camera name with a newline": (named("scene_right_0\n"), "data.bad_camera_name", "metadata"),
    "camera name with a brace": (named("a{0..3}"), "data.bad_camera_name", "a{0..3}"),
    "camera name twice, in capitals": (
        named("WRIST_left_minus"),
        "data.bad_camera_name",
        "wrist_left_minus",
    ),
    **{
        f"no {name}": (without(name), "data.missing_file", f"processed/{name}.")
        for name in ("metadata", "observations", "actions", "intrinsics", "extrinsics")
    },
}


@pytest.mark.parametrize(("change", "code", "place"), BAD_CONTENT.values(), ids=BAD_CONTENT)
def test_bad_episode_is_told_by_code_and_place_and_the_other_is_kept(
    tmp_path: Path, change: Callable[[Documents], None], code: str, place: str
) -> None:
    error = refusal(with_broken(tmp_path, change), tmp_path / "out")

    failure = failure_of(error)
    assert failure["code"] == code
    assert place in failure["message"]
    assert told_in_two_lines(failure)
    assert isinstance(error.result, PreprocessResult)
    assert error.result.samples == FRAMES


@pytest.mark.parametrize(
    "content",
    [b"camera_id_to_semantic_name: {a: [", b"a: &a [x]\nb: {[1]: 2}", b"\xff\xfe\x00", b"\x07"],
    ids=["unfinished", "list as key", "no text", "control character"],
)
def test_metadata_that_is_no_yaml_is_told_in_two_lines(tmp_path: Path, content: bytes) -> None:
    source = spartan_task(tmp_path / "raw", 2, FRAMES)
    (processed(source) / "metadata.yaml").write_bytes(content)

    failure = failure_of(refusal(source, tmp_path / "out"))

    assert (failure["code"], told_in_two_lines(failure)) == ("data.broken_yaml", True)


@pytest.mark.parametrize("name", ["Scene.Right-0", "SCENE_RIGHT_0"])
def test_camera_name_with_capitals_is_stored_in_lower_case(tmp_path: Path, name: str) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES, cameras={CAMERA: name})

    run(source, tmp_path / "out")

    sample = next(samples(tmp_path / "out/shards"))
    assert f"{name.lower()}_t0.jpg" in sample
    assert f"rescaled_intrinsics.{name.lower()}" in arrays(sample)


# archives


def npy(shape: str, header_bytes: int = 0) -> bytes:
    """The head of an npy file; `header_bytes` pads it."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(header_bytes) + b"\n"
    return b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header


def add_member(path: Path, name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr(f"{name}.npy", data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def patch_directory(path: Path, at: int, value: bytes) -> None:
    """Changes every entry of the central directory at an offset."""
    content = bytearray(path.read_bytes())
    position = content.find(b"PK\x01\x02")
    while position >= 0:
        content[position + at : position + at + len(value)] = value
        position = content.find(b"PK\x01\x02", position + 4)
    path.write_bytes(content)


def ends_early(path: Path) -> None:
    """A member whose deflate stream ends long before the size it declares."""
    head = npy(f"({FRAMES}, 10)")
    add_member(path, "robot__x", head + bytes(480))
    content = path.read_bytes()
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    short = stream.compress(head + bytes(8)) + stream.flush()
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    whole = stream.compress(head + bytes(480)) + stream.flush()
    start = content.rfind(b"robot__x.npy", 0, content.find(b"PK\x01\x02")) + 12
    end = content.find(b"PK\x01\x02", start)
    padded = (short + b"\xff" * len(whole))[: end - start]
    path.write_bytes(content[:start] + padded + content[end:])


BAD_ARCHIVES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "data.broken_npz"),
    "cut in half": (cut_in_half, "data.broken_npz"),
    "empty": (lambda path: path.write_bytes(b""), "data.broken_npz"),
    "no archive": (lambda path: path.write_bytes(b"hello" * 100), "data.broken_npz"),
    "wrong checksums": (lambda path: patch_directory(path, 16, b"\1\2\3\4"), "data.broken_npz"),
    "encrypted": (lambda path: patch_directory(path, 8, b"\x01\x00"), "data.broken_npz"),
    "unknown compression": (lambda path: patch_directory(path, 10, b"\x63\x00"), "data.broken_npz"),
    "bzip2": (
        lambda path: add_member(path, "robot__x", npy("(6, 0)"), zipfile.ZIP_BZIP2),
        "data.broken_npz",
    ),
    "member larger than memory": (
        lambda path: add_member(path, "robot__x", npy(f"({FRAMES}, {10**15})")),
        "data.broken_npz",
    ),
    "directory that declares 4 GB": (
        lambda path: patch_directory(path, 24, b"\xf0\xff\xff\xff"),
        "data.broken_npz",
    ),
    "stream that ends early": (ends_early, "data.broken_npz"),
    "oversized header": (
        lambda path: add_member(path, "robot__x", npy("(6, 0)", 20_000)),
        "data.broken_npz",
    ),
    "header of a gigabyte": (
        lambda path: add_member(path, "robot__x", b"\x93NUMPY\x02\x00\xff\xff\xff\x3f"),
        "data.broken_npz",
    ),
    "header that is code": (
        lambda path: add_member(path, "robot__x", npy("__import__('os').abort()")),
        "data.broken_npz",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("spoil", "code"),
    [pytest.param(*row, id=name) for name, row in BAD_ARCHIVES.items()],
)
def test_bad_archive_is_told_by_path(
    tmp_path: Path, spoil: Callable[[Path], None], code: str
) -> None:
    source = spartan_task(tmp_path / "raw", 2, FRAMES)
    path = processed(source) / "observations.npz"
    spoil(path)

    failure = failure_of(refusal(source, tmp_path / "out"))

    assert (failure["code"], failure["details"]["path"]) == (code, str(path))
    assert told_in_two_lines(failure)


def test_array_that_inflates_to_gigabytes_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 2, FRAMES)
    path = processed(source) / "observations.npz"
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("robot__x.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy(f"({FRAMES}, 24000000)"))
        for _ in range(FRAMES * 24):
            member.write(bytes(8_000_000))

    failure = failure_of(refusal(source, tmp_path / "out"))

    assert (failure["code"], failure["details"]["key"]) == ("data.broken_npz", "robot__x")


# numbers that are none


def some_nan(documents: Documents) -> None:
    documents["observations"][XYZ][2, 1] = np.nan


@pytest.fixture(scope="module")
def with_nan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nan")
    source = spartan_task(folder / "raw", 1, FRAMES, changes={0: some_nan})
    run(source, folder / "out", fail_on_nan=False)
    return folder / "out/shards"


def test_nan_is_kept_in_the_samples_when_allowed(with_nan: Path) -> None:
    found = [np.isnan(arrays(one)[XYZ]).any() for one in samples(with_nan)]

    assert sum(found) == 4  # the windows of anchors 0 to 3 hold frame 2


def test_statistics_leave_out_rows_with_nan(with_nan: Path) -> None:
    entry = read_stats(with_nan / "stats.json")
    rows = np.concatenate(
        [a[XYZ][a["past_mask"] | a["future_mask"]] for a in map(arrays, samples(with_nan))]
    )
    finite = rows[np.isfinite(rows).all(axis=1)]

    np.testing.assert_allclose(entry[XYZ]["mean"], finite.mean(axis=0))
    assert sum(entry[XYZ]["count"]) == len(finite)


def test_statistics_of_data_with_nan_are_strict_json(with_nan: Path) -> None:
    def refuse(literal: str) -> None:
        raise AssertionError(literal)

    json.loads((with_nan / "stats.json").read_text(), parse_constant=refuse)


# cameras asked for


@pytest.mark.parametrize(
    "options",
    [{"camera_names": ["scene_right_o"]}, {"camera_rotations": {"scene_right_o": 1}}],
    ids=["camera_names", "camera_rotations"],
)
def test_unknown_camera_is_told_with_the_nearest(tmp_path: Path, options: dict[str, Any]) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES)

    error = refusal(source, tmp_path / "out", **options)

    assert (error.code, error.exit_code) == ("data.unknown_camera", 3)
    assert "scene_right_0" in error.hint


@pytest.mark.parametrize(("key", "twice"), [("camera_names", "front"), ("image_indices", 1)])
def test_what_is_named_twice_is_refused(key: str, twice: Any) -> None:
    with pytest.raises(ValidationError, match="is given twice"):
        PreprocessConfig.model_validate({key: [twice, twice]})


# language


def test_task_without_annotation_is_a_warning(tmp_path: Path) -> None:
    annotations = tmp_path / "language.yaml"
    annotations.write_text("language_dict: {OtherTask: {original: [do it]}}")
    source = spartan_task(tmp_path / "raw", 1, FRAMES)

    result = run(source, tmp_path / "out", source={"language_annotations_path": str(annotations)})

    assert result.warnings == ("language_fallback: 1 episodes",)


BAD_FILES = [
    ("language_annotations_path", "language_dict: [a]", "data.broken_annotations"),
    ("language_annotations_path", "a: b", "data.broken_annotations"),
    (
        "language_annotations_path",
        "language_dict: {T: {original: text}}",
        "data.broken_annotations",
    ),
    pytest.param("language_annotations_path", "{", "data.broken_annotations", id="no yaml"),
    ("validation_episodes_path", "[1]", "data.broken_file"),
    ("validation_episodes_path", '{"T": 3}', "data.broken_file"),
    ("validation_episodes_path", '{"T": "12"}', "data.broken_file"),
    ("validation_episodes_path", '{"T": ["x"]}', "data.broken_file"),
    ("validation_episodes_path", "{", "data.broken_file"),
    ("action_fields_config_path", "[1]", "data.broken_file"),
    ("action_fields_config_path", "action_key_fields: [a]", "data.broken_file"),
    (
        "action_fields_config_path",
        "{action_key_fields: [a, b], action_index_fields: [1]}",
        "data.broken_file",
    ),
    (
        "action_fields_config_path",
        "{action_key_fields: [a, a], action_index_fields: [1, 2]}",
        "data.broken_file",
    ),
    (
        "action_fields_config_path",
        "{action_key_fields: [a, b], action_index_fields: [2, 1]}",
        "data.broken_file",
    ),
    (
        "action_fields_config_path",
        "{action_key_fields: [a], action_index_fields: [1], pose_groups: [{name: x}]}",
        "data.broken_file",
    ),
    (
        "action_fields_config_path",
        "{action_key_fields: [a], action_index_fields: [1], pose_groups: [x]}",
        "data.broken_file",
    ),
]


@pytest.mark.parametrize(("key", "content", "code"), BAD_FILES)
def test_side_file_of_another_form_is_told_by_path(
    tmp_path: Path, key: str, content: str, code: str
) -> None:
    path = tmp_path / "side"
    path.write_text(content)
    source = spartan_task(tmp_path / "raw", 1, FRAMES)

    error = refusal(source, tmp_path / "out", source={key: str(path)})

    assert (error.code, error.exit_code) == (code, 3)
    assert str(path) in error.message
    assert told_in_two_lines(vars(error))


@pytest.mark.parametrize(
    "key", ["language_annotations_path", "validation_episodes_path", "action_fields_config_path"]
)
def test_missing_side_file_is_told_by_path(tmp_path: Path, key: str) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES)

    error = refusal(source, tmp_path / "out", source={key: str(tmp_path / "none")})

    assert error.exit_code == 3
    assert str(tmp_path / "none") in error.message


# nothing is left


@pytest.mark.parametrize(
    ("options", "reason", "option"),
    [
        ({"future_lowdim_steps": 50, "max_padding_right": 0}, "padding", "--max-padding"),
        pytest.param(
            {"filter_still_samples": True, "still_threshold": 1e9},
            "still",
            "--still-threshold",
        ),
        pytest.param({"only_successful": True}, "success_unknown", "--only-successful"),
    ],
    ids=["padding", "still", "success"],
)
def test_zero_samples_end_with_the_option_to_loosen(
    tmp_path: Path, options: dict[str, Any], reason: str, option: str
) -> None:
    source = spartan_task(tmp_path / "raw", 2, FRAMES)

    error = refusal(source, tmp_path / "out", **options)

    assert (error.code, error.exit_code) == ("data.no_samples", 3)
    assert list(error.details["dropped"]) == [reason]
    assert option in error.hint


def test_zero_samples_for_lack_of_cameras_end_with_the_option_to_loosen(tmp_path: Path) -> None:
    right, left = CAMERAS
    changes = {
        0: value("metadata", "camera_id_to_semantic_name", {right: CAMERAS[right]}),
        1: value("metadata", "camera_id_to_semantic_name", {left: CAMERAS[left]}),
    }
    source = spartan_task(tmp_path / "raw", 2, FRAMES, changes=changes)

    error = refusal(
        source,
        tmp_path / "out",
        camera_names=list(CAMERAS.values()),
        skip_episodes_missing_cameras=True,
    )

    assert (error.code, error.details["dropped"]) == (
        "data.no_samples",
        {"episode_missing_camera": 2},
    )
    assert "--skip-episodes-missing-cameras" in error.hint


def test_episode_shorter_than_the_window_is_dropped_and_named(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 1, 9)
    spartan_task(tmp_path / "raw", 1, 2, task="ShortTask")

    result = run(source, tmp_path / "out", max_padding_right=0)

    assert result.dropped == {"padding": 3 + 2}
    assert [name[:9] for name in result.empty_episodes] == ["ShortTask"]


# running again


def test_lock_left_by_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES)
    (tmp_path / "out/.vlatool").mkdir(parents=True)
    (tmp_path / "out/.vlatool/lock").write_text('{"pid": 1, "command": "x", "started": "y"}')

    assert run(source, tmp_path / "out").samples == FRAMES


def test_output_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES)
    (tmp_path / "out").touch()

    error = refusal(source, tmp_path / "out")

    assert (error.exit_code, told_in_two_lines(vars(error))) == (5, True)


class Killed(BaseException):
    """The end of a run from outside."""


class After(NullReporter):
    """Does something after a number of episodes; a substitute at the protocol."""

    def __init__(self, episodes: int, action: Callable[[], None]) -> None:
        self._left = episodes
        self._action = action

    def progress(self, name: str, total: int | None, unit: str) -> "After":
        del total, unit
        self._counts = name == "episodes"
        return self

    def __enter__(self) -> "After":
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        del fields
        self._left -= amount if self._counts else 0
        if self._left == 0:
            self._left = -1
            self._action()


def kill() -> None:
    raise Killed


EPISODES = 3


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("pristine") / "raw", EPISODES, FRAMES)


@pytest.fixture(scope="module")
def undisturbed(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("quiet") / "out"
    run(pristine, output)
    return contents(output)


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "raw"))


def killed_run(source: Path, output: Path, after: int = 2) -> None:
    with pytest.raises(Killed):
        run(source, output, reporter=After(after, kill))


def episode_folder(source: Path, number: int) -> Path:
    return session_folder(source) / f"episode_{number}"


@pytest.mark.parametrize(
    "victim", ["", "processed/observations.npz", "processed/metadata.yaml"], ids=str
)
def test_source_that_vanishes_midway_costs_only_its_episode(
    source: Path, tmp_path: Path, victim: str
) -> None:
    path = episode_folder(source, 1) / victim

    def vanish() -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    with pytest.raises(VlatoolError) as caught:
        run(source, tmp_path / "out", reporter=After(1, vanish))

    assert (caught.value.exit_code, failure_of(caught.value)["code"]) == (4, "data.missing_file")
    kept = {metadata(one)["episode_id"][-1] for one in samples(tmp_path / "out/shards")}
    assert kept == {"0", "2"}


def test_source_that_vanished_and_came_back_gives_the_undisturbed_bytes(
    source: Path, pristine: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = episode_folder(source, 1)
    with pytest.raises(VlatoolError):
        run(source, tmp_path / "out", reporter=After(1, lambda: shutil.rmtree(folder)))
    shutil.copytree(episode_folder(pristine, 1), folder)

    result = run(source, tmp_path / "out")

    assert result.resumed == 2
    assert contents(tmp_path / "out") == undisturbed


def test_killed_run_goes_on_and_gives_the_undisturbed_bytes(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    killed_run(source, tmp_path / "out")

    result = run(source, tmp_path / "out")

    assert result.resumed == 2
    assert contents(tmp_path / "out") == undisturbed


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [tear, blank, empty, flip, Path.unlink])
def test_episode_whose_journal_entry_is_spoiled_is_done_again(
    source: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    spoil: Callable[[Path], None],
) -> None:
    killed_run(source, tmp_path / "out")
    spoil(min((tmp_path / "out/.vlatool/journal/episodes").iterdir()))

    result = run(source, tmp_path / "out")

    assert result.resumed == 1
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("spoil", [Path.unlink, tear])
def test_episode_whose_tar_is_gone_is_done_again(
    source: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    spoil: Callable[[Path], None],
) -> None:
    killed_run(source, tmp_path / "out")
    spoil(min((tmp_path / "out/episodes").glob("*.tar")))

    result = run(source, tmp_path / "out")

    assert result.resumed == 1
    assert contents(tmp_path / "out") == undisturbed


def test_episode_whose_source_changed_after_the_kill_is_done_again(
    source: Path, tmp_path: Path
) -> None:
    killed_run(source, tmp_path / "out")
    shutil.rmtree(episode_folder(source, 0))
    spartan_task(source, 1, FRAMES + 2)

    result = run(source, tmp_path / "out")
    run(source, tmp_path / "fresh")

    assert result.resumed == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_any_flipped_byte_of_a_journal_entry_is_noticed(source: Path, tmp_path: Path) -> None:
    killed_run(source, tmp_path / "out")
    journal = Journal(tmp_path / "out")
    entry = min(journal.folder.glob("episodes/*.npz"))
    content = entry.read_bytes()
    for at in range(0, len(content), max(len(content) // 150, 1)):
        entry.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        journal.find(entry.stem, "some other fingerprint")  # must not raise


# other formats


def test_nan_of_a_lerobot_episode_is_kept_when_allowed(tmp_path: Path) -> None:
    def change(number: int, columns: Columns) -> None:
        columns["observation.state"][2][1] = float("nan")

    root = lerobot_dataset(tmp_path / "raw", (FRAMES,), change=change)

    assert run(root, tmp_path / "out", format="lerobot", fail_on_nan=False).samples == FRAMES


def test_nan_of_a_lerobot_episode_is_told(tmp_path: Path) -> None:
    def change(number: int, columns: Columns) -> None:
        if number == 1:
            columns["observation.state"][2][1] = float("nan")

    root = lerobot_dataset(tmp_path / "raw", (FRAMES, FRAMES), change=change)

    failure = failure_of(refusal(root, tmp_path / "out", format="lerobot"))

    assert (failure["code"], told_in_two_lines(failure)) == ("data.not_finite", True)


def test_dangling_link_in_an_episode_does_no_harm(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 2, FRAMES)
    (processed(source) / "notes").symlink_to(tmp_path / "gone")

    assert run(source, tmp_path / "out").samples == 2 * FRAMES


def test_missing_video_is_a_warning_and_the_camera_is_left_out(tmp_path: Path) -> None:
    cameras = {"observation.images.a": "video", "observation.images.b": "video"}
    root = lerobot_dataset(tmp_path / "raw", (FRAMES, FRAMES), cameras=cameras)
    next(root.rglob("observation.images.b/episode_000001.mp4")).unlink()

    result = run(root, tmp_path / "out", format="lerobot")

    assert result.warnings == ("missing_camera: 1 episodes",)
    stored = {len(metadata(one)["camera_names"]) for one in samples(tmp_path / "out/shards")}
    assert stored == {1, 2}


def test_episode_manifest_names_are_those_of_the_files(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "raw", (FRAMES,))

    run(root, tmp_path / "out", format="lerobot")

    assert len(list(samples(tmp_path / "out/episodes"))) == FRAMES


def test_equal_ids_of_two_sources_are_both_kept(tmp_path: Path) -> None:
    first = spartan_task(tmp_path / "a", 1, FRAMES)
    second = spartan_task(tmp_path / "b", 1, FRAMES)

    run(first, tmp_path / "out", sources=[str(first), str(second)])

    read = list(samples(tmp_path / "out/shards"))
    assert len({metadata(one)["episode_id"] for one in read}) == 2
    assert len({one["__key__"] for one in read}) == 2 * FRAMES


# the disk and the command line


def typed(source: Path, output: Path, **options: Any) -> list[str]:
    """A small run as a command line."""
    tree = options_for(source, output, **options)
    words = [*PREPROCESS, tree.pop("format"), *tree.pop("sources")]
    return words + [f"--{key.replace('_', '-')}={value}" for key, value in tree.items()]


def answer(words: list[str], **popen: Any) -> tuple[int, dict[str, Any]]:
    """Exit code and error of a command that ends with one."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, **popen)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)["error"] if done.returncode else {}


def test_disk_that_refuses_large_files_ends_with_exit_code_5_and_the_run_goes_on(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    largest = max(len(data) for name, data in undisturbed.items() if name.startswith("episodes/"))
    code, error = answer(
        typed(source, tmp_path / "out"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1)),
    )
    assert (code, error["code"]) == (5, "storage.write")
    assert told_in_two_lines(error)

    run(source, tmp_path / "out")

    assert contents(tmp_path / "out") == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A disk of 160 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("there is no mount command")
    words = [mount, "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    return disk


def test_full_disk_ends_with_exit_code_5_and_the_run_goes_on(
    source: Path, undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    try:
        code, error = answer(typed(source, small_disk / "out"))
        assert (code, error["code"]) == (5, "storage.write")
        remount = ["mount", "-o", "remount,size=20m", str(small_disk)]
        subprocess.run(remount, check=True)
        run(source, small_disk / "out")
        assert contents(small_disk / "out") == undisturbed
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


def like_other_users() -> None:
    """Takes from root, in a child before it starts, the right to pass over permissions."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails for others


@pytest.mark.skipif(sys.platform != "linux", reason="root cannot lay down its rights elsewhere")
@pytest.mark.parametrize("folder", ["episodes", ".vlatool", ".vlatool/journal/episodes", "shards"])
def test_lost_write_permission_ends_with_exit_code_5_and_the_run_goes_on(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, folder: str
) -> None:
    killed_run(source, tmp_path / "out")
    locked = tmp_path / "out" / folder
    locked.mkdir(exist_ok=True)
    locked.chmod(0o500)

    code, error = answer(typed(source, tmp_path / "out"), preexec_fn=like_other_users)
    locked.chmod(0o700)
    run(source, tmp_path / "out")

    assert (code, told_in_two_lines(error)) == (5, True)
    assert contents(tmp_path / "out") == undisturbed


def test_episode_folder_without_recording_beside_others_is_told(
    source: Path, tmp_path: Path
) -> None:
    shutil.rmtree(episode_folder(source, 1) / "processed")

    assert failure_of(refusal(source, tmp_path / "out"))["code"] == "data.missing_file"


@pytest.mark.skipif(sys.platform != "linux", reason="root cannot lay down its rights elsewhere")
@pytest.mark.parametrize("place", ["", "processed", "processed/observations.npz"])
def test_source_that_may_not_be_read_is_told(source: Path, tmp_path: Path, place: str) -> None:
    locked = episode_folder(source, 1) / place
    locked.chmod(0)

    words = typed(source, tmp_path / "out")
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=90, preexec_fn=like_other_users
    )
    locked.chmod(0o700)

    assert done.returncode in (3, 4, 5)
    assert "episode_1" in done.stdout


@pytest.mark.slow
def test_unreachable_cluster_ends_with_exit_code_6(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("vlatool.parallel.ray_executor")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    words = typed(source, tmp_path / "out", engine="ray", ray_address=address)
    code, error = answer(words)

    assert (code, told_in_two_lines(error)) == (6, True)
    assert address in error["message"]


@pytest.mark.parametrize(
    ("options", "exit_code", "code"),
    [
        ({"camera_names": "nobody"}, 3, "data.unknown_camera"),
        ({"episodes": "7"}, 3, "data.no_episodes"),
        ({"stride": "0"}, 2, "config.too_small"),
    ],
    ids=["camera", "episode", "stride"],
)
def test_command_line_ends_with_the_exit_code_of_its_error(
    pristine: Path, tmp_path: Path, options: dict[str, Any], exit_code: int, code: str
) -> None:
    returned, error = answer(typed(pristine, tmp_path / "out", **options))

    assert returned == exit_code
    assert error["code"] == code or exit_code == 2


def test_broken_episode_ends_the_command_with_exit_code_4(source: Path, tmp_path: Path) -> None:
    truncate(processed(source) / "actions.npz")

    code, error = answer(typed(source, tmp_path / "out"))

    assert (code, error["code"]) == (4, "partial.episodes_failed")
