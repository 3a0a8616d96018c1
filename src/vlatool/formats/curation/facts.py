"""Report of a curation, and its page: what is left out and why, with images of the worst."""

import base64
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
from vlatool.pages import layout
from vlatool.pages.layout import Html, escape
from vlatool.pages.report import Report, ReportPage
from vlatool.pages.text import number_text, text_table
from vlatool.storage.byte_ranges import read_file

_WORST = 4  # episodes that the page shows per figure
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
        tables=[text_table("Figures", _HEADER, [*figure_rows(curation)])],
        page=lambda _: ReportPage(sections(location, curation)),
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


def sections(location: Path, curation: Curation) -> list[layout.Section]:
    """Sections of its page: what is left out, and the worst episodes by each figure."""
    gone = [
        (each.id, each.instruction, each.frames, "; ".join(each.reasons), _image(location, each))
        for each in left_out(curation)
    ]
    head = ("episode", "instruction", "frames", "why", "")
    total = counted(len(curation.episodes), "episode")
    about = [(name, text, curation.absent.get(name, "")) for name, text in FIGURES.items()]
    meaning = layout.table(("figure", "what it is", "absent because"), about)
    return [
        layout.Section(
            "Left out",
            f'<p class="quiet">{len(gone)} of {total}</p>' + layout.table(head, gone, numbers=(2,)),
        ),
        layout.Section(
            "Figures", layout.table(_HEADER, figure_rows(curation), numbers=range(1, 5))
        ),
        *(_section(location, curation, name) for name in FIGURES),
        layout.Section("Meaning", meaning),
    ]


def _section(location: Path, curation: Curation, name: str) -> layout.Section:
    """The worst episodes by a figure that differs."""
    worst = _worst(curation, name)
    is_equal = not worst or worst[0].figures[name] == worst[-1].figures[name]
    rows = [
        (
            *(each.id, each.instruction),
            *(number_text(values.get(name, 0.0)) for values in (each.figures, each.at_length)),
            _image(location, each),
        )
        for each in ([] if is_equal else worst[:_WORST])
    ]
    header = ("episode", "instruction", "value", "deviations at like length", "")
    table = layout.table(header, rows, numbers=(2, 3))
    return layout.Section(f"Worst {name}", table, is_under=True)


def _image(location: Path, episode: CuratedEpisode) -> Html:
    path = location / STRIPS / f"{episode.id}.jpg"
    if not path.is_file():
        return Html("")
    data = base64.b64encode(read_file(path)).decode()
    return Html(f'<img alt="{escape(episode.id)}" src="data:image/jpeg;base64,{data}">')
