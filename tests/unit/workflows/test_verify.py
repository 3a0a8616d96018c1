"""`verify` of outputs: valid ones, and one finding code per defect."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.builders import broken_sources
from tests.builders import shards as built
from tests.builders.errors import fails
from tests.builders.lerobot import lerobot_dataset
from tests.builders.lerobot_shared import edit_list
from tests.builders.preprocessing import has_message_and_hint, options_for
from tests.builders.shards import Members, shard_output
from tests.builders.verifying import verified
from vlatool.cli.app import run
from vlatool.config.resolve import config_of
from vlatool.errors import DataError, VlatoolError
from vlatool.jobs.files import digests_below, folder_entry, row_of
from vlatool.jobs.record import OutputRecord
from vlatool.media.tar import ShardIndex, index_path, scan_tar
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.verify import InspectConfig, VerifyConfig, VerifyResult, inspect, verify

Break = Callable[[Path], Any]


def severe(result: VerifyResult) -> set[str]:
    """Codes of errors and warnings."""
    return {finding.code for finding in result.findings if finding.severity != "info"}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_output(tmp_path_factory.mktemp("verify") / "out")


@pytest.fixture
def output(intact: Path, tmp_path: Path) -> Path:
    """Copy that a test may damage."""
    return Path(shutil.copytree(intact, tmp_path / "out"))


def shard(output: Path) -> Path:
    return output / "shards/shard_000001.tar"


def flip_image_byte(output: Path) -> None:
    data = bytearray(shard(output).read_bytes())
    data[700] ^= 0xFF  # behind the first header
    shard(output).write_bytes(data)


def flip_header_byte(output: Path) -> None:
    with tarfile.open(shard(output)) as tar:
        offset = tar.getmembers()[3].offset
    data = bytearray(shard(output).read_bytes())
    data[offset] ^= 0xFF
    shard(output).write_bytes(data)


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def rewrite(output: Path, change: Callable[[list[str], dict[str, Members]], None]) -> None:
    """Unpacks the second shard, changes keys or contents, packs it again."""
    contents: dict[str, Members] = {}
    with tarfile.open(shard(output)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            key, _, suffix = member.name.partition(".")
            contents.setdefault(key, {})[suffix] = file.read()
    keys = list(contents)
    change(keys, contents)
    built.write_tar(shard(output), keys, contents)


def double_first(keys: list[str], contents: dict[str, Members]) -> None:
    del contents
    keys.append(keys[0])


def lose_image(keys: list[str], contents: dict[str, Members]) -> None:
    del contents[keys[0]]["front_t0.jpg"]


def repeat_from_first_shard(keys: list[str], contents: dict[str, Members]) -> None:
    del keys[1:]
    contents["sample-0000"] = contents["sample-0001"] = built.members(0)
    keys += ["sample-0000", "sample-0001"]


def test_options_that_change_nothing_of_a_valid_output(intact: Path) -> None:
    result = verified(intact)
    assert (result.whole, result.findings) == (True, ())
    assert result.checked["samples"] == 6
    assert result.checked["pictures"] == 24

    assert verified(intact, samples=2).checked["samples_read"] == 2

    result = verified(intact / "shards/manifest.jsonl")
    assert (result.kind, severe(result), result.checked["samples"]) == ("output", set(), 6)

    result = verified(shard(intact))
    assert (result.kind, result.findings, result.checked["samples"]) == ("shard", (), 3)

    for options in ({"full": True}, {"quick": True}, {"samples": 1}):
        assert verified(intact, **options).findings == ()


def write_index(shard: Path, **changes: Any) -> None:
    """Writes a valid index of a shard with some changes."""
    samples = scan_tar(shard).samples
    index = ShardIndex(
        np.array([item.start for item in samples]),
        np.array([item.end - item.start for item in samples]),
        shard.stat().st_size,
    )
    index_path(shard).write_bytes(replace(index, **changes).content())


def test_the_index_of_a_shard_is_no_unlisted_file_nor_is_an_output_within_the_folder(
    output: Path,
) -> None:
    for path in (output / "shards").glob("*.tar"):
        write_index(path)
    assert verified(output).findings == ()

    (output / "tokens/.vlatool").mkdir(parents=True)
    (output / "tokens/codes.npz").write_bytes(b"codes")
    assert verified(output).findings == ()

    index_path(shard(output)).write_bytes(b"PK")
    assert verified(output).codes == {"shards.index_mismatch": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": np.array([0, 512, 1024])},
        {"lengths": np.array([512, 512, 512])},
        {"offsets": np.array([0]), "lengths": np.array([512])},
        {"shard_bytes": 512},
    ],
)
def test_an_index_of_another_shard_is_an_error(changes: dict[str, Any], output: Path) -> None:
    write_index(shard(output), **changes)
    result = verified(output)
    assert result.codes == {"shards.index_mismatch": 1}
    assert result.findings[0].place["path"] == "shards/shard_000001.index.npz"


def test_a_folder_of_many_files_has_one_entry(output: Path) -> None:
    folder = output / "pictures"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(name)
    entry = row_of(folder_entry("pictures", digests_below(folder)))
    edit(output / ".vlatool/files.jsonl", lambda text: text + json.dumps(entry) + "\n")
    assert verified(output).findings == ()
    (folder / "b").write_text("x")
    assert verified(output).codes == {"output.digest_mismatch": 1}
    (folder / "c").write_text("c")
    assert verified(output).codes == {"output.size_mismatch": 1}


def test_a_downloaded_folder_of_shards_is_valid_with_a_manifest_at_its_root(
    intact: Path, tmp_path: Path
) -> None:
    shutil.copytree(intact / "shards", tmp_path / "shards")
    assert severe(verified(tmp_path)) == set()
    assert severe(verified(tmp_path / "shards")) == set()

    for name in ("manifest.jsonl", "stats.json", "preprocessing_config.yaml"):
        (tmp_path / "shards" / name).rename(tmp_path / name)
    edit(tmp_path / "manifest.jsonl", lambda text: text.replace('"shard_', '"shards/shard_'))
    result = verified(tmp_path)
    assert severe(result) == set()
    assert result.checked["samples"] == 6


BREAKS: dict[str, tuple[Break, set[str]]] = {
    "flipped byte": (flip_image_byte, {"output.digest_mismatch"}),
    "flipped byte of a header": (flip_header_byte, {"shards.broken_tar"}),
    "truncated shard": (
        lambda out: shard(out).write_bytes(shard(out).read_bytes()[:9000]),
        {"output.size_mismatch", "shards.broken_tar", "shards.count_mismatch"},
    ),
    "no end marker": (
        lambda out: shard(out).write_bytes(shard(out).read_bytes().rstrip(b"\0") + bytes(200)),
        {"output.size_mismatch", "shards.broken_tar"},
    ),
    "removed shard": (
        lambda out: shard(out).unlink(),
        {"output.missing_file", "shards.missing_shard"},
    ),
    "extra file": (lambda out: (out / "notes.txt").write_text("x"), {"output.unlisted_file"}),
    "extra shard": (
        lambda out: shutil.copy(shard(out), out / "shards/shard_000009.tar"),
        {"output.unlisted_file", "shards.unlisted_shard"},
    ),
    "edited count": (
        lambda out: edit(out / "shards/manifest.jsonl", lambda t: t.replace(": 3}", ": 4}", 1)),
        {"output.digest_mismatch", "shards.count_mismatch"},
    ),
    "shard listed twice": (
        lambda out: edit(out / "shards/manifest.jsonl", lambda t: t + "\n" + t.splitlines()[0]),
        {"output.size_mismatch", "shards.listed_twice", "shards.duplicate_sample"},
    ),
    "broken manifest": (
        lambda out: (out / "shards/manifest.jsonl").write_text("{}"),
        {"output.size_mismatch", "shards.broken_manifest"},
    ),
    "no manifest": (
        lambda out: (out / "shards/manifest.jsonl").unlink(),
        {"shards.no_manifest"},
    ),
    "no configuration": (
        lambda out: (out / "shards/preprocessing_config.yaml").unlink(),
        {"output.missing_file", "shards.no_config"},
    ),
    "sample twice": (
        lambda out: rewrite(out, double_first),
        {"output.size_mismatch", "shards.duplicate_sample", "shards.count_mismatch"},
    ),
    "sample in two shards": (
        lambda out: rewrite(out, repeat_from_first_shard),
        {"shards.duplicate_sample"},
    ),
    "lost picture": (
        lambda out: rewrite(out, lose_image),
        {"shards.incomplete_sample"},
    ),
    "no statistics": (
        lambda out: (out / "shards/stats.json").unlink(),
        {"stats.missing"},
    ),
    "statistics with NaN": (
        lambda out: edit(out / "shards/stats.json", lambda t: t.replace("null", "NaN")),
        {"output.size_mismatch", "stats.not_strict"},
    ),
    "broken file list": (
        lambda out: (out / ".vlatool/files.jsonl").write_text("{"),
        {"output.broken_file_list"},
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_defect_of_the_files_has_its_codes(name: str, output: Path) -> None:
    break_it, codes = BREAKS[name]
    break_it(output)
    assert codes <= severe(verified(output))


def edit_arrays(**changes: Any) -> built.Change:
    """Replaces arrays of the fourth sample."""

    def change(key: str, members: Members) -> None:
        if key == built.key_of(3):
            content = {**built.arrays(3), **changes}
            members["lowdim.npz"] = built.npz(
                {name: values for name, values in content.items() if values is not None}
            )

    return change


def replace_member(suffix: str, data: bytes) -> built.Change:
    def change(key: str, members: Members) -> None:
        if key == built.key_of(3):
            members[suffix] = data

    return change


class Bomb:
    """Object that fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


