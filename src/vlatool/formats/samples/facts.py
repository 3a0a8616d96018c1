"""Report of samples for a language model, with a page of some samples.

Legend of shapes: H actions, D dimensions of an action, Q future images, K codes of an image.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.formats.lines import LINES_SUFFIX
from vlatool.formats.media.images import file_view
from vlatool.formats.samples.episode import KINDS, Conversation, TokenSample, segment
from vlatool.formats.samples.layout import SamplesFolder
from vlatool.formats.windows.layout import DATA_NAME, Kind, Window, read_windows
from vlatool.jobs.ownership import data_files
from vlatool.pages import layout as pages_layout
from vlatool.pages import report
from vlatool.pages.charts import Axis, FieldValues, field_charts
from vlatool.pages.images import FrameView, camera_strips
from vlatool.pages.plots import histogram
from vlatool.pages.text import text_table
from vlatool.storage.tree import size_text

_FRAME = re.compile(r"_frame_\d+$")
_DIGEST = 12
# Samples before and after a position among which one of a kind is looked for.
_NEAR = 32
_KINDS: Mapping[Kind, str] = {
    "vla": "vision-language-action: asks for the actions",
    "wm": "world model: asks for the state after the actions",
}


@dataclass(frozen=True)
class SamplesFacts:
    layout: str  # `jsonl` or `packed`
    samples: int
    episodes: int
    kinds: Mapping[str, int]
    # Numbers of past and future images, of actions and of their dimensions in a window.
    shape: Mapping[str, int]
    tasks: Mapping[str, int]  # map from instruction to number of samples
    action_ids: Mapping[str, float]  # minimum, mean and maximum number of action ids of a window
    # Map from number of action ids to number of windows that have that many.
    id_counts: Mapping[str, int]
    # Tokenizers of codes and action ids, by digest, and normalization of actions.
    origin: Mapping[str, str]
    files: int
    bytes: int
    pictures: str


def inspect(location: Path) -> report.Report:
    """Reads the manifest, and the sizes of the files."""
    folder = SamplesFolder.open(location)
    findings = report.Problems()
    facts = _read_facts(folder)
    if not folder.images_root.is_dir():
        message = f"the images of the samples are missing: {folder.images_root} is not a folder"
        findings.append({"code": "data.missing", "message": message})
    ids = facts.action_ids
    return report.Report(
        kind="samples",
        headline=f"{counted(facts.samples, 'sample')} of {counted(facts.episodes, 'episode')}, "
        f"{facts.layout}",
        facts=asdict(facts),
        summary={
            "samples": ", ".join(f"{count} {kind}" for kind, count in facts.kinds.items()),
            "window": ", ".join(f"{count} {name}" for name, count in facts.shape.items()),
            "action ids": f"{ids['min']:g} to {ids['max']:g}, {ids['mean']:g} on average"
            if {"min", "max", "mean"} <= ids.keys()
            else "",
            "images": facts.pictures,
            "on disk": f"{size_text(facts.bytes)} in {counted(facts.files, 'file')}",
            **facts.origin,
        },
        tables=[text_table("Tasks", ("task", "samples"), facts.tasks.items())],
        findings=findings,
        page=partial(_page, folder, facts, findings),
    )


def _read_facts(folder: SamplesFolder) -> SamplesFacts:
    document = folder.document
    ids = dict(report.branch(document, "action_ids"))
    counts: Any = ids.pop("counts", {})
    return SamplesFacts(
        layout=str(document.get("layout")),
        samples=len(folder),
        episodes=int(document.get("episodes") or 0),
        kinds=_numbers(report.branch(document, "kinds")),
        shape=_numbers(report.branch(document, "shape")),
        tasks=_numbers(report.branch(document, "tasks")),
        action_ids={key: value for key, value in ids.items() if isinstance(value, int | float)},
        id_counts=_numbers(counts if isinstance(counts, Mapping) else {}),
        origin=_origin(document),
        files=len(folder.files),
        bytes=sum(file.bytes for file in data_files(folder.path)),
        pictures=folder.prefix,
    )


def _origin(document: Mapping[str, Any]) -> dict[str, str]:
    codes, fast, profile = (report.branch(document, key) for key in ("codes", "fast", "profile"))
    raw = ", ".join(map(str, profile.get("raw") or ())) or "none"
    digests = (
        f"{label} {str(tree.get(key) or 'unknown')[:_DIGEST]}"
        for label, tree, key in (
            ("codes", codes, "tokenizer_digest"),
            ("action ids", fast, "digest"),
        )
    )
    return {
        "made by": ", ".join(digests),  # a key of the JSON report
        "profile": f"{profile.get('name', 'unknown')}, unchanged dimensions: {raw}",
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, int]:
    return {str(key): value for key, value in values.items() if isinstance(value, int)}


def _page(
    folder: SamplesFolder,
    facts: SamplesFacts,
    findings: report.Problems,
    request: report.PageRequest,
) -> report.ReportPage:
    names = [
        str(name) for name in report.listed(report.branch(folder.document, "profile"), "dimensions")
    ]
    decode = None
    if request.open_decoder is not None:
        decode = request.open_decoder(folder.path, report.branch(folder.document, "codes"))
    samples = [
        pages_layout.card(f"Sample {index}", partial(_sample_card, folder, index, names, decode))
        for index in _shown(folder, facts, request.samples)
    ]
    title = f"Samples ({len(samples)} of {len(folder)})"
    header = pages_layout.Section(title, '<p class="quiet">evenly spaced</p>', is_card=False)
    return report.ReportPage([*_overview(facts, findings), header, *samples])


def _shown(folder: SamplesFolder, facts: SamplesFacts, count: int) -> list[int]:
    """Evenly spaced samples, of each kind in turn where one is near."""
    kinds = [kind for kind in KINDS if facts.kinds.get(kind)]
    shown: list[int] = []
    for order, index in enumerate(pages_layout.evenly_spaced(len(folder), count)):
        near = [index, *range(max(index - _NEAR, 0), min(index + _NEAR, len(folder)))]
        kind_shown = kinds[order % len(kinds)] if kinds else ""
        with suppress(DataError):
            index = next((n for n in near if _kind(folder, n) == kind_shown), index)
        shown.append(index)
    return sorted({*shown})


def _kind(folder: SamplesFolder, number: int) -> str:
    return folder.sample(number).conversation.kind


def _overview(facts: SamplesFacts, findings: report.Problems) -> list[pages_layout.Section]:
    ids = facts.action_ids
    info = {
        "samples": f"{facts.samples:,}",
        **{f"of kind {kind}": f"{count:,}" for kind, count in facts.kinds.items()},
        "episodes": f"{facts.episodes:,}",
        "layout": facts.layout,
        "action ids per window": f"{ids['mean']:.1f}" if "mean" in ids else "",
        "on disk": size_text(facts.bytes),
    }
    shown = (
        pages_layout.tiles(info)
        + report.finding_notes(findings)
        + pages_layout.tags({**facts.origin, **facts.shape})
    )
    lengths = [int(n) for n, count in facts.id_counts.items() for _ in range(count)]
    return [
        pages_layout.Section("Overview", shown),
        pages_layout.Section(
            "Action ids", histogram(lengths, "action ids of a window", counted_name="window")
        ),
        pages_layout.Section(
            "Tasks", pages_layout.table(("task", "samples"), facts.tasks.items(), numbers=(1,))
        ),
    ]


def _sample_card(
    folder: SamplesFolder, number: int, names: Sequence[str], decode: report.Decoder | None
) -> pages_layout.Section:
    """Card of a sample, with its window if there is one; without `decode`, no reconstructions."""
    sample = folder.sample(number)
    root = folder.images_root
    talk = sample.conversation
    images = [image.removeprefix(folder.prefix) for image in sample.images]
    episode = PurePosixPath(images[-1]).parent.name if images else ""
    window = _window(root / DATA_NAME / f"{episode}{LINES_SUFFIX}", sample, images)
    past = _strips(root, images)
    future = _strips(root, window.future if window else ())
    info = {
        "kind": f"{talk.kind} ({_KINDS[talk.kind]})",
        "task": talk.task,
        "action ids": len(talk.action_ids),
        "future images": len(talk.codes),
    }
    body = (
        pages_layout.tags(info)
        + pages_layout.heading("Text", _text(talk))
        + pages_layout.heading(
            "Past images", camera_strips(past, 1 - max(map(len, past.values()), default=0))
        )
        + pages_layout.heading("Actions", _actions(window, names))
        + pages_layout.heading("Future images", camera_strips(future, 1))
    )
    if decode is not None:
        shown = _reconstructions(talk.codes, list(future or past), decode)
        body += pages_layout.heading("Future images, reconstructed", shown)
    return pages_layout.Section(f"Sample {number}, {talk.kind}, {episode}", body, is_under=True)


def _text(talk: Conversation) -> str:
    """Messages of a sample; the codes of all future images but the first are collapsed."""
    answer = talk.answer()
    end = ""
    if len(talk.codes):
        first = answer.index(segment(talk.codes[0].tolist())) + len(segment(talk.codes[0].tolist()))
        answer, end = answer[:first], answer[first:]
    more = f"{counted(len(talk.codes) - 1, 'more image')} and the end of the answer"
    return (
        f'<span class="tag">user</span>{pages_layout.text_block(talk.question())}'
        f'<span class="tag">assistant</span>{pages_layout.text_block(answer)}'
        + (pages_layout.details(more, pages_layout.text_block(end)) if len(talk.codes) > 1 else "")
    )


def _strips(root: Path, names: Iterable[str]) -> dict[str, list[FrameView]]:
    """Map from camera to its images; names of one camera differ only in the number of the frame."""
    strips: dict[str, list[FrameView]] = {}
    known: dict[str, FrameView] = {}
    for name in names:
        path = PurePosixPath(name)
        camera = _FRAME.sub("", path.stem).removesuffix(f"_{path.parent.name}")
        if name not in known:
            known[name] = file_view(root / name)
        strips.setdefault(camera, []).append(known[name])
    return strips


def _window(path: Path, sample: TokenSample, images: list[str]) -> Window | None:
    """Window in a file that a sample was made from; None if it is missing."""
    with suppress(DataError):
        for window in read_windows(path):
            if (window.kind, [*window.images]) == (sample.conversation.kind, images):
                return window
    return None


def _actions(window: Window | None, names: Sequence[str]) -> str:
    """Chart of the actions of the window, or a note if the windows are missing."""
    if window is None:
        return pages_layout.note(
            "The folder of windows is missing, so the actions cannot be shown."
        )
    actions = np.array(window.actions)
    steps, width = actions.shape
    known = names if len(names) == width else [str(number) for number in range(width)]
    axis = Axis(-0.5, steps - 0.5, "steps", whole=True, anchor=0.0)
    field = FieldValues("actions, not normalized", actions, known)
    return field_charts(axis, np.arange(steps), [field], dots=True)


def _reconstructions(codes: Array, cameras: Sequence[str], decode: report.Decoder) -> str:
    """Images decoded from codes [Q, K], in a row per camera; codes alternate between cameras."""
    if not len(codes):
        return pages_layout.note("This kind of sample has no codes.")
    images = decode(codes.astype(np.int64))
    rows = {
        camera: [FrameView(Image.fromarray(image)) for image in images[index :: len(cameras)]]
        for index, camera in enumerate(cameras)
    }
    return camera_strips(rows, 1)
