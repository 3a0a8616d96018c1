"""Report of a curation, and its page: what is left out and why, with images of the worst."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vlatool.events import counted
from vlatool.media.images import file_view
from vlatool.recordings.curation.layout import (
    FIGURES,
    STRIPS,
    CuratedEpisode,
    Curation,
    badness,
    read_curation,
)
from vlatool.report.facts import Figure, Report, Section, Table, Text
from vlatool.report.text import number_text

_WORST = 4  # episodes that the page shows per figure
_STRIP = 2000  # largest width of the images of an episode, in pixels
_HEADER = ("figure", "median", "5 %", "95 %", "worst", "episode", "left out by it")


def inspect(location: Path) -> Report:
    """Facts of a curation: episodes, those that are left out with reasons, and its figures."""
    curation = read_curation(location)
    selected = len(curation.selected())
    counts = {"episodes": len(curation.episodes), "selected": selected}
    facts = {"rules": curation.rules, "absent": dict(curation.absent)}
    reasons_by_id = {episode.id: list(episode.reasons) for episode in left_out(curation)}
    return Report(
        kind="curation",
        headline=f"curation of {counted(len(curation.episodes), 'episode')}, {selected} kept",
        facts={**counts, **facts, "left_out": reasons_by_id},
        summary={**counts, "rules": len(curation.rules or ())},
        tables=[Table(_HEADER, [*figure_rows(curation)], "Figures")],
        page=lambda _: sections(location, curation),
    )


def left_out(curation: Curation) -> Sequence[CuratedEpisode]:
    return [episode for episode in curation.episodes if episode.reasons]


def reasons(curation: Curation) -> Counter[str]:
    """Figures by the number of episodes that they leave out."""
    figures: Counter[str] = Counter()
    for episode in curation.episodes:
        for reason in episode.reasons:
            figures[reason.partition(" ")[0]] += 1
    return figures


def figure_rows(curation: Curation) -> Iterator[tuple[object, ...]]:
    """Rows of the table of figures."""
    dropped = reasons(curation)
    for name in FIGURES:
        worst = _worst(curation, name)
        if worst:
            values = [episode.figures[name] for episode in worst]
            numbers = [*np.percentile(values, [50, 5, 95]).tolist(), values[0]]
            yield name, *map(number_text, numbers), worst[0].id, dropped[name]


def _worst(curation: Curation, name: str) -> list[CuratedEpisode]:
    """Episodes with a figure, the worst first."""
    known = [episode for episode in curation.episodes if name in episode.figures]
    return sorted(known, key=lambda episode: -badness(name, episode.figures[name]))


def sections(location: Path, curation: Curation) -> list[Section]:
    """Sections of its page: what is left out, and the worst episodes by each figure."""
    rows: list[tuple[object, ...]] = []
    for episode in left_out(curation):
        why = "; ".join(episode.reasons)
        strip = _figure(location, episode)
        rows.append((episode.id, episode.instruction, episode.frames, why, strip))
    total = counted(len(curation.episodes), "episode")
    about = [(name, text, curation.absent.get(name, "")) for name, text in FIGURES.items()]
    table = Table(("episode", "instruction", "frames", "why", ""), rows)
    return [
        Section("Left out", [Text(f"{len(rows)} of {total}", "quiet"), table]),
        Section("Figures", [Table(_HEADER, [*figure_rows(curation)])]),
        *(_section(location, curation, name) for name in FIGURES),
        Section("Meaning", [Table(("figure", "what it is", "absent because"), about)]),
    ]


def _section(location: Path, curation: Curation, name: str) -> Section:
    """The worst episodes by a figure that differs."""
    worst = _worst(curation, name)
    rows: list[tuple[object, ...]] = []
    if worst and worst[0].figures[name] != worst[-1].figures[name]:
        for episode in worst[:_WORST]:
            value = number_text(episode.figures[name])
            deviation = number_text(episode.at_length.get(name, 0.0))
            strip = _figure(location, episode)
            rows.append((episode.id, episode.instruction, value, deviation, strip))
    header = ("episode", "instruction", "value", "deviations at like length", "")
    return Section(f"Worst {name}", [Table(header, rows)], is_under=True)


def _figure(location: Path, episode: CuratedEpisode) -> Figure | str:
    """Strip of images of an episode; empty if none is stored."""
    path = location / STRIPS / f"{episode.id}.jpg"
    if not path.is_file():
        return ""
    return file_view(path).figure("", episode.id, largest=_STRIP)
