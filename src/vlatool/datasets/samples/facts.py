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

from vlatool.datasets.jsonl.layout import DATA_NAME, Kind, Window, read_windows
from vlatool.datasets.samples.episode import KINDS, Conversation, TokenSample, segment
from vlatool.datasets.samples.layout import SamplesFolder
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.jobs.ownership import data_files
from vlatool.media.images import file_view
from vlatool.media.lines import LINES_SUFFIX
from vlatool.report.charts import FieldValues, field_charts
from vlatool.report.episodes import FrameView, camera_strips
from vlatool.report.facts import (
    Axis,
    Decoder,
    Fold,
    PageRequest,
    Part,
    Problems,
    Report,
    Section,
    Table,
    Tags,
    Text,
    Tiles,
    Titled,
    branch,
    card,
    evenly_spaced,
    histogram,
    listed,
    notes,
    under_heading,
)
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


def inspect(location: Path) -> Report:
    """Reads the manifest, and the sizes of the files."""
    folder = SamplesFolder.open(location)
    findings = Problems()
    facts = _read_facts(folder)
    if not folder.images_root.is_dir():
        message = f"the images of the samples are missing: {folder.images_root} is not a folder"
        findings.append({"code": "data.missing", "message": message})
    ids = facts.action_ids
    action_ids = ""
    if {"min", "max", "mean"} <= ids.keys():
        action_ids = f"{ids['min']:g} to {ids['max']:g}, {ids['mean']:g} on average"
    samples = counted(facts.samples, "sample")
    return Report(
        kind="samples",
        headline=f"{samples} of {counted(facts.episodes, 'episode')}, {facts.layout}",
        facts=asdict(facts),
        summary={
            "samples": ", ".join(f"{count} {kind}" for kind, count in facts.kinds.items()),
            "window": ", ".join(f"{count} {name}" for name, count in facts.shape.items()),
            "action ids": action_ids,
            "images": facts.pictures,
            "on disk": f"{size_text(facts.bytes)} in {counted(facts.files, 'file')}",
            **facts.origin,
        },
        tables=[Table(("task", "samples"), [*facts.tasks.items()], "Tasks")],
        findings=findings,
        page=partial(_page, folder, facts, findings),
    )


def _read_facts(folder: SamplesFolder) -> SamplesFacts:
    document = folder.document
    ids = dict(branch(document, "action_ids"))
    counts: Any = ids.pop("counts", {})
    return SamplesFacts(
        layout=str(document.get("layout")),
        samples=len(folder),
        episodes=int(document.get("episodes") or 0),
        kinds=_numbers(branch(document, "kinds")),
        shape=_numbers(branch(document, "shape")),
        tasks=_numbers(branch(document, "tasks")),
        action_ids={key: value for key, value in ids.items() if isinstance(value, int | float)},
        id_counts=_numbers(counts if isinstance(counts, Mapping) else {}),
        origin=_origin(document),
        files=len(folder.files),
        bytes=sum(file.bytes for file in data_files(folder.path)),
        pictures=folder.prefix,
    )


def _origin(document: Mapping[str, Any]) -> dict[str, str]:
    codes = branch(document, "codes").get("tokenizer_digest") or "unknown"
    action_ids = branch(document, "fast").get("digest") or "unknown"
    profile = branch(document, "profile")
    raw = ", ".join(map(str, profile.get("raw") or ())) or "none"
    made_by = f"codes {str(codes)[:_DIGEST]}, action ids {str(action_ids)[:_DIGEST]}"
    return {
        "made by": made_by,  # a key of the JSON report
        "profile": f"{profile.get('name', 'unknown')}, unchanged dimensions: {raw}",
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, int]:
    return {str(key): value for key, value in values.items() if isinstance(value, int)}


def _page(
    folder: SamplesFolder, facts: SamplesFacts, findings: Problems, request: PageRequest
) -> list[Section]:
    names = [str(name) for name in listed(branch(folder.document, "profile"), "dimensions")]
    decode = None
    if request.open_decoder is not None:
        decode = request.open_decoder(folder.path, branch(folder.document, "codes"))
    samples: list[Section] = []
    for number in _shown(folder, facts, request.samples):
        make_card = partial(_sample_card, folder, number, names, decode)
        samples.append(card(f"Sample {number}", make_card))
    title = f"Samples ({len(samples)} of {len(folder)})"
    return [*_overview(facts, findings), *under_heading(title, samples)]


