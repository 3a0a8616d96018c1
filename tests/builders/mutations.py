"""Damage of files as by disks, networks and people."""

import random
import re
from pathlib import Path

_BARE = re.compile(rb"(?<![\w.])-?\d+(?:\.\d+)?|\btrue\b|\bfalse\b|\bnull\b|\"[^\"\n]*\"")
_HOSTILE = (
    b"-1",
    b"0",
    b"0.5",
    b"1e999",
    b"NaN",
    b"18446744073709551616",
    b"9" * 5_000,
    b"null",
    b"true",
    b'""',
    b'"../../../etc/passwd"',
    b'"' + b"n" * 300 + b'"',
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'"\xff\xfe"',
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy: flipped bits, truncation, a hole, garbage, or another value in a text."""
    kinds = [_bit, _truncated, _hole, _garbage, _duplicated, _empty]
    if _is_text(data):
        kinds += [_value] * len(kinds)
    return rng.choice(kinds)(data, rng)


def mutate_file(folder: Path, rng: random.Random) -> Path:
    """Damages one file below a folder; all kinds of files are equally likely."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        kinds.setdefault(re.sub(r"\d+", "0", path.name), []).append(path)
    path = rng.choice(kinds[rng.choice(sorted(kinds))])
    path.write_bytes(mutate(path.read_bytes(), rng))
    return path


def _is_text(data: bytes) -> bool:
    try:
        return data[:4096].decode(errors="strict").isprintable() or b"\n" in data[:4096]
    except UnicodeDecodeError:
        return False


def _bit(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\x01"
    copy = bytearray(data)
    copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
    return bytes(copy)


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _hole(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    length = min(rng.choice((1, 16, 4096)), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def _garbage(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 8, 512))) + data[start:]


def _duplicated(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start : start + 512] + data[start:]


def _empty(_data: bytes, _rng: random.Random) -> bytes:
    return b""


def _value(data: bytes, rng: random.Random) -> bytes:
    """Replaces one number, word or string of a text."""
    matches = list(_BARE.finditer(data))
    if not matches:
        return _bit(data, rng)
    match = rng.choice(matches)
    return data[: match.start()] + rng.choice(_HOSTILE) + data[match.end() :]
