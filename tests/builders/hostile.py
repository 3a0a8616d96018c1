"""Hostile values for every reader of files, seeded: the same in every run.

A value is hostile if it asks for memory, time, files or types that no honest file has.
"""

import copy
import io
import json
import pickle
import random
import re
import resource
import tarfile
import zipfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Representation of an object, which no message may hold.
OBJECT = re.compile(r"\b_?[A-Z]\w*\(\w+=|\bPosixPath\(| object at 0x")
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 7, 255, 65_535, 2**24, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, -(2**63)),
    *(10**30, 10**400, 0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "nan",
        "true",
        "null",
        "~",
        "\0",
        "\n",
        "\ud800",
        "a" * 300,
        "x" * 70_000,
    ),
    *(
        "..",
        "../..",
        "/",
        "/etc/passwd",
        "/dev/zero",
        "images/../../x",
        "a/b",
        "C:\\x",
        "%s%n",
        "{0}",
    ),
    *(
        "file:///etc/passwd",
        "s3://",
        "hf://",
        "https://",
        "${x}",
        "*",
        "**/*",
        "[",
        "a" * 250 + ".png",
    ),
)
CONTAINERS: tuple[Any, ...] = (
    *([], {}, [[]], [None], [{}], [0] * 500, ["a"] * 500, {"": 0}, {"a": {"b": []}}, {"..": 1}),
    *([1, "a", None], [65_536] * 16, {str(number): number for number in range(500)}),
)
WORDS: tuple[Any, ...] = (True, False, None)


@contextmanager
def limited_memory() -> Generator[None]:
    """Limits this process to a GiB more than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def values(seed: int, count: int) -> list[Any]:
    """Values of any type, each kind equally likely."""
    rng = random.Random(seed)
    return [rng.choice(rng.choice((NUMBERS, TEXTS, CONTAINERS, WORDS))) for _ in range(count)]


def _paths(tree: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys of every value of a tree; of a list, of its first three."""
    if prefix:
        yield prefix
    entries = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list):
        entries = list(enumerate(tree))[:3]
    for key, value in entries:
        yield from _paths(value, (*prefix, key))


def changed_trees(tree: Any, seed: int, count: int) -> Iterator[tuple[str, Any]]:
    """Name and copy of a tree with one value replaced, removed or renamed."""
    rng = random.Random(seed)
    paths = list(_paths(tree))
    for value in values(seed, count):
        path = rng.choice(paths)
        changed = copy.deepcopy(tree)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        if rng.random() < 0.1:
            del parent[path[-1]]
            name = "nothing"
        else:
            parent[path[-1]] = value
            name = f"{value!r:.30}"
        yield f"{'.'.join(map(str, path))} = {name}", changed


def json_bytes(tree: Any) -> bytes:
    """JSON of any tree; half characters as bytes that are not UTF-8."""
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")


def yaml_texts(seed: int) -> dict[str, bytes]:
    """Name and bytes of hostile YAML documents."""
    rng = random.Random(seed)
    tags = (
        "!!python/object/apply:os.system [id]",
        "!!set {a}",
        "!!omap [a: 1]",
        "!!binary =",
        "!x 1",
    )
    keys = ("? [a, b]\n: 1", "{a: 1}: 2", "1: 2\n1: 3", "<<: [1]", "<<: {a: &x [*x]}", "=: 1")
    marks = ("%YAML 9.9\n--- a", "--- 1\n--- 2", "@", "`", "\t- a", "a: |9999\n b", "&a" * 500)
    sizes = ("[" * 90 + "]" * 90, "a: " + "1" * 999, "a: " + "1:" * 400 + "1", "- " * 99 + "1")
    words = (
        "a: " + rng.choice(TEXTS[:8]) + "\n" + "b: *c",
        "a: 2001-01-01",
        "~",
        "",
        "# only",
        "0x",
    )
    texts = (*tags, *keys, *marks, *sizes, *words)
    content = {text[:20]: text.encode() for text in texts}
    halves = {"utf-16": "a: 1".encode("utf-16"), "bytes": b"\xff\xfe\0", "null": b"a: \0"}
    return {
        f"{number} {name!r}": text
        for number, (name, text) in enumerate({**content, **halves}.items())
    }


# pickles


_GLOBALS = (
    *(("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torch._utils", "_rebuild")),
    *(("collections", "Counter"), ("torch", "Tensor"), ("torch.storage", "_load_from_bytes")),
)


def _call(module: str, name: str, *arguments: Any) -> bytes:
    """Opcodes that call a function with plain values."""
    plain = b"".join(pickle.dumps(argument, 2)[2:-1] for argument in arguments)
    return f"c{module}\n{name}\n".encode() + b"(" + plain + b"tR"


