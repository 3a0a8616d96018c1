"""Report of a curation, and its page: what is left out and why, with images of the worst."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vlatool.events import counted
from vlatool.formats.curation.layout import (
    FIGURES,
    STRIPS,
    CuratedEpisode,
    Curation,
    badness,
    read_curation,
)
from vlatool.formats.media.images import file_view
from vlatool.report.facts import Figure, Report, Section, Table, Text
from vlatool.report.text import number_text

_WORST = 4  # episodes that the page shows per figure
_STRIP = 2000  # largest width of the images of an episode, in pixels
_HEADER = ("figure", "median", "5 %", "95 %", "worst", "episode", "left out by it")


def inspect(location: Path) -> Report:
    """Facts of a curation: episodes, those that are left out with reasons, and its figures."""
    curation = read_curation(location)
    counts = {"episodes": len(curation.episodes), "selected": len(curation.selected())}
    facts = {"rules": curation.rules, "absent": dict(curation.absent)}
    gone = {each.id: list(each.reasons) for each in left_out(curation)}
    return Report(
        kind="curation",
        headline=f"curation of {counted(len(curation.episodes), 'episode')}, "
        f"{len(curation.selected())} kept",
        facts={**counts, **facts, "left_out": gone},
        summary={**counts, "rules": len(curation.rules or ())},
        tables=[Table(_HEADER, [*figure_rows(curation)], "Figures")],
        page=lambda _: sections(location, curation),
    )


def left_out(curation: Curation) -> Sequence[CuratedEpisode]:
    return [episode for episode in curation.episodes if episode.reasons]


def reasons(curation: Curation) -> Counter[str]:
    """Figures by the number of episodes that they leave out."""
    return Counter(
        reason.partition(" ")[0] for each in curation.episodes for reason in each.reasons
    )


def figure_rows(curation: Curation) -> Iterator[tuple[object, ...]]:
    """Rows of the table of figures."""
    dropped = reasons(curation)
    for name in FIGURES:
        worst = _worst(curation, name)
        if worst:
            values = [each.figures[name] for each in worst]
            shown = (*np.percentile(values, [50, 5, 95]).tolist(), values[0])
            yield name, *map(number_text, shown), worst[0].id, dropped[name]


def _worst(curation: Curation, name: str) -> list[CuratedEpisode]:
    """Episodes with a figure, the worst first."""
    known = [episode for episode in curation.episodes if name in episode.figures]
    return sorted(known, key=lambda each: -badness(name, each.figures[name]))


def sections(location: Path, curation: Curation) -> list[Section]:
    """Sections of its page: what is left out, and the worst episodes by each figure."""
    gone: list[tuple[object, ...]] = []
    for each in left_out(curation):
        why = "; ".join(each.reasons)
        gone.append((each.id, each.instruction, each.frames, why, _figure(location, each)))
    total = counted(len(curation.episodes), "episode")
    about = [(name, text, curation.absent.get(name, "")) for name, text in FIGURES.items()]
    table = Table(("episode", "instruction", "frames", "why", ""), gone)
    return [
        Section("Left out", [Text(f"{len(gone)} of {total}", "quiet"), table]),
        Section("Figures", [Table(_HEADER, [*figure_rows(curation)])]),
        *(_section(location, curation, name) for name in FIGURES),
        Section("Meaning", [Table(("figure", "what it is", "absent because"), about)]),
    ]


def _section(location: Path, curation: Curation, name: str) -> Section:
    """The worst episodes by a figure that differs."""
    worst = _worst(curation, name)
    is_equal = not worst or worst[0].figures[name] == worst[-1].figures[name]
    rows: list[tuple[object, ...]] = []
    for each in [] if is_equal else worst[:_WORST]:
        value = number_text(each.figures.get(name, 0.0))
        deviation = number_text(each.at_length.get(name, 0.0))
        rows.append((each.id, each.instruction, value, deviation, _figure(location, each)))
    header = ("episode", "instruction", "value", "deviations at like length", "")
    return Section(f"Worst {name}", [Table(header, rows)], is_under=True)


def _figure(location: Path, episode: CuratedEpisode) -> Figure | str:
    """Strip of images of an episode; empty if none is stored."""
    path = location / STRIPS / f"{episode.id}.jpg"
    return file_view(path).figure("", episode.id, largest=_STRIP) if path.is_file() else ""
