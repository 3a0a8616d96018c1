"""RLDS data sets, of records written here and of real ones."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import hdf5
from tests.builders.s3_server import Proxy, S3Server
from tests.builders.tfrecords import example, record
from tests.builders.world_recordings import record_world
from vlatool.episode import Episode, LanguageSpan
from vlatool.errors import DataError
from vlatool.media.tfrecord import masked_crc, parse_example
from vlatool.recordings.rlds.reader import RldsConfig, RldsReader
from vlatool.storage.uri import location
from vlatool.testing import check_reader

_BESIDE = Path(__file__).parents[4] / "shared" / "data" / "formats"
BRIDGE = Path(os.environ.get("VLATOOL_RECORDINGS", _BESIDE)) / "bridge"


def tensor(dtype: str, *shape: int, **facts: str) -> dict[str, Any]:
    sides = {"dimensions": [str(side) for side in shape]}
    return {"tensor": {"shape": sides, "dtype": dtype, "encoding": "none", **facts}}


FEATURES: dict[str, Any] = {
    "action": {"featuresDict": {"features": {"world": tensor("float32", 3)}}},
    "observation": {
        "featuresDict": {
            "features": {
                "state": tensor("float64", 2),
                "front": {"image": {"shape": {"dimensions": ["6", "8", "3"]}, "dtype": "uint8"}},
                "sound": {"audio": {}},
            }
        }
    },
    "count": tensor("int32"),
    "language_instruction": {"text": {}},
}
STEPS = 4
VALUES: dict[str, Any] = {
    "action/world": np.arange(3.0 * STEPS, dtype=np.float32),
    "observation/state": np.ones(2 * STEPS, np.float32),
    "observation/front": [hdf5.encoded(row) for row in hdf5.images(STEPS)],
    "count": np.array([0, -1, 2**31 - 1, 300]),
    "language_instruction": [b"wave"] * STEPS,
}


def written(folder: Path, *episodes: dict[str, Any], features: Any = FEATURES) -> Path:
    """A data set with a shard of these episodes; each changes `VALUES`."""
    folder.mkdir(exist_ok=True)
    steps = {"sequence": {"feature": {"featuresDict": {"features": features}}}}
    document = {"featuresDict": {"features": {"steps": steps}}}
    (folder / "features.json").write_text(json.dumps(document))
    rows = [
        {f"steps/{name}": value for name, value in {**VALUES, **change}.items()}
        for change in episodes
    ]
    content = b"".join(
        record(example({name: value for name, value in row.items() if value is not None}))
        for row in rows
    )
    (folder / "toy-train.tfrecord-00000-of-00001").write_bytes(content)
    return folder


def read(folder: Path, number: int = 0, **options: Any) -> Episode:
    reader = RldsReader(RldsConfig(**options))
    return reader.read(list(reader.discover([folder]))[number])


def test_recordings_of_the_world_keep_the_rules_of_readers(tmp_path: Path) -> None:
    record_world("rlds", tmp_path / "raw", episodes=2, frames=4)
    check_reader(RldsReader, tmp_path / "raw")
    features = json.loads((tmp_path / "raw/features.json").read_text())
    steps = features["featuresDict"]["features"]["steps"]
    assert steps["sequence"]["length"] == "-1"  # without it, TFDS expects one value per episode


@pytest.mark.skipif(not BRIDGE.is_dir(), reason="VLATOOL_RECORDINGS has no BridgeData")
def test_a_real_data_set_is_read(tmp_path: Path) -> None:
    reader = RldsReader(RldsConfig(fps=5))
    refs = list(reader.discover([BRIDGE]))
    assert [finding.code for finding in reader.source_findings] == ["rlds.missing_split"]
    episodes = [reader.read(ref) for ref in refs]
    assert [episode.num_frames for episode in episodes] == [10] * 25
    assert len({episode.task for episode in episodes}) == 4
    first = episodes[0]
    assert {name: values.shape for name, values in first.lowdim.items()} == {
        "action": (10, 7),
        "language_embedding": (10, 512),
        "observation.state": (10, 7),
        "discount": (10, 1),
        "reward": (10, 1),
    }
    assert first.cameras["image_0"].read([9]).shape == (1, 64, 64, 3)
    # The action's position is the next difference of the state, as in every copy of this set.
    state, action = first.lowdim["observation.state"], first.lowdim["action"]
    differences = np.concatenate([np.diff(e.lowdim["observation.state"][:, 0]) for e in episodes])
    actions = np.concatenate([e.lowdim["action"][:-1, 0] for e in episodes])
    assert state.dtype == action.dtype == np.float32
    assert np.corrcoef(differences, actions)[0, 1] > 0.8


def test_nested_features_are_fields_and_cameras(tmp_path: Path) -> None:
    episode = read(written(tmp_path / "toy", {}, {}), 1, fps=5)
    assert episode.id == "toy_train_000001"
    assert {name: (v.dtype, v.shape) for name, v in episode.lowdim.items()} == {
        "action.world": (np.float32, (4, 3)),
        "observation.state": (np.float64, (4, 2)),
        "count": (np.int32, (4, 1)),
    }
    assert episode.lowdim["count"][:, 0].tolist() == [0, -1, 2**31 - 1, 300]
    assert (episode.action_fields, episode.proprioception_fields) == (
        ("action.world",),
        ("observation.state",),
    )
    np.testing.assert_array_equal(episode.cameras["front"].read([3, 0]), hdf5.images()[[3, 0]])
    assert episode.cameras["front"].encoded(2) == VALUES["observation/front"][2]
    assert episode.language == {"original": ["wave"]}
    (finding,) = episode.findings
    assert finding.code == "left_out.data"
    assert "observation/sound (neither numbers" in finding.message


def test_an_instruction_that_changes_is_a_span_for_each_of_its_sentences(tmp_path: Path) -> None:
    folder = written(tmp_path / "toy", {"language_instruction": [b"a", b"a", b"b", b"b"]})
    episode = read(folder)
    assert (episode.language, episode.task) == ({}, "a")
    assert episode.language_spans == (
        LanguageSpan("original", "a", 0, 1),
        LanguageSpan("original", "b", 2, 3),
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"action/world": np.ones(10, np.float32)}, "data.broken"),
        ({"action/world": np.ones(9, np.float32)}, "data.broken"),
        ({"action/world": None}, "data.broken"),
        ({"action/world": [b"text"] * 4}, "data.broken"),
        ({"language_instruction": [b"once"]}, "data.broken"),
        ({name: VALUES[name][:0] for name in VALUES}, "data.broken"),
    ],
)
def test_a_record_that_contradicts_its_features_is_an_error(
    change: dict[str, Any], code: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(written(tmp_path / "toy", change))
    assert caught.value.code == code
    assert "toy_train_000000" in caught.value.message


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: data[:-1], "data.broken"),
        (lambda data: data[:10], "data.broken"),
        (lambda data: data[:5] + b"\1" + data[6:], "data.broken"),
        (lambda data: data[:50] + b"\1" + data[51:], "data.broken"),
        (lambda data: record(b"\xff" * 40), "data.broken"),
        (lambda data: record(b"\x0a\xff\xff\x03ab"), "data.broken"),
    ],
)
def test_damaged_files_are_errors_with_their_place(
    damage: Callable[[bytes], bytes], code: str, tmp_path: Path
) -> None:
    folder = written(tmp_path / "toy", {})
    (path,) = folder.glob("*.tfrecord*")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        read(folder)
    assert caught.value.code == code
    assert str(path) in caught.value.message


@pytest.mark.parametrize("text", ["{", "[]", '{"featuresDict": {"features": {"a": {}}}}', "3"])
def test_broken_features_are_an_error(text: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "toy", {})
    (folder / "features.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read(folder)
    assert caught.value.code == "data.broken"


def test_missing_shards_and_records_are_findings(tmp_path: Path) -> None:
    folder = written(tmp_path / "toy", {}, {})
    (folder / "toy-train.tfrecord-00000-of-00001").rename(
        folder / "toy-train.tfrecord-00000-of-00003"
    )
    split = {"name": "train", "shardLengths": ["3", "1", "1"]}
    (folder / "dataset_info.json").write_text(json.dumps({"splits": [split]}))
    reader = RldsReader(RldsConfig())
    assert len(list(reader.discover([folder]))) == 2
    shard, records = sorted(reader.source_findings, key=lambda finding: finding.code)
    assert (shard.code, "missing here: [1, 2]" in shard.message) == ("rlds.missing_shard", True)
    assert "has 2 records, but dataset_info.json says 3" in records.message
    with pytest.raises(DataError, match="the split 'val' has no shards"):
        list(RldsReader(RldsConfig(split="val")).discover([folder]))


def test_checksums_and_lists_are_those_of_the_format() -> None:
    # Source: RFC 3720, appendix B.4: 32 zero bytes have the CRC 8a9136aa.
    assert masked_crc(bytes(32)) == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) % 2**32
    values = np.array([0, 127, 128, -5, 2**62])
    parsed = parse_example(memoryview(example({"a": values, "b": [b"x", b""]})))
    np.testing.assert_array_equal(parsed["a"], values)
    assert [bytes(row) for row in parsed["b"]] == [b"x", b""]


def test_a_remote_record_is_one_request(
    s3: S3Server, s3_bucket: str, s3_proxy: Proxy, tmp_path: Path
) -> None:
    folder = written(tmp_path / "toy", {}, {})
    for path in folder.iterdir():
        s3.client().upload_file(str(path), s3_bucket, f"toy/{path.name}")
    reader = RldsReader(RldsConfig())
    refs = list(reader.discover([location(f"s3://{s3_bucket}/toy")]))
    assert reader.read(refs[0]).num_frames == STEPS
    s3_proxy.faults.requests.clear()
    remote = reader.read(refs[1])
    np.testing.assert_array_equal(remote.lowdim["count"], read(folder, 1).lowdim["count"])
    assert len(s3_proxy.faults.requests) == 1


def test_a_shard_that_is_cut_gives_the_records_before_the_cut(tmp_path: Path) -> None:
    folder = written(tmp_path / "toy", {}, {}, {})
    shard = folder / "toy-train.tfrecord-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-100])
    reader = RldsReader(RldsConfig())
    refs = list(reader.discover([folder]))
    assert len(refs) == 3
    assert reader.read(refs[1]).num_frames == STEPS
    with pytest.raises(DataError, match="truncated") as caught:
        reader.read(refs[2])
    assert "--exclude" in caught.value.hint


def test_sets_of_one_name_in_two_folders_have_ids_of_their_folders(tmp_path: Path) -> None:
    for name in ("1.0.0", "2.0.0"):
        (tmp_path / "toy").mkdir(exist_ok=True)
        written(tmp_path / "toy" / name, {})
    ids = [ref.id for ref in RldsReader(RldsConfig()).discover([tmp_path])]
    assert ids == ["toy_train_000000", "toy_2_0_0_train_000000"]


def test_shards_of_array_record_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "toy", {})
    shard = folder / "toy-train.tfrecord-00000-of-00001"
    shard.rename(folder / "toy-train.array_record-00000-of-00001")
    with pytest.raises(DataError, match="ArrayRecord"):
        list(RldsReader(RldsConfig()).discover([folder]))


def test_the_first_instruction_that_says_something_is_taken(tmp_path: Path) -> None:
    names = ("language_instruction", "language_instruction_2", "language_instruction_3")
    features = FEATURES | {name: {"text": {}} for name in names[1:]}
    texts = dict(zip(names, (b"", b"wave", b"greet"), strict=True))
    values = {name: [text] * STEPS for name, text in texts.items()}
    episode = read(written(tmp_path / "toy", values, features=features))
    assert episode.language == {"original": ["wave"], "alternative": ["greet"]}


def test_images_of_numbers_and_undeclared_features_are_not_lost(tmp_path: Path) -> None:
    features = {**FEATURES, "pixels": tensor("uint8", 24, 32, 3)}
    values = {"pixels": hdf5.images(STEPS).ravel().astype(np.int64), "extra": np.ones(STEPS)}
    episode = read(written(tmp_path / "toy", values, features=features))
    np.testing.assert_array_equal(episode.cameras["pixels"].read([2])[0], hdf5.image(2))
    (left,) = [part for part in episode.parts if part.path == "extra"]
    assert left.role == "left_out"


def test_a_rate_that_one_record_lacks_costs_only_its_episode(tmp_path: Path) -> None:
    folder = written(tmp_path / "toy", {})
    document = json.loads((folder / "features.json").read_text())
    features = document["featuresDict"]["features"]
    features["episode_metadata"] = {"featuresDict": {"features": {"fps": tensor("float32")}}}
    (folder / "features.json").write_text(json.dumps(document))
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("fields: {world: action/world}\nfps: episode_metadata/fps\n")
    with pytest.raises(DataError, match="episode_metadata/fps is missing"):
        read(folder, mapping=str(mapping))