NAN = np.where(np.eye(4, 1, k=-2) > 0, np.nan, 1.0)
BOMBS = np.array([Bomb()] * 4, dtype=object)


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (edit_arrays(action=NAN), "shards.not_finite", "action"),
        (edit_arrays(skill=BOMBS), "shards.object_array", None),
        (edit_arrays(action=np.zeros((4, 2))), "shards.field_mismatch", "action"),
        (edit_arrays(action=None), "shards.field_mismatch", "action"),
        (edit_arrays(action=np.zeros((5, 1))), "shards.window_length", "action"),
        (edit_arrays(past_mask=np.zeros(4)), "shards.bad_mask", "past_mask"),
        (edit_arrays(past_mask=None), "shards.bad_mask", "past_mask"),
        (edit_arrays(action=np.full((4, 1), 7.0)), "stats.out_of_range", "action"),
        (replace_member("lowdim.npz", b"PK"), "shards.broken_npz", None),
        (replace_member("metadata.json", b"[]"), "shards.bad_metadata", None),
        (
            replace_member("metadata.json", b'{"camera_names": ["front", "wrist"]}'),
            "shards.bad_metadata",
            "anchor_relative_idx",
        ),
        (replace_member("front_t0.jpg", b"\xff\xd8"), "shards.broken_picture", None),
        (replace_member("front_t0.jpg", built.jpeg(0, (9, 6))), "shards.picture_size", None),
        (replace_member("language_instructions.json", b"[]"), "shards.bad_language", None),
        (replace_member("Front_t0.jpg", built.jpeg(0)), "shards.upper_case_member", None),
        (replace_member("x.lowdim.npz", b""), "shards.dotted_key", None),
    ],
)
def test_a_defect_of_a_sample_has_its_code_and_place(
    change: built.Change, code: str, field: str | None, tmp_path: Path
) -> None:
    result = verified(shard_output(tmp_path / "out", change=change))
    matches = [finding for finding in result.findings if finding.code == code]
    assert matches, result.codes
    assert matches[0].place["sample"] == built.key_of(3)
    assert matches[0].place["shard"].startswith("shards/shard_")
    assert matches[0].place.get("field") == field


