"""`build-dataset` and `export`: windows and codes become samples, in either form."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders.codes import (
    codes_of,
    plain_fast,
    published_windows,
    tokenizer_digest,
    write_tree_codes,
)
from tests.builders.s3_runs import upload
from vlatool.artifacts.codes import CodesManifest
from vlatool.artifacts.fast import read_fast
from vlatool.artifacts.lines import lines_index_path
from vlatool.artifacts.profile import read_profile
from vlatool.artifacts.samples_folder import SamplesFolder
from vlatool.artifacts.samples_jsonl import parse_sample
from vlatool.artifacts.shard import read_index
from vlatool.artifacts.windows import parse_window
from vlatool.cli import app
from vlatool.errors import DataError, PartialFailure, VlatoolError
from vlatool.jobs.record import OutputRecord
from vlatool.storage.remote_path import RemotePath
from vlatool.workflows.build_dataset import BuildDatasetConfig, BuildDatasetResult, build_dataset
from vlatool.workflows.export import ExportConfig, ExportResult, export
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample

EPISODES, FRAMES = 3, 4
SAMPLES = EPISODES * FRAMES * 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows with codes of either layout, and an action tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    tree = published_windows(folder / "A", EPISODES, FRAMES)
    write_tree_codes(tree, "json")
    write_tree_codes(tree, "packed")
    plain_fast(folder / "fast")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "place"))


def build(place: Path, output: Path | None = None, /, **options: Any) -> BuildDatasetResult:
    tree = {"data": str(place / "A"), "fast": str(place / "fast"), "workers": 1, **options}
    tree["output"] = str(output or place / "OUT")
    return build_dataset(BuildDatasetConfig.model_validate(tree))


def refusal(place: Path, output: Path | None = None, /, **options: Any) -> VlatoolError:
    with pytest.raises(VlatoolError) as caught:
        build(place, output, **options)
    return caught.value


def exported(source: Path, output: Path, **options: Any) -> ExportResult:
    tree = {"source": str(source), "output": str(output), "workers": 1, **options}
    return export(ExportConfig.model_validate(tree))


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file but the records of runs."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".vlatool" not in path.parts
    }


def lines(output: Path) -> list[bytes]:
    return [line for path in sorted((output / "data").glob("*.jsonl")) for line in path.open("rb")]


def code_file(place: Path) -> Path:
    return place / "A/TiToken/episode_000001/X_image_episode_000001_frame_000002.json"


def test_each_line_holds_the_ids_and_codes_of_its_window(made: Path, tmp_path: Path) -> None:
    result = build(made, tmp_path / "out")
    assert (result.samples, result.kinds) == (SAMPLES, {"vla": SAMPLES // 2, "wm": SAMPLES // 2})
    fast, profile = read_fast(made / "fast"), read_profile("libero")
    for name in ("episode_000000", "episode_000002"):
        raw = (made / f"A/data/{name}.jsonl").read_bytes().splitlines()
        built = (tmp_path / f"out/data/{name}.jsonl").read_bytes().splitlines()
        for window, one in zip(map(parse_window, raw), map(parse_sample, built), strict=True):
            said = one.conversation
            assert (said.kind, said.task) == (window.kind, window.task)
            ids = fast.encode(profile.normalize([window.actions]))[0]
            assert said.action_ids == tuple(ids)
            expected = [codes_of(Path(path).stem).tolist() for path in window.future]
            assert said.codes.tolist() == expected


def test_images_are_found_from_the_output(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "far/out"
    build(made, output)
    sample = parse_sample(lines(output)[0])
    assert len(sample.images) == 32
    assert sample.images[0].startswith("../")
    assert all((output / image).is_file() for image in sample.images)


def test_absolute_locations_are_those_of_the_windows(made: Path, tmp_path: Path) -> None:
    build(made, tmp_path / "out", absolute=True)
    sample = parse_sample(lines(tmp_path / "out")[0])
    assert sample.images[0] == str(
        made / "A/images/episode_000000/X_image_episode_000000_frame_000000.png"
    )


def test_an_output_inside_the_folder_of_windows_is_beside_its_images(place: Path) -> None:
    build(place, place / "A/built")
    sample = parse_sample(lines(place / "A/built")[0])
    assert sample.images[0].startswith("../images/")


def test_inputs_stay_as_they_were(place: Path) -> None:
    before = contents(place)
    build(place)
    exported(place / "A/tokens", place / "codes")
    after = contents(place)
    assert {name: after[name] for name in before} == before


def test_a_second_build_leaves_every_byte(place: Path) -> None:
    build(place)
    before = contents(place / "OUT")
    assert build(place).status == "already complete"
    assert contents(place / "OUT") == before


def test_built_samples_are_no_input(place: Path) -> None:
    build(place)
    assert refusal(place, place / "Z", data=str(place / "OUT")).code == "data.already_built"


def test_built_lines_among_windows_are_refused(place: Path) -> None:
    build(place)
    for name in ("episode_000000", "episode_000001", "episode_000002"):
        shutil.copy(place / f"OUT/data/{name}.jsonl", place / f"A/data/{name}.jsonl")
    error = refusal(place, place / "Z")
    assert (error.code, error.exit_code) == ("data.all_failed", 3)
    assert {one["code"] for one in error.details["failures"]} == {"data.already_built"}


@pytest.mark.parametrize("workers", [2])
def test_bytes_do_not_depend_on_workers(made: Path, tmp_path: Path, workers: int) -> None:
    build(made, tmp_path / "1")
    build(made, tmp_path / "2", workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_either_layout_of_codes_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    for name in ("tokens", "TiToken"):
        build(made, tmp_path / name, tokens=str(made / "A" / name))
    assert contents(tmp_path / "tokens") == contents(tmp_path / "TiToken")


class TestForms:
    def test_packed_samples_become_the_lines_that_are_built(
        self, made: Path, tmp_path: Path
    ) -> None:
        build(made, tmp_path / "lines")
        build(made, tmp_path / "packed", packed=True)
        exported(tmp_path / "packed", tmp_path / "exported")
        assert contents(tmp_path / "exported") == contents(tmp_path / "lines")

    def test_packed_samples_become_absolute_lines(self, made: Path, tmp_path: Path) -> None:
        build(made, tmp_path / "lines", absolute=True)
        build(made, tmp_path / "packed", packed=True)
        exported(tmp_path / "packed", tmp_path / "exported", absolute=True)
        assert lines(tmp_path / "exported") == lines(tmp_path / "lines")

    @pytest.mark.parametrize("form", [{}, {"packed": True}, {"lines_per_file": 7}], ids=str)
    def test_a_sample_is_found_by_its_number(
        self, made: Path, tmp_path: Path, form: dict[str, Any]
    ) -> None:
        build(made, tmp_path / "lines")
        build(made, tmp_path / "out", **form)
        folder = SamplesFolder.open(tmp_path / "out")
        expected = lines(tmp_path / "lines")
        assert [folder.line(at) for at in range(len(folder))] == expected
        for at in (0, 7, SAMPLES - 1):
            assert folder.sample(at).images == parse_sample(expected[at]).images

    def test_files_of_so_many_lines_hold_the_same_lines(self, made: Path, tmp_path: Path) -> None:
        build(made, tmp_path / "lines")
        build(made, tmp_path / "shards", lines_per_file=7)
        assert lines(tmp_path / "shards") == lines(tmp_path / "lines")
        files = SamplesFolder.open(tmp_path / "shards").files
        assert [count for _, count in files] == [7, 7, 7, 3]
        assert not (tmp_path / "shards/packed").exists()

    def test_an_index_says_where_each_line_is(self, made: Path, tmp_path: Path) -> None:
        build(made, tmp_path / "out")
        path = tmp_path / "out/data/episode_000001.jsonl"
        index = read_index(lines_index_path(path))
        assert index is not None
        data = path.read_bytes()
        found = [data[at : at + length] for at, length in index.ranges()]
        assert found == data.splitlines(keepends=True)
        assert index.shard_bytes == len(data)

    def test_codes_go_there_and_back(self, made: Path, tmp_path: Path) -> None:
        exported(made / "A/TiToken", tmp_path / "tokens")
        exported(tmp_path / "tokens", tmp_path / "TiToken")
        assert contents(tmp_path / "TiToken") == contents(made / "A/TiToken")
        assert contents(tmp_path / "tokens") == contents(made / "A/tokens")

    def test_codes_that_are_not_those_of_the_manifest_are_not_exported(self, place: Path) -> None:
        path = code_file(place)
        path.write_text(json.dumps([[1]] * 32))
        with pytest.raises(DataError) as caught:
            exported(place / "A/TiToken", place / "codes")
        assert caught.value.code == "data.codes_changed"

    @pytest.mark.parametrize(
        ("source", "options", "code"),
        [
            ("A", {}, "data.nothing_to_export"),
            ("A/tokens", {"layout": "jsonl"}, "usage.bad_layout"),
            ("A/tokens", {"output": "A/tokens/x"}, "usage.output_is_input"),
            ("nowhere", {}, "data.no_source"),
        ],
    )
    def test_what_cannot_be_exported_is_refused(
        self, place: Path, source: str, options: dict[str, str], code: str
    ) -> None:
        if "output" in options:
            options = {"output": str(place / options["output"])}
        tree = {"source": str(place / source), "output": str(place / "x"), **options}
        with pytest.raises(VlatoolError) as caught:
            export(ExportConfig.model_validate(tree))
        assert caught.value.code == code


class TestMissingCodes:
    def test_a_removed_file_fails_its_episode_and_names_the_image(self, place: Path) -> None:
        code_file(place).unlink()
        error = refusal(place, tokens=str(place / "A/TiToken"))
        assert isinstance(error, PartialFailure)
        (failure,) = error.details["failures"]
        assert (failure["episode"], failure["code"]) == ("episode_000001", "data.missing_codes")
        assert failure["details"]["pictures"] == [code_file(place).stem]
        assert SamplesFolder.open(place / "OUT").files == (
            ("data/episode_000000.jsonl", 8),
            ("data/episode_000002.jsonl", 8),
        )

    def test_a_repaired_file_completes_the_output(self, place: Path) -> None:
        build(place, place / "whole")
        data = code_file(place).read_bytes()
        code_file(place).unlink()
        refusal(place, tokens=str(place / "A/TiToken"))
        code_file(place).write_bytes(data)
        assert build(place, tokens=str(place / "A/TiToken")).resumed == 2
        assert contents(place / "OUT") == contents(place / "whole")

    @pytest.mark.parametrize(
        "value", [[[1]] * 31, [[4096]] * 32, [[1.5]] * 32, [["1"]] * 32, {}], ids=str
    )
    def test_a_broken_file_fails_its_episode(self, place: Path, value: object) -> None:
        code_file(place).write_text(json.dumps(value))
        error = refusal(place, tokens=str(place / "A/TiToken"))
        (failure,) = error.details["failures"]
        assert (error.exit_code, failure["code"]) == (4, "data.broken_codes")
        assert code_file(place).stem in failure["message"]

    def test_codes_of_another_tokenizer_fail_their_episode(self, place: Path) -> None:
        other = write_tree_codes(place / "A", "packed", folder=place / "other", name="another")
        (other / "episode_000002.npz").replace(place / "A/tokens/episode_000002.npz")
        error = refusal(place)
        assert [one["code"] for one in error.details["failures"]] == ["data.other_tokenizer"]

    @pytest.mark.parametrize(("count", "book"), [(16, 4096), (32, 8192)])
    def test_codes_that_samples_cannot_hold_are_refused(
        self, place: Path, count: int, book: int
    ) -> None:
        digest = tokenizer_digest("builder")
        manifest = CodesManifest(count, book, "builder", digest, layout="packed")
        manifest.save(place / "A/tokens")
        error = refusal(place, tokens=str(place / "A/tokens"))
        assert (error.code, error.exit_code) == ("data.other_codes", 3)

    def test_codes_that_are_still_being_written_are_refused(self, place: Path) -> None:
        (place / "A/tokens/manifest.json").unlink()
        OutputRecord("encode", {}).save(place / "A/tokens")
        assert refusal(place, tokens=str(place / "A/tokens")).code == "data.incomplete_codes"

    def test_codes_of_images_that_were_made_anew_are_refused(self, tmp_path: Path) -> None:
        sample(SampleConfig(layout="libero", output=str(tmp_path / "raw"), episodes=1, frames=2))
        tree = {"format": "libero", "sources": [str(tmp_path / "raw")], "workers": 1}
        tree["output"] = str(tmp_path / "A")
        preprocess(PreprocessConfig.specialize(tree).model_validate(tree))
        write_tree_codes(tmp_path / "A", "packed")
        OutputRecord("encode", {}, parent="of earlier ones").save(tmp_path / "A/tokens")
        plain_fast(tmp_path / "fast")
        assert refusal(tmp_path).code == "data.stale_codes"

    def test_windows_that_a_run_has_not_finished_are_refused(self, place: Path) -> None:
        OutputRecord("preprocess", {}).save(place / "A")
        assert refusal(place).code == "data.incomplete_output"


class TestInput:
    @pytest.mark.parametrize(
        ("change", "code"),
        [
            (lambda data: data[:-1], "data.broken_window"),
            (lambda data: data.replace(b"Recimage", b"Recimages"), "data.broken_window"),
            (lambda data: data.replace(b"Task: put", b"Task: <Rec> put"), "data.bad_instruction"),
            (lambda data: data.replace(b"-1.0]", b"-1.0, 0.0]"), "data.action_width"),
            (lambda data: data.replace(b"-1.0]", b"-1e300]"), "data.action_not_finite"),
        ],
        ids=["cut off", "other keys", "a tag", "too wide", "too large"],
    )
    def test_an_episode_that_is_no_windows_fails(
        self, place: Path, change: Callable[[bytes], bytes], code: str
    ) -> None:
        path = place / "A/data/episode_000001.jsonl"
        path.write_bytes(change(path.read_bytes()))
        error = refusal(place)
        assert (error.exit_code, error.details["failures"][0]["code"]) == (4, code)
        assert "episode_000001.jsonl" in error.details["failures"][0]["message"]

    def test_blank_lines_are_no_windows(self, place: Path) -> None:
        build(place, place / "before")
        path = place / "A/data/episode_000001.jsonl"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n"))
        build(place)
        assert contents(place / "OUT") == contents(place / "before")

    @pytest.mark.parametrize(
        ("output", "options", "code", "exit_code"),
        [
            ("A", {}, "usage.output_is_input", 2),
            ("A/data/x", {}, "usage.output_is_input", 2),
            ("A/images", {}, "usage.output_is_input", 2),
            ("A/TiToken/x", {}, "usage.output_is_input", 2),
            ("x", {"fast": "A"}, "data.no_fast_tokenizer", 3),
            ("x", {"fast": "nowhere"}, "data.no_fast_tokenizer", 3),
            ("x", {"data": "fast"}, "data.no_windows", 3),
            ("x", {"data": "nowhere"}, "data.no_source", 3),
            ("x", {"tokens": "fast"}, "data.no_codes", 3),
            ("x", {"profile": "libro"}, "usage.unknown_profile", 2),
            ("x", {"rpy_std_mult": 4}, "usage.profile_factor", 2),
            ("x", {"pattern": "data/x*.jsonl"}, "data.no_windows", 3),
            ("x", {"tokenizer": "A"}, "data.broken_tokenizer", 3),
        ],
    )
    def test_what_cannot_be_built_is_refused(
        self, place: Path, output: str, options: dict[str, Any], code: str, exit_code: int
    ) -> None:
        places = ("fast", "data", "tokens", "tokenizer")
        given = {key: str(place / v) if key in places else v for key, v in options.items()}
        error = refusal(place, place / output, **given)
        assert (error.code, error.exit_code) == (code, exit_code)

    def test_other_options_do_not_replace_an_output(self, place: Path) -> None:
        build(place)
        assert refusal(place, gripper="normalised").code == "usage.output_differs"


class TestOptions:
    def test_kinds_are_chosen(self, made: Path, tmp_path: Path) -> None:
        result = build(made, tmp_path / "out", kinds=["wm"])
        assert result.kinds == {"wm": SAMPLES // 2}
        assert {parse_sample(line).conversation.kind for line in lines(tmp_path / "out")} == {"wm"}

    def test_a_kind_that_no_window_is_of_is_refused(self, tmp_path: Path) -> None:
        tree = published_windows(tmp_path / "A", 1, 2, kinds=["vla"])
        write_tree_codes(tree, "packed")
        plain_fast(tmp_path / "fast")
        assert refusal(tmp_path, kinds=["wm"]).code == "data.no_samples"

    def test_episodes_are_limited(self, made: Path, tmp_path: Path) -> None:
        assert build(made, tmp_path / "out", limit=2).episodes == 2

    def test_a_gripper_that_is_normalized_has_other_ids(self, made: Path, tmp_path: Path) -> None:
        build(made, tmp_path / "raw")
        build(made, tmp_path / "normalised", gripper="normalised")
        assert lines(tmp_path / "raw") != lines(tmp_path / "normalised")

    def test_a_dry_run_writes_nothing(self, place: Path) -> None:
        assert build(place, dry_run=True).status == "planned"
        assert not (place / "OUT").exists()

    def test_published_options_are_understood(self, place: Path) -> None:
        words = ["--A", place / "A", "--fast_repo", place / "fast", "--gripper_raw", "--strict"]
        words += ["--rpy_std_mult", "5.0", "--backup_suffix", ".bak", "--batch_size", "128"]
        words += ["--pattern", "data/episode_*.jsonl", "--workers", "1", "-o", place / "OUT"]
        assert app.run(["-q", "build-dataset", *map(str, words)]) == 0
        build(place, place / "plain")
        assert contents(place / "OUT") == contents(place / "plain")

    def test_the_profile_of_the_action_tokenizer_is_the_one(self, place: Path) -> None:
        own = {"name": "own", "mean": [0.0] * 7, "std": [1.0] * 7}
        (place / "fast/profile.yaml").write_text(json.dumps(own))
        assert build(place).profile == "own"
        assert SamplesFolder.open(place / "OUT").document["profile"]["name"] == "own"

    @pytest.mark.parametrize("is_known", [True, False])
    def test_instructions_with_ids_of_codes_are_counted(
        self, tmp_path: Path, is_known: bool
    ) -> None:
        tree = published_windows(tmp_path / "A", 1, 2, task="\u0440\u0443\u043a\u0430")
        write_tree_codes(tree, "packed")
        plain_fast(tmp_path / "fast")
        given: dict[str, Any] = {}
        if is_known:  # a language model without letters of other scripts: no id is that high
            given["tokenizer"] = str(plain_fast(tmp_path / "text"))
        result = build(tmp_path, **given)
        assert result.colliding_instructions == (0 if is_known else 4)


def test_an_output_in_a_bucket_has_the_same_lines(
    made: Path, s3_bucket: str, tmp_path: Path
) -> None:
    build(made, tmp_path / "here", packed=True)
    bucket = RemotePath(f"s3://{s3_bucket}")
    upload(made, bucket / "made")
    given = {"data": str(bucket / "made/A"), "fast": str(bucket / "made/fast"), "packed": True}
    build(made, bucket / "out", **given)
    there = contents(bucket / "out")
    assert {name: one for name, one in there.items() if name.startswith("packed/")} == {
        name: one for name, one in contents(tmp_path / "here").items() if name.startswith("packed/")
    }
    assert SamplesFolder.open(bucket / "out").prefix == "../made/A/"
    assert refusal(made, tmp_path / "far", data=given["data"]).code == "usage.no_relative_path"
