"""Kinds of files that vlatool does not read, and how their owner still gets on."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vlatool.storage.tree import walk
from vlatool.storage.uri import can_list

_MOST_SEEN = 100_000  # files
_RECORD = "write the episodes with vlatool.record (docs/formats/folder.md)"
# Pattern of names, and the way to something that is read. The first row that matches counts.
UNREAD: tuple[tuple[str, str], ...] = (
    (
        r"\.(pkl|pickle|p|dill|joblib|pt|pth)",
        f"pickled objects, which can run code: load them in a script of your own and {_RECORD}",
    ),
    (
        r"\.(arrow|feather)",
        (
            "Arrow tables of the package datasets: load them with datasets.load_from_disk, write "
            "them with to_parquet, and give vlatool the folder of the parquet files"
        ),
    ),
    (
        r"\.rrd",
        f"recordings of Rerun: read them in Python with rerun.dataframe and {_RECORD}",
    ),
    (
        r"\.tar",
        (
            "tars such as those of WebDataset: unpack them, one folder per episode "
            "(docs/formats/folder.md); tars of images alone are read by `vlatool preprocess "
            "image-shards`"
        ),
    ),
    (
        r"\.(zip|7z|rar|tgz|gz|bz2|xz|zst)",
        "compressed files: unpack them, one folder per episode (docs/formats/folder.md)",
    ),
    (
        r"\.mat",
        f"files of MATLAB: read them with scipy.io.loadmat and {_RECORD}",
    ),
    (r"\.(mdb|lmdb)", f"a database of LMDB: read it with the package lmdb and {_RECORD}"),
    (r"\.svo2?", "recordings of a ZED camera: convert them to mp4 with ZED Explorer"),
)


def unread_text(name: str) -> str:
    """What a file is and what its owner can do, by its name; empty for any other."""
    for pattern, text in UNREAD:
        if re.search(rf"{pattern}$", name, re.I):
            return text
    return ""


def unread_hint(location: Path) -> str:
    """Hint for the most frequent kind of unread files at a location; empty without any."""
    counts: Counter[str] = Counter(filter(None, map(unread_text, names_below(location))))
    return f"these are {counts.most_common(1)[0][0]}" if counts else ""


def names_below(location: Path) -> Iterable[str]:
    """Names of the files at a location, of a large one the first."""
    if not can_list(location) or not location.is_dir():
        if location.is_file():
            yield location.name
        return
    seen = 0
    for _, _, names in walk(location):
        yield from names
        seen += len(names)
        if seen > _MOST_SEEN:
            return
