"""The samples of a tar shard by the headers alone, and what is wrong with how they are stored.

Source: lbm-data 8.1; the rules are those of webdataset: the first dot of a member's name parts key
and suffix, suffixes compare in lower case, members of a sample are contiguous.
"""

import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_META = re.compile(r"^__.*__$")
# What tarfile says of files that are no tar or lie about sizes.
BROKEN_TAR = (tarfile.TarError, EOFError, ValueError, OverflowError)

# Camera and image offset of a picture's suffix.
PICTURE = re.compile(r"^(?P<camera>.+)_t(?P<offset>-?\d+)\.(jpe?g|png)$")

_END_BYTES = 2 * tarfile.BLOCKSIZE


@dataclass
class TarSample:
    """One sample.

    Attributes:
        key: Its name, without dots.
        start: Where its first header begins.
        end: Where its last member, padding included, ends.
        members: Suffix, as stored, to (offset, size) of the content.
    """

    key: str
    start: int
    end: int
    members: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def content(self, data: bytes, suffix: str) -> bytes:
        """The content of a member, cut out of the sample's bytes."""
        offset, size = self.members[suffix]
        return data[offset - self.start : offset - self.start + size]


@dataclass(frozen=True)
class TarProblem:
    """A code of the family `shards`, a sentence, and the sample if it is one's."""

    code: str
    message: str
    sample: str | None = None


@dataclass
class TarScan:
    """What the headers of a tar say."""

    samples: list[TarSample] = field(default_factory=list[TarSample])
    problems: list[TarProblem] = field(default_factory=list[TarProblem])


def scan_tar(path: Path) -> TarScan:
    """Walks through all headers; contents are passed over."""
    scan = TarScan()
    end = 0
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    end = member.offset_data + _padded(member.size if member.isfile() else 0)
                    _take(scan, member, end)
            _check_end(scan, file, end)
        except BROKEN_TAR as error:
            scan.problems.append(TarProblem("broken_tar", f"is cut off or damaged: {error}"))
    _check_keys(scan)
    return scan


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix: the first dot of the file name parts them, as webdataset does."""
    folder, slash, file = name.rpartition("/")
    key, _, suffix = file.partition(".")
    return f"{folder}{slash}{key}", suffix


def _take(scan: TarScan, member: tarfile.TarInfo, end: int) -> None:
    """Adds a member to the sample that it continues or begins."""
    key, suffix = split_name(member.name)
    problem = _member_problem(member, member.name.rpartition("/")[2], suffix)
    if problem is not None:
        scan.problems.append(TarProblem(*problem, sample=key))
        if problem[0] in ("not_a_file", "meta_name"):
            return
    current = scan.samples[-1] if scan.samples else None
    names = {name.lower() for name in current.members} if current else set()
    is_again = current is not None and current.key == key and suffix == next(iter(current.members))
    if current is None or current.key != key or is_again:
        current = TarSample(key, member.offset, end)
        scan.samples.append(current)
    elif suffix.lower() in names:
        message = f"sample {key} has {suffix!r} twice"
        scan.problems.append(TarProblem("duplicate_member", message, key))
    current.members[suffix] = (member.offset_data, member.size)
    current.end = end


def _member_problem(member: tarfile.TarInfo, base: str, suffix: str) -> tuple[str, str] | None:
    name = member.name
    if not member.isfile():
        return "not_a_file", f"{name!r} is no plain file"
    if name.startswith("/") or ".." in name.split("/"):
        return "unsafe_name", f"{name!r} leads out of the folder it is unpacked in"
    if _META.match(base):
        return "meta_name", f"{name!r} is a name that loaders keep for themselves"
    for known in ("lowdim.npz", "metadata.json"):
        if suffix.lower().endswith(f".{known}"):
            return "dotted_key", f"{name!r}: the key of the sample has a dot"
    if suffix != suffix.lower():
        return "upper_case_member", f"{name!r} has capitals; loaders read it in lower case"
    return None


def _check_keys(scan: TarScan) -> None:
    """Samples that come again: their parts are scattered, or they are there twice."""
    first: dict[str, TarSample] = {}
    for sample in scan.samples:
        other = first.setdefault(sample.key, sample)
        if other is sample:
            continue
        if set(other.members) & set(sample.members):
            problem = TarProblem(
                "duplicate_sample", f"sample {sample.key} is there twice", other.key
            )
        else:
            message = f"the members of sample {sample.key} are not side by side"
            problem = TarProblem("scattered_sample", message, other.key)
        scan.problems.append(problem)


def _check_end(scan: TarScan, file: IO[bytes], end: int) -> None:
    file.seek(end)
    marker = file.read(_END_BYTES)
    if any(marker):
        scan.problems.append(TarProblem("broken_tar", f"is damaged behind byte {end}"))
    elif len(marker) < _END_BYTES:
        scan.problems.append(TarProblem("broken_tar", "is cut off: no end marker"))


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE
