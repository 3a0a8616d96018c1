"""Members of a tar of unknown origin, from bytes that arrive in order.

Plain files and folders below one folder are accepted, each name once. Everything else that a tar
can hold (links, devices, sparse files, names that lead elsewhere) ends the reading with an error
before it has any effect. Modes, owners and times of members are not used.
"""

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from vlatool.artifacts.tar_sample import MAX_EXTENDED
from vlatool.errors import DataError
from vlatool.jobs.files import FOLDER
from vlatool.storage.uri import is_file_name

_BLOCK = tarfile.BLOCKSIZE
_BROKEN = (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError, KeyError)
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.CONTTYPE: "a contiguous file",
}
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
# Far above those of honest archives; without limits, headers fill the memory.
_MAX_HEADER_BYTES = 2**20
_MAX_MEMBERS = 2**22
_LONGEST_NAME = 1024  # bytes: with the path of the output below the 4096 of common systems
_SHOWN = 100
_NOT_GLOBAL = ("path", "linkpath", "size")  # in a global header they would change all members


@dataclass(frozen=True)
class Member:
    """File or folder of an archive."""

    name: str  # Path below the folder of the archive that is read
    start: int  # position of its content in the archive
    size: int  # size of its content in bytes
    is_folder: bool = False  # True for a folder

    @property
    def stop(self) -> int:
        """Position after its content."""
        return self.start + self.size


@dataclass(frozen=True)
class Piece:
    """Bytes of a member, in order; `is_last` with its last ones."""

    member: Member
    data: memoryview
    is_last: bool