def test_an_episode_with_fewer_cameras_and_one_with_depth_and_labels_are_complete(
    tmp_path: Path,
) -> None:
    buffer = io.BytesIO()
    Image.new("I;16", built.SIZE).save(buffer, "PNG")

    def fewer(key: str, members: Members) -> None:
        del key
        for offset in built.OFFSETS:
            del members[f"wrist_t{offset}.jpg"]
        metadata = {"anchor_relative_idx": built.PAST, "camera_names": ["front"]}
        members["metadata.json"] = json.dumps(metadata).encode()

    def more(key: str, members: Members) -> None:
        del key
        for side in ("depth", "label"):
            members |= {f"front_{side}_t{offset}.png": buffer.getvalue() for offset in (-1, 0)}

    for change in (fewer, more):
        output = shard_output(tmp_path / change.__name__, change=change)
        assert verified(output).findings == ()


def test_allowed_nan_is_a_warning(tmp_path: Path) -> None:
    output = shard_output(tmp_path / "out", change=edit_arrays(action=NAN))
    options = output / "shards/preprocessing_config.yaml"
    edit(options, lambda text: text + "fail_on_nan: false\n")
    built.write_list(output)
    result = verified(output)
    assert (result.codes, result.whole) == ({"shards.nan_kept": 1}, True)


