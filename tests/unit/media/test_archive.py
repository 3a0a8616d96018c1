"""Members of tars of unknown origin: what is accepted, and what is not."""

import io
import tarfile

import pytest

from vlatool.errors import DataError
from vlatool.media.archive import ArchiveReader

T = "tasks/T"


def entry(name: str, data: bytes = b"x", **values: object) -> bytes:
    """Header, content and padding of a member; `values` are attributes of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    form = values.pop("form", tarfile.PAX_FORMAT)
    for key, value in values.items():
        setattr(info, key, value)
    return info.tobuf(form) + data + bytes(-len(data) % 512)  # pyright: ignore[reportArgumentType]


GOOD = (
    entry("tasks", b"", type=tarfile.DIRTYPE)
    + entry(f"./{T}/", b"", type=tarfile.DIRTYPE)
    + entry(f"{T}/a/{'long' * 50}.txt", b"1" * 700)
    + entry(f"{T}/empty", b"", mode=0o6777, uid=12)
    + entry(f"{T}/b/gnu{'long' * 50}", b"2" * 512, form=tarfile.GNU_FORMAT)
    + entry(f"{T}/c/", b"", type=tarfile.DIRTYPE)
)
END = bytes(1024)


def read(data: bytes, position: int = 0) -> dict[str, bytes | None]:
    """Content by name, None for folders, of what is in an archive from a position on."""
    reader = ArchiveReader("x.tar", T, len(data))
    if position:
        reader.add("before", is_folder=False)
    members: dict[str, bytes | None] = {}
    for member, content in reader.members(io.BytesIO(data[position:]), position):
        members[member.name] = None if member.is_folder else b"".join(content)
    return members


def test_archive_is_read_from_its_start_and_from_each_member() -> None:
    data = GOOD + END
    expected: list[tuple[str, bytes | None]] = [
        (f"a/{'long' * 50}.txt", b"1" * 700),
        ("empty", b""),
        (f"b/gnu{'long' * 50}", b"2" * 512),
        ("c", None),
    ]
    positions = [0]
    for member, content in ArchiveReader("x.tar", T, len(data)).members(io.BytesIO(data), 0):
        b"".join(content)
        positions.append(member.next)
    for number, position in enumerate(positions):
        assert list(read(data, position).items()) == expected[number:]


def pax(name: str, headers: dict[str, str], *, is_global: bool = False) -> bytes:
    """Extended header, and a plain member."""
    info = tarfile.TarInfo(name)
    if is_global:
        return tarfile.TarInfo.create_pax_global_header(headers) + entry(name)
    info.size = 1
    info.pax_headers = headers
    return info.tobuf(tarfile.PAX_FORMAT) + b"x" + bytes(511)


def huge_header() -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**40
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2**21)


def wrong_checksum() -> bytes:
    data = bytearray(entry(f"{T}/a"))
    data[0] ^= 1
    return bytes(data)


HOSTILE: dict[str, bytes] = {
    "absolute name": entry(f"/{T}/a"),
    "name that leads out": entry(f"{T}/../../a"),
    "long name that leads out": entry(f"{T}/{'a/' * 80}{'../' * 90}x", form=tarfile.GNU_FORMAT),
    "name elsewhere": entry("tasks/Other/a"),
    "name at the top": entry("etc"),
    "task that is a file": entry(T),
    "record of vlatool": entry(f"{T}/.vlatool/run.json"),
    "line break in a name": entry(f"{T}/a\nb"),
    "name that is no text": entry(f"{T}/a\udcff", form=tarfile.GNU_FORMAT),
    "part of a name that is too long": entry(f"{T}/{'a' * 300}"),
    "path that is too long": entry(f"{T}/{'ab/' * 400}c"),
    "symbolic link": entry(f"{T}/a", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": entry(f"{T}/a", b"", type=tarfile.LNKTYPE, linkname=f"{T}/b"),
    "character device": entry(f"{T}/a", b"", type=tarfile.CHRTYPE),
    "block device": entry(f"{T}/a", b"", type=tarfile.BLKTYPE),
    "pipe": entry(f"{T}/a", b"", type=tarfile.FIFOTYPE),
    "sparse file": entry(f"{T}/a", b"", type=tarfile.GNUTYPE_SPARSE),
    "sparse file by its header": pax(f"{T}/a", {"GNU.sparse.size": "9999999999"}),
    "unknown kind": entry(f"{T}/a", b"", type=b"V"),
    "folder with content": entry(f"{T}/a", b"x", type=tarfile.DIRTYPE),
    "doubled name": entry(f"{T}/a") + entry(f"{T}/./a"),
    "file below a file": entry(f"{T}/a") + entry(f"{T}/a/b"),
    "file that is a folder": entry(f"{T}/a/b") + entry(f"{T}/a"),
}
DAMAGED: dict[str, bytes] = {
    "size beyond the archive": entry(f"{T}/a", b"x", size=2**40, form=tarfile.GNU_FORMAT),
    "size of an extended header": pax(f"{T}/a", {"size": "99999"}),
    "negative size": entry(f"{T}/a", b"x", size=-512, form=tarfile.GNU_FORMAT),
    "huge extended header": huge_header(),
    "size for all members": pax(f"{T}/a", {"size": "0"}, is_global=True),
    "wrong checksum": wrong_checksum(),
    "no tar": b"\x1f\x8b" * 512,
    "extended header without a member": pax(f"{T}/a", {"comment": "x"})[:1024],
    "content after the end": entry(f"{T}/a") + END + entry(f"{T}/b"),
    "many long names": entry("././@LongLink", b"a", type=b"L") * 500 + entry(f"{T}/a"),
    "no files": entry(f"{T}/a", b"", type=tarfile.DIRTYPE),
}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(data, f"data.{kind}", id=name)
        for kind, table in (("unsafe", HOSTILE), ("broken", DAMAGED))
        for name, data in table.items()
    ],
)
def test_hostile_archive_is_an_error(data: bytes, code: str) -> None:
    with pytest.raises(DataError) as caught:
        read(data + END)
    assert caught.value.code == code


@pytest.mark.parametrize("cut", [1, 300, 512, 700, 1000, len(GOOD) - 1, len(GOOD)])
def test_archive_that_ends_early_is_an_error(cut: int) -> None:
    with pytest.raises(DataError) as caught:
        read((GOOD + END)[:cut])
    assert caught.value.code == "data.broken"


def test_number_of_members_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlatool.media.archive._MAX_MEMBERS", 2)
    with pytest.raises(DataError, match="more than 2"):
        read(b"".join(entry(f"{T}/{index}") for index in range(3)) + END)


def test_content_that_ends_early_is_an_error() -> None:
    data = entry(f"{T}/a", b"1" * 9000)
    reader = ArchiveReader("x.tar", T, len(data))
    _, content = next(reader.members(io.BytesIO(data[:4000]), 0))
    with pytest.raises(DataError, match="ends early, in 'a'"):
        b"".join(content)