class ArchiveReader:
    """Reader of a tar; its state can be saved between two calls of `feed`.

    `prefix`: folder of the archive that is read, such as `tasks/NAME`; nothing else may be there;
    `size`: size of the archive in bytes.
    """

    def __init__(self, where: object, prefix: str, size: int) -> None:
        self._where = where
        self._prefix = tuple(prefix.split("/"))
        self._size = size
        self.position = 0  # number of bytes read
        self.member: Member | None = None  # member in which the position is; None between members
        self.files: set[str] = set()  # names of the files so far
        # names of the folders so far, also of those that only occur in names of files
        self.folders: set[str] = set()
        self._head = bytearray()  # header of the next member, with the extended ones before it
        self._is_ended = False

    def state(self) -> dict[str, Any]:
        """Position in the archive, JSON; names so far are not part of it."""
        return {
            "position": self.position,
            "member": None if self.member is None else asdict(self.member),
            "head": self._head.hex(),
            "is_ended": self._is_ended,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        member = state["member"]
        self.position = int(state["position"])
        self.member = None if member is None else Member(**member)
        self._head = bytearray.fromhex(state["head"])
        self._is_ended = bool(state["is_ended"])

    def feed(self, data: memoryview) -> Iterator[Piece]:
        """Yields what the next bytes hold."""
        while data:
            if self._is_ended:
                if bytes(data).strip(b"\0"):
                    self._break("has content after its end marker")
                count = len(data)
            elif self.member is not None:
                count = min(len(data), self.member.stop - self.position)
                is_last = self.position + count == self.member.stop
                yield Piece(self.member, data[:count], is_last)
                if is_last:
                    self.member = None
            elif not self._head and self.position % _BLOCK:  # padding of the last member
                count = min(len(data), -self.position % _BLOCK)
            else:
                count = min(len(data), _BLOCK - len(self._head) % _BLOCK)
                self._head += data[:count]
            self.position += count
            data = data[count:]
            if self._head and len(self._head) % _BLOCK == 0 and self.member is None:
                yield from self._open_next()

    def finish(self) -> None:
        """Checks that the archive is complete."""
        if not self._is_ended:
            self._break("ends early: the end marker is missing")
        if not self.files:
            self._break("holds no files")

    def _open_next(self) -> Iterator[Piece]:
        """Adopts the next member once its header is complete; yields it if it has no content."""
        try:
            info = self._next_header()
        except _BROKEN as error:
            self._break(
                f"is damaged, or no tar, at byte {self.position - len(self._head)}: {error}"
            )
        if info is None:
            return
        self._head.clear()
        member = self._accepted(info)
        if member is None:
            return
        if member.is_folder or member.size == 0:
            yield Piece(member, memoryview(b""), is_last=True)
        else:
            self.member = member

    def _next_header(self) -> tarfile.TarInfo | None:
        """Header of a member with the extended ones before it; None until it is complete."""
        at = 0
        for _ in range(MAX_EXTENDED + 1):
            block = bytes(self._head[at : at + _BLOCK])
            if not any(block) and block:
                self._is_ended = at == 0
                self._head.clear()
                if self._is_ended:
                    return None
                raise ValueError("an extended header without a member")
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.type not in _EXTENDED:
                break
            if not 0 <= header.size <= _MAX_HEADER_BYTES - at:
                raise ValueError(f"a header of {header.size} bytes")
            at += _BLOCK + header.size + -header.size % _BLOCK
            if at >= len(self._head):
                return None
        else:
            raise ValueError(f"more than {MAX_EXTENDED} extended headers of a member")
        with tarfile.open(fileobj=io.BytesIO(self._head), mode="r:", encoding="utf-8") as tar:
            info = tar.next()
            names = [key for key in tar.pax_headers if key in _NOT_GLOBAL or "sparse" in key]
        if info is None or names:
            raise ValueError(f"a global header that sets {', '.join(names)}")
        return info

    def _accepted(self, info: tarfile.TarInfo) -> Member | None:
        """Member of a header; None for the folders that contain all others."""
        self._check_kind(info)
        parts = self._parts(info)
        below = parts[len(self._prefix) :]
        if parts != (*self._prefix, *below):
            if info.isdir() and parts == self._prefix[: len(parts)]:
                return None
            self._refuse(info, f"is outside of {'/'.join(self._prefix)}/")
        if not below:
            return None if info.isdir() else self._refuse(info, "is a file instead of a folder")
        name = "/".join(below)
        # Remembers a name and the folders that it needs.
        names = name.split("/")
        above = {"/".join(names[:count]) for count in range(1, len(names))}
        if name in self.files or (name in self.folders and not info.isdir()):
            self._refuse(info, "occurs twice")
        if above & self.files:
            self._refuse(info, "is below a file")
        self.folders |= above
        (self.folders if info.isdir() else self.files).add(name)
        if info.size < 0 or self.position + info.size > self._size:
            self._break(
                f"ends early, or claims a wrong size: {self._shown(info)} has {info.size:,} bytes"
            )
        return Member(name, self.position, info.size, info.isdir())

    def _check_kind(self, info: tarfile.TarInfo) -> None:
        if info.issparse() or any("sparse" in key for key in info.pax_headers):
            self._refuse(info, "is a sparse file")
        if info.type not in (*_PLAIN, tarfile.DIRTYPE):
            self._refuse(info, f"is {_KINDS.get(info.type, 'of an unknown kind')}")
        if info.isdir() and info.size:
            self._refuse(info, "is a folder with content")
        if len(self.files) + len(self.folders) >= _MAX_MEMBERS:
            self._refuse(info, f"is one of more than {_MAX_MEMBERS:,}")

    def _parts(self, info: tarfile.TarInfo) -> tuple[str, ...]:
        if info.name.startswith("/"):
            self._refuse(info, "has an absolute name")
        parts = tuple(part for part in info.name.split("/") if part not in ("", "."))
        if ".." in parts:
            self._refuse(info, "has a name that leads out of the folder")
        if FOLDER in parts:
            self._refuse(info, f"would be part of the records in {FOLDER}/")
        is_text = info.name.isprintable() and all(map(is_file_name, parts))
        if not is_text or len(info.name.encode(errors="replace")) > _LONGEST_NAME:
            self._refuse(info, "has a name that cannot be a file name here")
        return parts

    def _shown(self, info: tarfile.TarInfo) -> str:
        name = ascii(info.name)
        return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."

    def _refuse(self, info: tarfile.TarInfo, reason: str) -> NoReturn:
        raise DataError.at(
            self._where,
            f"the member {self._shown(info)} {reason}",
            hint="do not use this archive, unless you know why it holds that; `vlatool download"
            " LOCATION` downloads it as a file",
            code="data.unsafe_archive",
        )

    def _break(self, reason: str) -> NoReturn:
        raise DataError.at(
            self._where,
            reason,
            hint="the archive there is damaged or not complete; ask its publisher",
            code="data.broken_archive",
        )
