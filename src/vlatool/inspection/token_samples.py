"""Reports of samples for a language model and of folders of codes, and the view of one sample.

Legend of shapes: H actions, D dimensions of an action.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from vlatool.artifacts.codes.folder import CodesFolder
from vlatool.artifacts.image import decode_rgb
from vlatool.artifacts.lines import LINES_SUFFIX
from vlatool.artifacts.samples.format import SamplesFolder
from vlatool.artifacts.samples.lines import TokenSample
from vlatool.artifacts.windows.format import DATA_NAME, Window
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.inspection.projection import FrameView
from vlatool.inspection.report import Findings, Problems, branch, findings_table, pairs, table
from vlatool.jobs.files import output_files
from vlatool.storage.tree import size_text
from vlatool.tokens.build import read_windows

_FRAME = re.compile(r"_frame_\d+$")
_DIGEST = 12


@dataclass(frozen=True)
class CodesReport:
    """Contents of a folder of codes; an empty string is an unknown value."""

    layout: str
    episodes: int
    pictures: int
    codes_per_picture: int
    codebook_size: int
    tokenizer: str
    tokenizer_digest: str
    precision: str
    used_codes: int
    findings: Findings = ()
    kind: str = "codes"

    def document(self) -> dict[str, Any]:
        """Report as JSON values."""
        return asdict(self)

    def headline(self) -> str:
        """Summary in one line."""
        return f"codes of {self.pictures} images in {self.episodes} episodes, {self.layout}"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        info = {
            "codes": f"{self.codes_per_picture} per image, codebook of {self.codebook_size}",
            "used": f"{self.used_codes} of the codebook, in the first episode",
            "tokenizer": self.tokenizer or "unknown",
            "digest": self.tokenizer_digest[:_DIGEST],
            "precision": self.precision,
        }
        return [pairs(info), findings_table(self.findings)]


def inspect_codes(location: Path) -> CodesReport:
    """Reads the manifest and the codes of the first episode; counts images without a manifest."""
    folder, findings = CodesFolder.open(location), Problems()
    episodes, manifest = folder.episodes(), folder.manifest
    used, first = 0, 0
    if episodes:
        codes = findings.read(folder.read, episodes[0])
        used, first = (0, 0) if codes is None else (len(np.unique(codes.codes)), len(codes.stems))
    images = manifest.pictures
    if not folder.has_manifest:
        images = sum(len(folder.stems(episode)) for episode in episodes[1:]) + first
    return CodesReport(
        layout=folder.layout,
        episodes=len(episodes),
        pictures=images,
        codes_per_picture=manifest.codes_per_picture,
        codebook_size=manifest.codebook_size,
        tokenizer=manifest.tokenizer,
        tokenizer_digest=manifest.tokenizer_digest,
        precision=manifest.precision,
        used_codes=used,
        findings=tuple(findings),
    )


@dataclass(frozen=True)
class SamplesReport:
    """Contents of a folder of samples, from its manifest.

    Attributes:
        layout: `jsonl` or `packed`.
        kinds: Map from kind to number of samples.
        shape: Numbers of past and future images, of actions and of their dimensions in a window.
        tasks: Map from instruction to number of samples.
        action_ids: Minimum, mean and maximum number of action ids of a window.
        id_counts: Map from number of action ids to number of windows that have that many.
        origin: Tokenizers of codes and action ids, by digest, and normalization of actions.
    """

    layout: str
    samples: int
    episodes: int
    kinds: Mapping[str, int]
    shape: Mapping[str, int]
    tasks: Mapping[str, int]
    action_ids: Mapping[str, float]
    id_counts: Mapping[str, int]
    origin: Mapping[str, str]
    files: int
    bytes: int
    pictures: str
    findings: Findings = field(default=())
    kind: str = "samples"

    def document(self) -> dict[str, Any]:
        """Report as JSON values."""
        return asdict(self)

    def headline(self) -> str:
        """Summary in one line."""
        return f"{self.samples} samples of {self.episodes} episodes, {self.layout}"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        ids = self.action_ids
        info = {
            "samples": ", ".join(f"{count} {kind}" for kind, count in self.kinds.items()),
            "window": ", ".join(f"{count} {name}" for name, count in self.shape.items()),
            "action ids": f"{ids['min']:g} to {ids['max']:g}, {ids['mean']:g} on average"
            if {"min", "max", "mean"} <= ids.keys()
            else "",
            "images": self.pictures,
            "on disk": f"{size_text(self.bytes)} in {self.files} files",
            **self.origin,
        }
        return [
            pairs(info),
            findings_table(self.findings),
            table("Tasks", ("task", "samples"), self.tasks.items()),
        ]


def inspect_samples(location: Path) -> SamplesReport:
    """Reads the manifest, and the sizes of the files."""
    folder, findings = SamplesFolder.open(location), Problems()
    document = folder.document
    ids = dict(branch(document, "action_ids"))
    counts: Any = ids.pop("counts", {})
    if not folder.images_root.is_dir():
        message = f"the images of the samples are missing: {folder.images_root} is not a folder"
        findings.append({"code": "data.no_pictures", "message": message})
    return SamplesReport(
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
        bytes=sum(file.bytes for file in output_files(location)),
        pictures=folder.prefix,
        findings=tuple(findings),
    )


def _origin(document: Mapping[str, Any]) -> dict[str, str]:
    codes, fast, profile = (branch(document, key) for key in ("codes", "fast", "profile"))
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


@dataclass(frozen=True)
class TokenSampleView:
    """Contents of a sample to show.

    Attributes:
        name: Heading.
        info: Map from name to value, shown as labels.
        sample: The sample.
        past: Map from camera to its images up to the anchor, oldest first.
        future: Map from camera to its future images; empty if the windows are missing.
        actions: float64 [H, D], not normalized; None if the windows are missing.
    """

    name: str
    info: Mapping[str, object]
    sample: TokenSample
    past: Mapping[str, list[FrameView]]
    future: Mapping[str, list[FrameView]]
    actions: Array | None


def view_token_sample(folder: SamplesFolder, number: int) -> TokenSampleView:
    """View of a sample with its images, and with its window if the folder of windows exists.

    Raises:
        DataError: The sample cannot be read.
    """
    sample = folder.sample(number)
    root = folder.images_root
    names = [image.removeprefix(folder.prefix) for image in sample.images]
    window = _window(root, sample, names)
    info = {
        "kind": sample.conversation.kind,
        "task": sample.conversation.task,
        "action ids": len(sample.conversation.action_ids),
        "future images": len(sample.conversation.codes),
    }
    return TokenSampleView(
        name=f"Sample {number}, {PurePosixPath(names[-1]).parent.name if names else ''}",
        info=info,
        sample=sample,
        past=_strips(root, names),
        future=_strips(root, window.future if window else ()),
        actions=None if window is None else np.array(window.actions),
    )


def _strips(root: Path, names: Iterable[str]) -> dict[str, list[FrameView]]:
    """Map from camera to its images; names of one camera differ only in the number of the frame."""
    strips: dict[str, list[FrameView]] = {}
    known: dict[str, FrameView] = {}
    for name in names:
        camera = _FRAME.sub("", PurePosixPath(name).stem)
        if name not in known:
            known[name] = _view(root / name)
        strips.setdefault(camera, []).append(known[name])
    return strips


def _view(path: Path) -> FrameView:
    try:
        return FrameView(Image.fromarray(decode_rgb(path.read_bytes())))
    except (OSError, ValueError) as error:
        return FrameView(None, problem=f"cannot be shown: {error}")


def _window(root: Path, sample: TokenSample, names: list[str]) -> Window | None:
    """Window that a sample was made from; None if it is missing."""
    episode = PurePosixPath(names[-1]).parent.name if names else ""
    path = root / DATA_NAME / f"{episode}{LINES_SUFFIX}"
    try:
        for window in _windows(path):
            if (window.kind, [*window.images]) == (sample.conversation.kind, names):
                return window
    except DataError:
        pass
    return None


def _windows(path: Path) -> Iterator[Window]:
    return read_windows(path) if path.is_file() else iter(())
