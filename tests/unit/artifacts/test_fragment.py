"""Parsing of the bytes of one sample; test_loading compares it with webdataset."""

import pytest

from vlatool.artifacts.tar import member_bytes
from vlatool.artifacts.tar_sample import read_members

LONG = "k" * 120


def tar(*names: str) -> bytes:
    return b"".join(member_bytes(name, name.encode() * 99) for name in names)


@pytest.mark.parametrize("key", ["a", "folder/a", LONG, f"{LONG}/{LONG}"])
def test_members_of_a_sample(key: str) -> None:
    members = read_members(tar(f"{key}.b", f"{key}.C.d"))

    assert members.key == key
    assert members.contents == {"b": f"{key}.b".encode() * 99, "c.d": f"{key}.C.d".encode() * 99}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(1024),
        b"\xaa" * 512,
        tar("a.b")[:-1],
        tar("a.b")[:-512],
        tar("a.b")[512:],
        tar("a.b", "c.d"),
        tar("a.b", "a.B"),
        tar("nodot"),
        tar(f"{LONG}.b")[:-512],
        tar(f"{LONG}.b", "c.d"),
        tar("a.b") + bytes(512),
        tar("a.b").replace(b"a.b", b"a.c", 1),
        tar(f"{LONG}.b") + b"\xaa" * 1024,
    ],
)
def test_bytes_of_less_or_more_than_one_sample_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller says which shard
        read_members(data)