def _tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int, numel: int) -> bytes:
    """Opcodes of a tensor with a stored storage of 16 floats, by arbitrary claims."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    storage += pickle.dumps(numel, 2)[2:-1] + b"tQ"
    shape = b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride))
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + hooks + b"tR"


def pickles(seed: int, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of hostile files of weights."""
    import torch  # recordings need none of it

    rng = random.Random(seed)
    sizes = (0, 1, 4, 16, 17, 2**20, 2**31, 2**62, -1)
    for number in range(16):
        dims = rng.randrange(4)
        size = tuple(rng.choice(sizes) for _ in range(dims))
        stride = tuple(rng.choice((0, 1, 4, 2**40, -1)) for _ in range(dims))
        offset, numel = rng.choice((0, 0, 1, 2**40, -1)), rng.choice((16, 16, 0, 2**40, -1))
        name = rng.choice(names)
        body = b"\x80\x02}" + pickle.dumps(name, 2)[2:-1] + _tensor(size, stride, offset, numel)
        yield f"{number} {size} {stride} {offset} {numel}", _archive(body + b"s.")
    for module, name in _GLOBALS:
        yield f"{module}.{name}", _archive(b"\x80\x02" + _call(module, name, "1") + b".")
    count = 50_000
    yield "lists", _archive(b"\x80\x02](" + b"]" * count + b"e.")
    yield "depth", _archive(b"\x80\x02" + b"(" * count + b".")
    yield "nested", _archive(b"\x80\x02" + b"]" * 5_000 + b"a" * 4_999 + b".")
    yield "compressed", _archive(b"\x80\x02](" + b"]" * 5_000_000 + b"e.", zipfile.ZIP_DEFLATED)
    yield "number", _archive(b"\x80\x02\x8b\xff\xff\xff\x7f.")
    yield "memo", _archive(b"\x80\x02j\xff\xff\xff\xff.")
    yield "text", _archive(b"\x80\x02X\xff\xff\xff\x7f.")
    yield "persistent", _archive(b"\x80\x02NQ.")
    yield "empty", _archive(b"")
    yield "cut", _archive(b"\x80\x02}")
    yield "no description", _zip({"archive/version": b"3\n"})
    yield "two descriptions", _zip({"a/data.pkl": b"\x80\x02}.", "b/data.pkl": b"\x80\x02}."})
    yield "plain", b"\x80\x02}."
    yield "old", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + b"\x80\x02}."
    for name, content in changed_trees({"a": {"b": [1, 2]}, "c": "d"}, seed, 6):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        yield f"tree {name}", buffer.getvalue()


def _archive(body: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    return _zip(
        {
            "archive/data.pkl": body,
            "archive/byteorder": b"little",
            "archive/data/0": bytes(64),
            "archive/version": b"3\n",
        },
        compression,
    )


def _zip(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# tars


def _header(
    name: bytes = b"a.json", size: bytes = b"2", kind: bytes = b"0", **other: bytes
) -> bytes:
    """Header with a valid checksum and arbitrary text in its fields."""
    fields = {
        "name": name,
        "mode": b"644",
        "uid": b"0",
        "gid": b"0",
        "size": size,
        "mtime": b"0",
        "checksum": b" " * 8,
        "kind": kind,
        "link": b"",
        "magic": b"ustar\x0000",
        "user": b"",
        "group": b"",
        "major": b"",
        "minor": b"",
        "prefix": b"",
        **other,
    }
    widths = (100, 8, 8, 8, 12, 12, 8, 1, 100, 8, 32, 32, 8, 8, 155)
    block = b"".join(
        text[:width].ljust(width, b"\0")
        for text, width in zip(fields.values(), widths, strict=True)
    ).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def tars(seed: int, members: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and content of hostile tars."""
    rng = random.Random(seed)
    end = bytes(1024)
    sizes = (b"0", b"7", b"-1", b"-1000", b"777777777777", b"99", b"", b" ", b"xyz", b"1" * 12)
    binary = (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + bytes(7) + b"\x7f\xff\xff\xff")
    binary += (b"\x80\0\0\0\x7f" + b"\xff" * 7, b"\xff" * 11 + b"\0")
    kinds = (
        b"0",
        b"\0",
        b"1",
        b"2",
        b"3",
        b"5",
        b"6",
        b"7",
        b"L",
        b"K",
        b"S",
        b"x",
        b"g",
        b"V",
        b"?",
    )
    names = (b"", b"/etc/x.json", b"../x.json", b"\xff.json", b"a" * 100, b".json", b"__a__.json")
    pax = ("size=99999999999999", "size=-1", "size=x", "path=" + "a" * 5000, "GNU.sparse.major=1")
    pax += ("GNU.sparse.map=0,9999999999", "GNU.sparse.size=99999999999", "path=\0", "hdrcharset=x")
    values: list[tuple[str, bytes]] = []
    values += [(f"size {size!r}", _header(size=size) + b"{}".ljust(512, b"\0")) for size in sizes]
    values += [(f"size {size!r}", _header(size=size)) for size in binary]
    for kind in kinds:
        for size in (b"2", b"77777777777", binary[2]):
            values.append((f"kind {kind!r} {size!r}", _header(kind=kind, size=size) + bytes(512)))
    values += [(f"name {name!r}", _header(name=name) + bytes(512)) for name in names]
    for text in pax:
        record = f"{len(text) + 5} {text}\n".encode()
        for kind in (b"x", b"g"):
            values.append(
                (
                    f"pax {kind!r} {text[:30]!r}",
                    _header(kind=kind, size=b"%o" % len(record))
                    + record.ljust(-(-len(record) // 512) * 512, b"\0")
                    + _header()
                    + bytes(512),
                )
            )
    for text in (b"99999999999999999999 a=b\n", b"0 a=b\n", b"-1 a=b\n", b"5 a\n", b"3\n", b"=\n"):
        block = _header(kind=b"x", size=b"%o" % len(text)) + text.ljust(512, b"\0")
        values.append((f"record {text!r}", block + _header() + bytes(512)))
    comment = _header(kind=b"x", size=b"13") + b"11 comment=\n".ljust(512, b"\0")
    values += [(f"{n} extended headers", comment * n + _header() + bytes(512)) for n in (9, 5000)]
    for name, block in values:
        before = b"".join(members[: rng.randrange(3)])
        yield name, before + block + rng.choice((b"", end))
    assert tarfile.BLOCKSIZE == 512
