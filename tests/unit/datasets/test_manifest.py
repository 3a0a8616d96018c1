import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vlatool.datasets.lbm.layout import (
    ShardInfo,
    ShardTable,
    check_shards,
    read_manifest,
    write_manifest,
)
from vlatool.errors import DataError
from vlatool.jobs.job import digest_of


def manifest(folder: Path, text: str | bytes) -> Path:
    path = folder / "manifest.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    return caught.value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shard_000000", "shard_000000.tar"),
        ("shard_000000.tar", "shard_000000.tar"),
        ("shards/shard_000000", "shards/shard_000000.tar"),
        ("/somewhere/else/shard_000000", "shard_000000.tar"),
        ("/somewhere/else/shard_000000.tar", "shard_000000.tar"),
        ("v0.1/shard.0", "v0.1/shard.0.tar"),
    ],
)
def test_shard_name_leads_to_a_file_beside_the_manifest(
    tmp_path: Path, name: str, expected: str
) -> None:
    path = manifest(tmp_path, f'{{"shard": "{name}", "num_sequences": 5}}')

    assert list(read_manifest(path)) == [ShardInfo(tmp_path / expected, 5)]


@pytest.mark.parametrize("separator", ["\n", "\n\n", "\r\n", "\n  \n"])
def test_blank_lines_and_extra_keys_are_tolerated(tmp_path: Path, separator: str) -> None:
    line = '{"shard": "a", "num_sequences": 1, "extra": true}'

    assert len(read_manifest(manifest(tmp_path, separator.join([line, line, ""])))) == 2


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        "3",
        '{"shard": "a"}',
        '{"num_sequences": 1}',
        *(
            f'{{"shard": "a", "num_sequences": {count}}}'
            for count in ("0", "-1", "2.0", "true", "10000001", "1e400", "Infinity", "9" * 5000)
        ),
        '{"shard": "../a", "num_sequences": 1}',
        pytest.param(f'{{"shard": "{"n" * 300}", "num_sequences": 1}}', id="long name"),
        '{"shard": "a\\u0000", "num_sequences": 1}',
        '{"shard": "a\\ud800", "num_sequences": 1}',
        pytest.param("[" * 100_000 + "]" * 100_000, id="deep"),
    ],
)
def test_broken_line_is_refused_by_number(tmp_path: Path, line: str) -> None:
    good = '{"shard": "a", "num_sequences": 1}\n\n'

    error = error_of(manifest(tmp_path, good + line))

    assert (error.code, error.details["line"]) == ("data.broken", 3)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "data.no_manifest"),
        ("", "data.no_samples"),
        ("\n", "data.no_samples"),
        (b"\xff\xfe\x00", "data.broken"),
    ],
)
def test_file_without_shards_is_refused(
    tmp_path: Path, content: str | bytes | None, code: str
) -> None:
    path = tmp_path / "manifest.jsonl" if content is None else manifest(tmp_path, content)
    assert (error_of(path).code, error_of(path).exit_code) == (code, 3)


def test_written_manifest_has_the_published_bytes(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"

    write_manifest(path, [("shard_000000", 4), ("shard_000001", 2)])

    assert path.read_bytes() == (
        b'{"shard": "shard_000000", "num_sequences": 4}\n'
        b'{"shard": "shard_000001", "num_sequences": 2}'
    )


def test_digest_of_a_table_is_that_of_its_names_and_sizes(tmp_path: Path) -> None:
    names = ["a.tar", "frames/episode_1.tar", 'quoted "b"\\.tar', "naïve.tar"]
    table = ShardTable(tmp_path, names, np.array([4, 2, 10_000_000, 1]))

    assert table.digest == digest_of([(shard.location.name, shard.size) for shard in table])


def test_table_has_the_shards_of_a_list(tmp_path: Path) -> None:
    table = ShardTable(tmp_path, ["a.tar", "b.tar", "c.tar"], np.array([4, 2, 3]), "xyz")

    assert table[1] == ShardInfo(tmp_path / "b.tar", 2, "y")
    assert [shard.size for shard in table] == [4, 2, 3]


def test_cut_off_shard_is_refused_by_name(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as archive:
        archive.addfile(tarfile.TarInfo("k.txt"))
        info = tarfile.TarInfo("k.bin")
        info.size = 30_000
        archive.addfile(info, io.BytesIO(b"\x01" * 30_000))
    content = shard.read_bytes()
    check_shards(tmp_path / "manifest.jsonl", [ShardInfo(shard, 1)])

    for length in (0, 500, 700, 10240, 20480):
        shard.write_bytes(content[:length])
        with pytest.raises(DataError) as caught:
            check_shards(tmp_path / "manifest.jsonl", [ShardInfo(shard, 1)])
        assert caught.value.code == "data.broken"
        assert caught.value.details["shard"] == str(shard)


def test_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_shards(tmp_path / "manifest.jsonl", [ShardInfo(tmp_path / "gone.tar", 1)])

    assert caught.value.code == "data.missing"
    assert caught.value.details["shard"] == str(tmp_path / "gone.tar")