def _shown(folder: SamplesFolder, facts: SamplesFacts, count: int) -> list[int]:
    """Evenly spaced samples, of each kind in turn where one is near."""
    kinds = [kind for kind in KINDS if facts.kinds.get(kind)]
    shown: set[int] = set()
    for order, index in enumerate(evenly_spaced(len(folder), count)):
        kind = kinds[order % len(kinds)] if kinds else ""
        near = range(max(index - _NEAR, 0), min(index + _NEAR, len(folder)))
        with suppress(DataError):
            for number in (index, *near):
                if folder.sample(number).conversation.kind == kind:
                    index = number
                    break
        shown.add(index)
    return sorted(shown)


def _overview(facts: SamplesFacts, findings: Problems) -> list[Section]:
    ids = facts.action_ids
    info = {"samples": f"{facts.samples:,}"}
    for kind, count in facts.kinds.items():
        info[f"of kind {kind}"] = f"{count:,}"
    info["episodes"] = f"{facts.episodes:,}"
    info["layout"] = facts.layout
    info["action ids per window"] = f"{ids['mean']:.1f}" if "mean" in ids else ""
    info["on disk"] = size_text(facts.bytes)
    lengths: list[int] = []
    for number, count in facts.id_counts.items():
        lengths += [int(number)] * count
    return [
        Section("Overview", [Tiles(info), *notes(findings), Tags({**facts.origin, **facts.shape})]),
        Section("Action ids", [histogram(lengths, "action ids of a window", "window")]),
        Section("Tasks", [Table(("task", "samples"), [*facts.tasks.items()])]),
    ]


def _sample_card(
    folder: SamplesFolder, number: int, names: Sequence[str], decode: Decoder | None
) -> Section:
    """Card of a sample, with its window if there is one; without `decode`, no reconstructions."""
    sample = folder.sample(number)
    root = folder.images_root
    talk = sample.conversation
    images = [image.removeprefix(folder.prefix) for image in sample.images]
    episode = PurePosixPath(images[-1]).parent.name if images else ""
    window = _window(root / DATA_NAME / f"{episode}{LINES_SUFFIX}", sample, images)
    past = _strips(root, images)
    future = _strips(root, window.future if window else ())
    first = 1 - max(map(len, past.values()), default=0)
    info = {
        "kind": f"{talk.kind} ({_KINDS[talk.kind]})",
        "task": talk.task,
        "action ids": len(talk.action_ids),
        "future images": len(talk.codes),
    }
    parts: list[Part] = [
        Tags(info),
        Titled("Text", _text(talk)),
        Titled("Past images", camera_strips(past, first)),
        Titled("Actions", _actions(window, names)),
        Titled("Future images", camera_strips(future, 1)),
    ]
    if decode is not None:
        shown = _reconstructions(talk.codes, list(future or past), decode)
        parts.append(Titled("Future images, reconstructed", shown))
    return Section(f"Sample {number}, {talk.kind}, {episode}", parts, is_under=True)


def _text(talk: Conversation) -> list[Part]:
    """Messages of a sample; the codes of all future images but the first are collapsed."""
    answer = talk.answer()
    end = ""
    if len(talk.codes):
        first = segment(talk.codes[0].tolist())
        length = answer.index(first) + len(first)
        end = answer[length:] if len(talk.codes) > 1 else ""
        answer = answer[:length]
    more = f"{counted(len(talk.codes) - 1, 'more image')} and the end of the answer"
    return [
        Text("user", "tag"),
        Text(talk.question(), "verbatim"),
        Text("assistant", "tag"),
        Text(answer, "verbatim"),
        Fold(more, [Text(end, "verbatim")]),
    ]


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


def _actions(window: Window | None, names: Sequence[str]) -> list[Part]:
    """Charts of the actions of the window, or a note if the windows are missing."""
    if window is None:
        return [Text("The folder of windows is missing, so the actions cannot be shown.", "note")]
    actions = np.array(window.actions)
    steps, width = actions.shape
    known = names if len(names) == width else [str(number) for number in range(width)]
    axis = Axis(-0.5, steps - 0.5, "steps", whole=True, anchor=0.0)
    field = FieldValues("actions, not normalized", actions, known)
    return field_charts(axis, np.arange(steps), [field], has_dots=True)


def _reconstructions(codes: Array, cameras: Sequence[str], decode: Decoder) -> list[Part]:
    """Images decoded from codes [Q, K], in a row per camera; codes alternate between cameras."""
    if not len(codes):
        return [Text("This kind of sample has no codes.", "note")]
    images = decode(codes.astype(np.int64))
    rows: dict[str, list[FrameView]] = {}
    for index, camera in enumerate(cameras):
        decoded = images[index :: len(cameras)]
        rows[camera] = [FrameView(Image.fromarray(image)) for image in decoded]
    return camera_strips(rows, 1)
