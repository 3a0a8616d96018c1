"""Spelling: American, and `image` where one might write picture."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("src", "benchmarks", "docs", "examples")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md")
)
BRITISH = re.compile(
    r"\b\w*(colour|neighbour|behaviour|licence|catalogue)\w*|\bgrey|\bcentres?\b|metres?\b"
    r"|(normal|recogn|quant|token|serial|initial|organ|optim|visual)is(e|ed|ing|ation)\b",
    re.I,
)
# Keys of files on disk, of reports and of published configurations.
KEYS = re.compile(
    r"[\"'`.]normalised\b|gripper[ _]normalised|normalisation[\"`]|nothing_to_normalise"
    r"|codes_per_pictures?|pictures?_\w+|mean_picture_psnr|\bpictures?\b[\"'`.=:)]|[\"'`._]pictures?\b"
)


def _lines(names: list[str]) -> list[tuple[str, str]]:
    return [(name, line) for name in names for line in (ROOT / name).read_text().splitlines()]


def test_spelling_is_american() -> None:
    assert [pair for pair in _lines(FILES) if BRITISH.search(KEYS.sub("", pair[1]))] == []


def test_an_image_is_no_picture() -> None:
    lines = _lines([name for name in FILES if name.startswith("src/")])
    found = [(name, line) for name, line in lines if "picture" in KEYS.sub("", line).lower()]
    assert found == []