def lower_bound(stats: dict[str, Any]) -> None:
    stats["action"]["min_per_timestep"][0] = [0.5]


def add_entry(stats: dict[str, Any]) -> None:
    stats["force"] = stats["action"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lower_bound, "stats.out_of_range"),
        (add_entry, "stats.extra_field"),
        (lambda s: s.pop("state"), "stats.missing_field"),
        (lambda s: s["state"].pop("mean"), "stats.broken"),
        (lambda s: s["state"].update(mean=[0.0]), "stats.wrong_shape"),
        (lambda s: s["state"].update(count=[6, 5, 6, 0]), "stats.wrong_count"),
    ],
)
def test_wrong_statistics_have_their_code(
    change: Callable[[dict[str, Any]], Any], code: str, tmp_path: Path
) -> None:
    result = verified(shard_output(tmp_path / "out", stats=change))
    assert severe(result) == {code}


def test_digests_are_not_compared_with_quick(output: Path) -> None:
    flip_image_byte(output)
    assert not any("digest" in code for code in verified(output, quick=True).codes)


@pytest.mark.parametrize(
    ("result", "code", "is_whole"),
    [(None, "output.incomplete", False), ({"samples": 6}, "output.partial", True)],
)
def test_an_incomplete_run_is_reported(
    result: dict[str, Any] | None, code: str, is_whole: bool, output: Path
) -> None:
    record = OutputRecord("preprocess", {}, {}, result, complete=False)
    record.save(output)
    matches = verified(output)
    assert (matches.codes, matches.whole) == ({code: 1}, is_whole)


def test_a_broken_source_is_invalid(tmp_path: Path) -> None:
    broken = lerobot_dataset(tmp_path / "broken", info={"fps": 0})
    assert verified(broken).codes == {"data.broken": 1}
    source = lerobot_dataset(tmp_path / "pick")
    assert verified(source, full=True).findings == ()
    (source / "data/chunk-000/episode_000001.parquet").unlink()
    result = verified(source)
    assert (result.kind, result.format, result.whole) == ("source", "lerobot", False)
    matches = result.findings[0]
    assert matches.code == "lerobot.missing_file"
    assert matches.place["path"] == "data/chunk-000/episode_000001.parquet"
    assert Path(next(word for word in matches.message.split() if "/" in word)).parent.is_dir()


