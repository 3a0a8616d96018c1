import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlatool.errors import DataError
from vlatool.media import npz as module
from vlatool.media.npz import NpzArchive, NpzFrames


class Trap:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "arrays.npz"
    np.savez_compressed(path, **arrays)
    return path


def npy(shape: str, descr: str = "'<f8'", data: bytes = b"", header_bytes: int = 0) -> bytes:
    """An npy file with `shape` in its header, which `header_bytes` pads."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(header_bytes) + b"\n"
    return b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + data


def raw_npz(folder: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    path = folder / "arrays.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def read_error(path: Path, name: str) -> DataError:
    with pytest.raises(DataError) as caught:
        NpzArchive(path).read(name)
    return caught.value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(["a", "b\u00fc"]),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
        np.array(3.0),
        np.arange(3, dtype=">i4"),
    ],
)
def test_array_reads_back_equal(tmp_path: Path, array: np.ndarray) -> None:
    read = NpzArchive(npz(tmp_path, a=array)).read("a")

    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_object_arrays_are_rejected_never_unpickled_and_do_not_affect_others(
    tmp_path: Path,
) -> None:
    path = npz(tmp_path, trap=np.array([Trap(tmp_path / "sprung")], dtype=object))

    error = read_error(path, "trap")

    assert error.code == "data.unsafe"
    assert error.details == {"finding": "object_array", "path": str(path), "field": "trap"}
    assert not (tmp_path / "sprung").exists()

    array = np.zeros(1, dtype=[("x", float), ("y", object)])

    assert read_error(npz(tmp_path, a=array), "a").code == "data.unsafe"

    path = npz(tmp_path, trap=np.array([Trap(tmp_path / "sprung")], dtype=object), a=np.ones(2))

    assert NpzArchive(path).read("a").tolist() == [1, 1]


def test_missing_array_or_file_is_a_data_error(tmp_path: Path) -> None:
    error = read_error(npz(tmp_path, a=np.ones(2)), "b")

    assert (error.code, error.details["field"]) == ("data.missing", "b")
    with pytest.raises(DataError):
        NpzArchive(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "member",
    [
        npy("(3,)", data=bytes(16)),
        npy("(1,)", data=bytes(16)),
        npy("(4611686018427387904, 4)"),  # the product wraps to 0 in 64 bits
        npy("(1000000000, 1000000000)"),
        npy("(-1,)"),
        npy("('a',)"),
        npy("3"),
        npy("(2,)", descr="'nonsense'", data=bytes(16)),
        npy("__import__('os').getcwd()"),
        npy("(2,)")[:14],
        npy("(0,)", header_bytes=20_000),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x3f",
        b"",
        b"not an array",
    ],
)
def test_header_with_wrong_size_is_rejected(tmp_path: Path, member: bytes) -> None:
    assert read_error(raw_npz(tmp_path, a=member), "a").code == "data.broken"


def test_zip_directory_with_wrong_size_is_rejected(tmp_path: Path) -> None:
    path = raw_npz(tmp_path, a=npy("(2,)", data=bytes(16)))
    size = len(npy("(2,)", data=bytes(16)))
    longer = npy("(9,)", data=bytes(16))
    content = path.read_bytes().replace(npy("(2,)"), npy("(9,)"))
    content = content.replace(size.to_bytes(4, "little"), (len(longer) + 56).to_bytes(4, "little"))
    path.write_bytes(content)

    assert read_error(path, "a").code == "data.broken"


def patch_directory(path: Path, at: int, value: bytes) -> None:
    """Changes all entries of the central directory at an offset."""
    content = bytearray(path.read_bytes())
    position = content.find(b"PK\x01\x02")
    while position >= 0:
        content[position + at : position + at + len(value)] = value
        position = content.find(b"PK\x01\x02", position + 4)
    path.write_bytes(content)


def ends_early(path: Path) -> None:
    """Replaces the deflate stream by one that is much shorter than its declared size."""
    content = path.read_bytes()
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    short = stream.compress(npy("(300,)") + bytes(8)) + stream.flush()
    start, end = content.find(b"a.npy") + 5, content.find(b"PK\x01\x02")
    path.write_bytes(content[:start] + short.ljust(end - start, b"\xff") + content[end:])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no archive": lambda path: path.write_bytes(b"hello" * 100),
    "wrong checksums": lambda path: patch_directory(path, 16, b"\1\2\3\4"),
    "encrypted": lambda path: patch_directory(path, 8, b"\x01\x00"),
    "unknown compression": lambda path: patch_directory(path, 10, b"\x63\x00"),
    "bzip2": lambda path: raw_npz(path.parent, zipfile.ZIP_BZIP2, a=npy("(2,)", data=bytes(16))),
    "directory that declares 4 GB": lambda path: patch_directory(path, 24, b"\xf0\xff\xff\xff"),
    "stream that ends early": ends_early,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_archive_is_rejected(tmp_path: Path, name: str) -> None:
    data = np.random.default_rng(0).bytes(2400)
    path = raw_npz(tmp_path, zipfile.ZIP_DEFLATED, a=npy("(300,)", data=data))
    DAMAGES[name](path)

    with pytest.raises(DataError) as caught:
        NpzArchive(path).read("a")

    assert (caught.value.code, caught.value.details["path"]) == ("data.broken", str(path))


def test_array_that_inflates_to_gigabytes_is_rejected_before_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGEST_ARRAY", 800)
    path = npz(tmp_path, large=np.zeros(101), a=np.zeros(100))

    error = read_error(path, "large")

    assert (error.code, error.details["field"]) == ("data.broken", "large")
    assert len(NpzArchive(path).read("a")) == 100


def images(frames: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, 4, 5, 3)).astype(np.uint8)


def frame_source(folder: Path, array: np.ndarray, name: str = "cam") -> NpzFrames:
    archive = NpzArchive(npz(folder, **{name: array}))
    return archive.frames(name)


@pytest.mark.parametrize(
    "indices",
    [range(7), range(6, -1, -1), [0, 3, 6], [5, 5, 2, 2, 6], []],
    ids=["forward", "backward", "gaps", "repeats", "none"],
)
def test_streamed_frames_equal_the_whole_array_whose_size_is_height_then_width(
    tmp_path: Path, indices: Any
) -> None:
    array = images()
    frames = frame_source(tmp_path, array)
    assert frames.size == (4, 5)

    one_by_one = [frames.read([index])[0] for index in indices]

    assert (frames.read(list(indices)) == array[list(indices)]).all()
    assert all(
        (frame == array[index]).all() for frame, index in zip(one_by_one, indices, strict=True)
    )


@pytest.mark.parametrize("index", [-1, 7])
def test_frame_outside_the_episode_is_rejected(tmp_path: Path, index: int) -> None:
    with pytest.raises(DataError) as caught:
        frame_source(tmp_path, images()).read([index])

    assert caught.value.code == "data.broken"


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 4, 5), np.uint8), np.zeros((2, 4, 5, 4), np.uint8), np.zeros((2, 4, 5, 3))],
)
def test_array_without_images_is_rejected(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(DataError) as caught:
        frame_source(tmp_path, array)

    assert (caught.value.code, caught.value.details["field"]) == ("data.mismatch", "cam")


def test_damage_is_found_when_its_frame_is_read(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    frames = frame_source(tmp_path, big)
    path = tmp_path / "arrays.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)

    assert (frames.read([0])[0] == big[0]).all()
    with pytest.raises(DataError) as caught:
        frames.read([39])
    assert caught.value.code == "data.broken"


def test_names_are_in_the_order_of_the_archive_without_members_that_are_no_arrays(
    tmp_path: Path,
) -> None:
    path = npz(tmp_path, b=np.ones(1), a=np.ones(1))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")

    assert NpzArchive(path).names == ["b", "a"]
