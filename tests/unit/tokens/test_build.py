"""`build-dataset` and `export`: samples of either layout from windows and codes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.codes import (
    codes_of,
    plain_fast,
    published_windows,
    tokenizer_digest,
    write_tree_codes,
)
from tests.builders.errors import fails
from tests.builders.preprocessing import contents
from tests.builders.s3_runs import upload
from tests.builders.verifying import verified
from vlatool.cli import app
from vlatool.config.resolve import config_of
from vlatool.datasets.codes.layout import CodesManifest
from vlatool.datasets.fast.layout import read_fast
from vlatool.datasets.jsonl.layout import parse_window
from vlatool.datasets.samples.episode import parse_sample
from vlatool.datasets.samples.layout import SamplesFolder
from vlatool.datasets.samples.profile import read_profile, write_profile
from vlatool.errors import PartialFailure, VlatoolError
from vlatool.jobs.record import OutputRecord
from vlatool.models.future_vla.token_ids import tiny_tokenizer
from vlatool.storage.remote_path import RemotePath
from vlatool.workflows.build_dataset import BuildDatasetConfig, BuildDatasetResult, build_dataset
from vlatool.workflows.export import ExportConfig, ExportResult, export
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.verify import InspectConfig, VerifyConfig, inspect, verify

EPISODES, FRAMES = 3, 4
SAMPLES = EPISODES * FRAMES * 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows with codes of either layout, and an action tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    tree = published_windows(folder / "A", EPISODES, FRAMES)
    write_tree_codes(tree, "json")
    write_tree_codes(tree, "packed")
    plain_fast(folder / "fast")
    return folder


@pytest.fixture
def workspace(inputs: Path, tmp_path: Path) -> Path:
    """Copy that a test may change."""
    return Path(shutil.copytree(inputs, tmp_path / "place"))


def build(workspace: Path, output: Path | None = None, /, **options: Any) -> BuildDatasetResult:
    tree = {"data": str(workspace / "A"), "fast": str(workspace / "fast"), "workers": 1, **options}
    tree["output"] = str(output or workspace / "OUT")
    return build_dataset(BuildDatasetConfig.model_validate(tree))


def build_error(workspace: Path, output: Path | None = None, /, **options: Any) -> VlatoolError:
    with pytest.raises(VlatoolError) as caught:
        build(workspace, output, **options)
    return caught.value


def exported(source: Path, output: Path, **options: Any) -> ExportResult:
    tree = {"source": str(source), "output": str(output), "workers": 1, **options}
    return export(ExportConfig.model_validate(tree))


def lines(output: Path) -> list[bytes]:
    return [line for path in sorted((output / "data").glob("*.jsonl")) for line in path.open("rb")]


def code_file(workspace: Path) -> Path:
    return workspace / "A/TiToken/episode_000001/X_image_episode_000001_frame_000002.json"


@pytest.fixture(scope="module")
def built(inputs: Path) -> Path:
    """Samples with the default options, as lines."""
    result = build(inputs, inputs.parent / "far/out")
    assert (result.samples, result.kinds) == (SAMPLES, {"vla": SAMPLES // 2, "wm": SAMPLES // 2})
    return inputs.parent / "far/out"


def test_each_line_has_the_ids_and_codes_of_its_window(inputs: Path, built: Path) -> None:
    fast, profile = read_fast(inputs / "fast"), read_profile("libero")
    assert read_fast(built / "fast").digest == fast.digest
    for name in ("episode_000000", "episode_000002"):
        raw = (inputs / f"A/data/{name}.jsonl").read_bytes().splitlines()
        lines_of_episode = (built / f"data/{name}.jsonl").read_bytes().splitlines()
        samples = map(parse_sample, lines_of_episode)
        for window, value in zip(map(parse_window, raw), samples, strict=True):
            conversation = value.conversation
            assert (conversation.kind, conversation.task) == (window.kind, window.task)
            ids = fast.encode(profile.normalize([window.actions]))[0]
            assert conversation.action_ids == tuple(ids)
            expected = [codes_of(Path(path).stem).tolist() for path in window.future]
            assert conversation.codes.tolist() == expected


def test_images_are_found_from_the_output_or_absolute(
    inputs: Path, built: Path, tmp_path: Path
) -> None:
    images = parse_sample(lines(built)[0]).images
    assert (len(images), images[0][:3]) == (32, "../")
    assert all((built / image).is_file() for image in images)

    build(inputs, tmp_path / "lines", absolute=True)
    build(inputs, tmp_path / "packed", packed=True)
    exported(tmp_path / "packed", tmp_path / "exported", absolute=True)
    assert lines(tmp_path / "exported") == lines(tmp_path / "lines")
    first = inputs / "A/images/episode_000000/X_image_episode_000000_frame_000000.png"
    assert parse_sample(lines(tmp_path / "lines")[0]).images[0] == str(first)


def test_inputs_are_not_changed_by_outputs_in_them(workspace: Path) -> None:
    before = contents(workspace)
    build(workspace, workspace / "A/built")
    exported(workspace / "A/tokens", workspace / "codes")
    after = contents(workspace)
    assert {name: after[name] for name in before} == before
    sample = parse_sample(lines(workspace / "A/built")[0])
    assert sample.images[0].startswith("../images/")


def test_only_what_changes_the_samples_makes_another_output(workspace: Path) -> None:
    shutil.rmtree(workspace / "A/tokens")
    build(workspace)
    before = contents(workspace / "OUT")
    assert build(workspace).status == "already complete"
    defaults = {"profile": "libero", "gripper": "raw", "kinds": ["wm", "vla"]}
    assert build(workspace, **defaults).status == "already complete"
    write_tree_codes(workspace / "A", "packed")  # the same codes in another layout
    assert build(workspace).status == "already complete"
    write_tree_codes(workspace / "A", "json")  # the same files at a later time
    assert build(workspace, tokens=str(workspace / "A/TiToken")).status == "already complete"
    assert build_error(workspace, gripper="normalised").code == "usage.output_differs"
    assert contents(workspace / "OUT") == before


def test_samples_are_rejected_as_input(workspace: Path) -> None:
    build(workspace)
    error = build_error(workspace, workspace / "Z", data=str(workspace / "OUT"))
    assert error.code == "data.incomplete"
    for name in ("episode_000000", "episode_000001", "episode_000002"):
        shutil.copy(workspace / f"OUT/data/{name}.jsonl", workspace / f"A/data/{name}.jsonl")
    error = build_error(workspace, workspace / "Z")
    assert (error.code, error.exit_code) == ("data.incomplete", 3)
    assert {value["code"] for value in error.details["failures"]} == {"data.incomplete"}


def test_sizes_of_samples_are_those_of_the_codes(inputs: Path, tmp_path: Path) -> None:
    sizes = (40, 9000)
    tokens = write_tree_codes(inputs / "A", "packed", folder=tmp_path / "codes", sizes=sizes)
    build(inputs, tmp_path / "out", tokens=str(tokens))
    build(inputs, tmp_path / "packed", tokens=str(tokens), packed=True)
    exported(tmp_path / "packed", tmp_path / "exported")

    folder = SamplesFolder.open(tmp_path / "out")
    codes = folder.sample(0).conversation.codes
    assert (codes.shape[1], folder.sizes[:2]) == (sizes[0], sizes)
    result = verify(VerifyConfig(location=str(tmp_path / "out")))
    assert result.findings == ()
    assert contents(tmp_path / "exported") == contents(tmp_path / "out")


def test_published_lines_open_without_a_manifest(built: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    shutil.copytree(built / "data", published / "data", ignore=shutil.ignore_patterns("*.npz"))
    folder, whole = SamplesFolder.open(published), SamplesFolder.open(built)
    assert folder.line(len(folder) - 1) == whole.line(len(whole) - 1)
    for key in ("samples", "kinds", "tasks", "action_ids", "episodes"):
        assert folder.document[key] == whole.document[key]
    assert inspect(InspectConfig(location=str(published))).report.kind == "samples"
    findings = {finding.code for finding in verify(VerifyConfig(location=str(published))).findings}
    assert findings == {"samples.no_manifest", "output.no_file_list"}


@pytest.mark.parametrize("form", [{}, {"packed": True}, {"lines_per_file": 7}], ids=str)
def test_a_sample_is_found_by_its_number(
    inputs: Path, built: Path, tmp_path: Path, form: dict[str, Any]
) -> None:
    build(inputs, tmp_path / "out", **form)
    folder = SamplesFolder.open(tmp_path / "out")
    expected = lines(built)
    assert [folder.line(at) for at in range(len(folder))] == expected
    for at in (0, 7, SAMPLES - 1):
        assert folder.sample(at).images == parse_sample(expected[at]).images
    if "lines_per_file" in form:
        assert lines(tmp_path / "out") == expected
        assert [count for _, count in folder.files] == [7, 7, 7, 3]
        assert not (tmp_path / "out/packed").exists()


def test_codes_are_exported_there_and_back(inputs: Path, tmp_path: Path) -> None:
    exported(inputs / "A/TiToken", tmp_path / "tokens")
    exported(tmp_path / "tokens", tmp_path / "TiToken")
    assert contents(tmp_path / "TiToken") == contents(inputs / "A/TiToken")
    assert contents(tmp_path / "tokens") == contents(inputs / "A/tokens")


@pytest.mark.parametrize(
    ("source", "options", "code"),
    [
        ("A", {}, "data.missing"),
        ("A/tokens", {"layout": "jsonl"}, "usage.unsupported"),
        ("A/tokens", {"output": "A/tokens/x"}, "usage.output_exists"),
        ("nowhere", {}, "data.no_source"),
    ],
)
def test_invalid_exports_are_rejected(
    workspace: Path, source: str, options: dict[str, str], code: str
) -> None:
    if "output" in options:
        options = {"output": str(workspace / options["output"])}
    tree = {"source": str(workspace / source), "output": str(workspace / "x"), **options}
    with fails(code):
        export(ExportConfig.model_validate(tree))


def test_export_of_a_run_that_ended_before_its_first_checkpoint_says_so(tmp_path: Path) -> None:
    OutputRecord("train", {}).save(tmp_path / "run")
    tree = {"source": str(tmp_path / "run"), "output": str(tmp_path / "x")}
    with fails("data.missing") as caught:
        export(ExportConfig.model_validate(tree))
    assert "again" in caught.value.hint


def test_a_removed_file_fails_its_episode_until_it_is_repaired(workspace: Path) -> None:
    data = code_file(workspace).read_bytes()
    code_file(workspace).unlink()
    error = build_error(workspace, tokens=str(workspace / "A/TiToken"))
    assert isinstance(error, PartialFailure)
    (failure,) = error.details["failures"]
    assert (failure["episode"], failure["code"]) == ("episode_000001", "data.missing")
    assert failure["details"]["pictures"] == [code_file(workspace).stem]
    files = [("data/episode_000000.jsonl", 8), ("data/episode_000002.jsonl", 8)]
    assert [*SamplesFolder.open(workspace / "OUT").files] == files
    code_file(workspace).write_bytes(data)
    assert build(workspace, tokens=str(workspace / "A/TiToken")).resumed == 2
    build(workspace, workspace / "whole")
    assert contents(workspace / "OUT") == contents(workspace / "whole")


@pytest.mark.parametrize(
    "value", [[[1]] * 31, [[4096]] * 32, [[1.5]] * 32, [["1"]] * 32, {}], ids=str
)
def test_a_broken_file_fails_its_episode(workspace: Path, value: object) -> None:
    code_file(workspace).write_text(json.dumps(value))
    error = build_error(workspace, tokens=str(workspace / "A/TiToken"))
    (failure,) = error.details["failures"]
    assert (error.exit_code, failure["code"]) == (4, "data.broken")
    assert code_file(workspace).stem in failure["message"]


def test_replaced_codes_fail_their_episode_and_are_not_exported(workspace: Path) -> None:
    code_file(workspace).write_text(json.dumps([[1]] * 32))
    tokens = workspace / "A/TiToken"
    with pytest.raises(PartialFailure) as caught:
        exported(tokens, workspace / "codes")
    for error in (build_error(workspace, tokens=str(tokens)), caught.value):
        (failure,) = error.details["failures"]
        assert (failure["episode"], failure["code"]) == ("episode_000001", "data.wrong_digest")


def test_codes_of_another_number_or_tokenizer_fail_their_episodes(workspace: Path) -> None:
    tokens = workspace / "A/tokens"
    other = write_tree_codes(workspace / "A", "packed", folder=workspace / "other", name="another")
    manifest = (tokens / "manifest.json").read_bytes()
    CodesManifest(16, 4096, "builder", tokenizer_digest("builder"), layout="packed").save(tokens)
    error = build_error(workspace, tokens=str(tokens))
    assert {value["code"] for value in error.details["failures"]} == {"data.broken"}
    (tokens / "manifest.json").write_bytes(manifest)
    (other / "episode_000002.npz").replace(tokens / "episode_000002.npz")
    error = build_error(workspace)
    assert [value["code"] for value in error.details["failures"]] == ["data.mismatch"]


def test_codes_and_windows_that_are_still_being_written_are_rejected(workspace: Path) -> None:
    (workspace / "A/tokens/manifest.json").unlink()
    OutputRecord("encode", {}).save(workspace / "A/tokens")
    error = build_error(workspace, tokens=str(workspace / "A/tokens"))
    assert error.code == "data.incomplete"
    OutputRecord("preprocess", {}).save(workspace / "A")
    assert build_error(workspace).code == "data.incomplete"


def test_an_export_from_the_same_codes_in_another_layout_is_complete(workspace: Path) -> None:
    tree, output = workspace / "A", workspace / "OUT"
    exported(tree / "TiToken", output, layout="packed")
    assert exported(tree / "tokens", output, layout="packed").status == "already complete"
    write_tree_codes(published_windows(workspace / "B", EPISODES, FRAMES + 1), "packed")
    with fails("usage.output_differs"):
        exported(workspace / "B/tokens", output, layout="packed")


def test_samples_are_an_output_of_their_own_beside_the_windows(tmp_path: Path) -> None:
    raw, tree = tmp_path / "raw", tmp_path / "A"
    sample(SampleConfig(layout="libero", output=str(raw), episodes=1, frames=2))
    options = {"format": "libero", "sources": [str(raw)], "output": str(tree), "workers": 1}
    config = config_of(PreprocessConfig, options)
    preprocess(config)
    write_tree_codes(tree, "packed")
    fast = plain_fast(tmp_path / "fast")
    words = ["-q", "build-dataset", str(tree), "--fast", str(fast), "--workers", "1"]
    assert app.run(words) == 0
    for folder in (tree, tree / "samples"):
        assert verify(VerifyConfig(location=str(folder))).findings == ()
    before = contents(tree / "samples")
    assert preprocess(config.model_copy(update={"overwrite": True})).status == "written"
    assert contents(tree / "samples") == before
    OutputRecord("encode", {}, parent="of earlier images").save(tree / "tokens")
    assert build_error(tmp_path).code == "data.incomplete"


@pytest.mark.parametrize("is_empty", [True, False])
def test_an_episode_fails_and_can_be_excluded(workspace: Path, is_empty: bool) -> None:
    image = workspace / "A/images/episode_000001/X_wrist_image_episode_000001_frame_000002.png"
    image.unlink()
    if is_empty:
        image.touch()
    error = build_error(workspace)
    (failure,) = error.details["failures"]
    assert (error.exit_code, failure["code"]) == (4, "data.missing")
    assert failure["details"]["pictures"] == [f"images/episode_000001/{image.name}"]
    result = build(workspace, exclude="1")
    assert (result.episodes, result.resumed, result.failures) == (2, 2, ())


def test_an_image_that_only_future_steps_have_needs_codes_alone(workspace: Path) -> None:
    path = workspace / "A/data/episode_000001.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    folder = workspace / "A/images/episode_000001"
    (folder / "X_image_episode_000001_frame_000003.png").unlink()
    assert build(workspace).episodes == EPISODES


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[:-1], "data.broken"),
        (lambda data: data.replace(b"Recimage", b"Recimages"), "data.broken"),
        (lambda data: data.replace(b"Task: put", b"Task: <Rec> put"), "data.broken"),
        (lambda data: data.replace(b"-1.0]", b"-1.0, 0.0]"), "data.mismatch"),
        (lambda data: data.replace(b"-1.0]", b"-1e300]"), "data.not_finite"),
    ],
    ids=["cut off", "other keys", "a tag", "too wide", "too large"],
)
def test_an_episode_without_valid_windows_fails(
    workspace: Path, change: Callable[[bytes], bytes], code: str
) -> None:
    path = workspace / "A/data/episode_000001.jsonl"
    path.write_bytes(change(path.read_bytes()))
    error = build_error(workspace)
    assert (error.exit_code, error.details["failures"][0]["code"]) == (4, code)
    assert "episode_000001.jsonl" in error.details["failures"][0]["message"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("fit_report.json", '{"steps": 8}'), ("processor_config.json", None)],
)
def test_windows_of_another_length_than_the_action_tokenizer_fail(
    workspace: Path, name: str, text: str | None
) -> None:
    path = workspace / "fast" / name
    path.write_text(text or json.dumps({**json.loads(path.read_text()), "time_horizon": 8}))
    error = build_error(workspace)
    assert (error.code, error.exit_code) == ("data.incomplete", 3)
    assert {value["code"] for value in error.details["failures"]} == {"data.mismatch"}


def test_blank_lines_change_nothing_and_published_options_are_accepted(workspace: Path) -> None:
    words = ["--A", workspace / "A", "--fast_repo", workspace / "fast", "--gripper_raw"]
    words += ["--strict"]
    words += ["--rpy_std_mult", "5.0", "--backup_suffix", ".bak", "--batch_size", "128"]
    words += ["--pattern", "data/episode_*.jsonl", "--workers", "1", "-o", workspace / "OUT"]
    assert app.run(["-q", "build-dataset", *map(str, words)]) == 0
    path = workspace / "A/data/episode_000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n"))
    build(workspace, workspace / "plain")
    assert contents(workspace / "OUT") == contents(workspace / "plain")


@pytest.mark.parametrize(
    ("output", "options", "code", "exit_code"),
    [
        ("A", {}, "usage.output_exists", 2),
        ("A/data/x", {}, "usage.output_exists", 2),
        ("A/images", {}, "usage.output_exists", 2),
        ("A/TiToken/x", {}, "usage.output_exists", 2),
        ("x", {"fast": "A"}, "data.no_source", 3),
        ("x", {"fast": "nowhere"}, "data.no_source", 3),
        ("x", {"data": "fast"}, "data.no_samples", 3),
        ("x", {"data": "nowhere"}, "data.no_source", 3),
        ("x", {"tokens": "fast"}, "data.missing", 3),
        ("x", {"profile": "libro"}, "usage.unknown_name", 2),
        ("x", {"rpy_std_mult": 4}, "usage.bad_value", 2),
        ("x", {"pattern": "data/x*.jsonl"}, "data.no_samples", 3),
        ("x", {"tokenizer": "A"}, "data.broken", 3),
    ],
)
def test_invalid_inputs_are_rejected(
    workspace: Path, output: str, options: dict[str, Any], code: str, exit_code: int
) -> None:
    path_keys = ("fast", "data", "tokens", "tokenizer")
    options = {key: str(workspace / v) if key in path_keys else v for key, v in options.items()}
    error = build_error(workspace, workspace / output, **options)
    assert (error.code, error.exit_code) == (code, exit_code)
    assert not (workspace / "x").exists()


def test_kinds_and_episodes_are_selected_and_grippers_normalized(
    inputs: Path, built: Path, tmp_path: Path
) -> None:
    result = build(inputs, tmp_path / "out", kinds=["wm"], limit=2, gripper="normalised")
    assert (result.kinds, result.episodes) == ({"wm": 2 * FRAMES}, 2)
    of_wm = {parse_sample(line).conversation.kind for line in lines(tmp_path / "out")}
    assert of_wm == {"wm"}
    assert not {*lines(tmp_path / "out")} & {*lines(built)}
    profile = read_profile(str(tmp_path / "out/fast"))
    assert profile == read_profile("libero", "normalised")
    assert SamplesFolder.open(tmp_path / "out").document["profile"]["digest"] == profile.digest


def test_a_kind_without_windows_is_rejected(tmp_path: Path) -> None:
    tree = published_windows(tmp_path / "A", 1, 2, kinds=["vla"])
    write_tree_codes(tree, "packed")
    plain_fast(tmp_path / "fast")
    assert build_error(tmp_path, kinds=["wm"]).code == "data.no_samples"


@pytest.mark.parametrize(
    ("fitted", "options", "is_refused"),
    [
        (None, {"profile": "libero"}, False),
        (None, {"gripper": "raw"}, False),
        (None, {"gripper": "normalised"}, True),
        ("normalised", {}, False),
        ("normalised", {"gripper": "raw"}, True),
        ("normalised", {"gripper_raw": True}, True),
        ("normalised", {"profile": "libero"}, True),
    ],
    ids=str,
)
def test_another_profile_than_that_of_the_action_tokenizer_is_refused(
    workspace: Path, fitted: Any, options: dict[str, Any], is_refused: bool
) -> None:
    own = read_profile("libero", fitted)
    write_profile(workspace / "fast/profile.yaml", own)
    if is_refused:
        error = build_error(workspace, dry_run=True, **options)
        assert (error.code, error.exit_code) == ("data.mismatch", 3)
    else:
        assert build(workspace, dry_run=True, **options).status == "planned"
    assert not (workspace / "OUT").exists()


def test_the_profile_of_the_action_tokenizer_is_used(workspace: Path) -> None:
    own = {"name": "own", "mean": [0.0] * 7, "std": [1.0] * 7}
    (workspace / "fast/profile.yaml").write_text(json.dumps(own))
    assert build(workspace).profile == "own"
    assert SamplesFolder.open(workspace / "OUT").document["profile"]["name"] == "own"


@pytest.mark.parametrize("is_known", [True, False])
def test_instructions_with_ids_of_codes_are_counted(tmp_path: Path, is_known: bool) -> None:
    tree = published_windows(tmp_path / "A", 1, 2, task="\u0440\u0443\u043a\u0430")
    write_tree_codes(tree, "packed")
    plain_fast(tmp_path / "fast")
    options: dict[str, Any] = {}
    if is_known:  # a language model on bytes: no text has a reserved id
        tiny_tokenizer(6144).save(str(tmp_path / "tokenizer.json"))
        options["tokenizer"] = str(tmp_path)
    result = build(tmp_path, **options)
    assert result.colliding_instructions == (0 if is_known else 4)


def test_an_output_in_a_bucket_has_the_same_lines(
    inputs: Path, s3_bucket: str, tmp_path: Path
) -> None:
    build(inputs, tmp_path / "here", packed=True)
    bucket = RemotePath(f"s3://{s3_bucket}")
    upload(inputs, bucket / "made")
    options = {"data": str(bucket / "made/A"), "fast": str(bucket / "made/fast"), "packed": True}
    build(inputs, bucket / "out", **options)
    assert contents(bucket / "out/packed") == contents(tmp_path / "here/packed")
    assert SamplesFolder.open(bucket / "out").prefix == "../made/A/"
    error = build_error(inputs, tmp_path / "far", data=options["data"])
    assert error.code == "usage.unsupported"


# folders with foreign or malicious content


FIRST, SECOND = "episode_000000", "episode_000001"


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
        "data.mismatch",
    ),
    "whole_path": (
        lambda lines: [line.replace('"images/', '"/images/') for line in lines],
        "data.mismatch",
    ),
    "another_episode": (
        lambda lines: [line.replace(FIRST, SECOND) for line in lines],
        "data.mismatch",
    ),
    "line_twice": (lambda lines: [*lines, lines[-1]], "data.broken"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_windows_of_another_episode_fail_only_this_episode(workspace: Path, name: str) -> None:
    change, code = FOREIGN[name]
    rewrite(workspace / "A/data" / f"{FIRST}.jsonl", change)

    assert failed(lambda: build(workspace)) == [code]


def test_codes_named_like_the_parent_folder_do_not_touch_it(workspace: Path) -> None:
    tokens = workspace / "A/tokens"
    (tokens / f"{FIRST}.npz").rename(tokens / "...npz")

    with fails("data.wrong_digest"):
        exported(tokens, workspace / "OUT")
    assert (workspace / "fast").is_dir()


def test_codes_of_an_image_with_a_path_are_rejected(workspace: Path) -> None:
    path = workspace / "A/tokens" / f"{FIRST}.npz"
    with np.load(path) as archive:
        change_arrays(path, stems=np.array([f"../../{stem}" for stem in archive["stems"]]))

    assert failed(lambda: exported(workspace / "A/tokens", workspace / "OUT")) == ["data.broken"]


def test_packed_samples_of_another_number_fail_their_episode(workspace: Path) -> None:
    build(workspace, packed=True)
    path = workspace / "OUT/packed" / f"{FIRST}.npz"
    with np.load(path) as archive:
        change_arrays(
            path, **{name: archive[name][:-1] for name in ("kinds", "windows", "task_of")}
        )

    assert failed(lambda: exported(workspace / "OUT", workspace / "lines")) == ["data.broken"]


def test_verify_reports_a_tag_in_a_packed_instruction(workspace: Path) -> None:
    build(workspace, packed=True)
    change_arrays(workspace / "OUT/packed" / f"{FIRST}.npz", tasks=np.array(["a </Act> b"]))

    assert "samples.broken_file" in verified(workspace / "OUT").codes


def test_verify_reports_unreadable_codes_once(workspace: Path) -> None:
    path = workspace / "A/tokens" / f"{FIRST}.npz"
    path.write_bytes(path.read_bytes()[:-30])

    assert "codes.missing" not in verified(workspace / "A/tokens").codes