def test_many_findings_of_a_code_are_counted_and_the_first_kept(tmp_path: Path) -> None:
    def change(key: str, members: Members) -> None:
        del key
        members["language_instructions.json"] = b"[]"

    result = verified(shard_output(tmp_path / "out", samples=120, change=change))
    assert result.codes["shards.bad_language"] == 120
    assert len(result.findings) == 100
    assert "and 117 more" in result.text()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "usage.missing_key"),
        ({"location": "x", "full": True, "quick": True}, "usage.conflict"),
        ({"location": "."}, "data.no_episodes"),
    ],
)
def test_wrong_options_are_rejected(
    options: dict[str, Any], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with fails(code):
        verify(VerifyConfig(**options))


def test_the_command_prints_the_findings_and_exits_with_3(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(output).unlink()
    assert run(["verify", str(output), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["whole"] is False
    assert "shards.missing_shard" in document["codes"]

    assert run(["verify", str(output), "--jsonl"]) == 3
    findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"code", "severity", "place", "message", "action"} == set(findings[0])


def test_a_valid_output_exits_with_0_and_progress_counts_shards_and_episodes_separately(
    intact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--progress", "json", "verify", str(intact)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1].startswith("valid: ")
    events = [json.loads(line) for line in shown.err.splitlines()]
    last = {item.get("name"): item["fields"] for item in events}
    assert last["shards"] == last["episodes"] == {"samples": verified(intact).checked["samples"]}


def test_several_processes_have_the_same_findings_in_the_same_order(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", [3] * 16, cameras={}, version="v3.0", per_file=8)
    edit_list(root, "length", 3, 4)
    edit_list(root, "length", 12, 4)
    results = [verified(root, workers=workers) for workers in (1, 2)]
    assert results[0].codes["lerobot.length_mismatch"] == 2
    assert results[0].checked["episodes"] == 16
    assert results[0] == results[1]


# agreement with preprocess


def cases(
    expected: set[tuple[int, int]],
    lerobot: dict[str, broken_sources.Make],
    spartan: dict[str, broken_sources.Make],
) -> list[object]:
    return [
        pytest.param(expected, name, make, id=f"{name}: {label}")
        for name, table in (("lerobot", lerobot), ("spartan", spartan))
        for label, make in table.items()
    ]


def code_of_verify(source: Path) -> int:
    """Exit code of `verify`."""
    try:
        return verify(VerifyConfig(location=str(source))).exit_code
    except VlatoolError as error:
        return error.exit_code


def preprocessed(source: Path, output: Path, name: str) -> int:
    """Exit code of `preprocess`; its error has two lines."""
    tree = options_for(source, output, format=name)
    try:
        preprocess(config_of(PreprocessConfig, tree))
    except VlatoolError as error:
        failures = error.details.get("failures", [vars(error)])
        assert all(map(has_message_and_hint, failures)), failures
        return error.exit_code
    return 0


@pytest.mark.parametrize(
    ("expected", "name", "make"),
    [
        *cases({(3, 3), (3, 4)}, broken_sources.LEROBOT_ERRORS, broken_sources.SPARTAN_ERRORS),
        *cases({(0, 0)}, broken_sources.LEROBOT_ODDITIES, broken_sources.SPARTAN_ODDITIES),
    ],
)
def test_what_verify_finds_is_left_out_and_reported_and_nothing_else(
    expected: set[tuple[int, int]], name: str, make: broken_sources.Make, tmp_path: Path
) -> None:
    make(tmp_path / "set")

    codes = code_of_verify(tmp_path / "set"), preprocessed(tmp_path / "set", tmp_path / "out", name)

    assert codes in expected
    with suppress(DataError):  # or it is rejected
        inspect(InspectConfig(location=str(tmp_path / "set"), format=name)).text()
