"""Errors for damaged and hostile npz files. Source: formats/spartan 10, 11."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import preprocessing
from tests.builders.spartan import spartan_task


def npy(shape: str, header_bytes: int = 0) -> bytes:
    """Header of an npy file; `header_bytes` pads it."""
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
    """Changes all entries of the central directory at an offset."""
    content = bytearray(path.read_bytes())
    position = content.find(b"PK\x01\x02")
    while position >= 0:
        content[position + at : position + at + len(value)] = value
        position = content.find(b"PK\x01\x02", position + 4)
    path.write_bytes(content)


def ends_early(path: Path) -> None:
    """Writes a member whose deflate stream is much shorter than its declared size."""
    head = npy(f"({preprocessing.FRAMES}, 10)")
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
        lambda path: add_member(path, "robot__x", npy(f"({preprocessing.FRAMES}, {10**15})")),
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
def test_bad_archive_is_reported_with_its_path(
    tmp_path: Path, spoil: Callable[[Path], None], code: str
) -> None:
    source = spartan_task(tmp_path / "raw", 2, preprocessing.FRAMES)
    path = preprocessing.processed(source) / "observations.npz"
    spoil(path)

    failure = preprocessing.failure_of(preprocessing.refusal(source, tmp_path / "out"))

    assert (failure["code"], failure["details"]["path"]) == (code, str(path))
    assert preprocessing.has_message_and_hint(failure)


def test_array_that_inflates_to_gigabytes_is_rejected_before_it_is_inflated(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 2, preprocessing.FRAMES)
    path = preprocessing.processed(source) / "observations.npz"
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("robot__x.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy(f"({preprocessing.FRAMES}, 24000000)"))
        for _ in range(preprocessing.FRAMES * 24):
            member.write(bytes(8_000_000))

    failure = preprocessing.failure_of(preprocessing.refusal(source, tmp_path / "out"))

    assert (failure["code"], failure["details"]["field"]) == ("data.broken_npz", "robot__x")
