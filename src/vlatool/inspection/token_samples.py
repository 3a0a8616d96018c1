"""What is in built samples and in folders of codes, and one sample to look at.

Legend of shapes: H actions, D values of an action, Q pictures to come, K codes of a picture.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from vlatool.artifacts.codes_folder import CodesFolder
from vlatool.artifacts.image import decode_rgb
from vlatool.artifacts.lines import LINES_SUFFIX
from vlatool.artifacts.samples_folder import SamplesFolder
from vlatool.artifacts.samples_jsonl import TokenSample
from vlatool.artifacts.windows import DATA_NAME, Window
from vlatool.building.episode import read_windows
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.inspection.projection import FrameView
from vlatool.inspection.report import Findings, Problems, branch, findings_table, pairs, table
from vlatool.jobs.files import output_files
from vlatool.storage.tree import size_text

_FRAME = re.compile(r"_frame_\d+$")
_DIGEST = 12


@dataclass(frozen=True)
class CodesReport:
    """What is in a folder of codes; empty texts are what nothing says."""

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
        """The report for programs."""
        return asdict(self)

    def headline(self) -> str:
        """What it is, in a few words."""
        return f"codes of {self.pictures} pictures in {self.episodes} episodes, {self.layout}"

    def blocks(self) -> list[str]:
        """The report for people, block by block."""
        info = {
            "codes": f"{self.codes_per_picture} per picture, of {self.codebook_size}",
            "used": f"{self.used_codes} of them, in the first episode",
            "tokenizer": self.tokenizer or "unknown",
            "digest": self.tokenizer_digest[:_DIGEST],
            "precision": self.precision,
        }
        return [pairs(info), findings_table(self.findings)]


def inspect_codes(location: Path) -> CodesReport:
    """Reads the manifest and the codes of the first episode; counts where there is no manifest."""
    folder, findings = CodesFolder.open(location), Problems()
    episodes, manifest = folder.episodes(), folder.manifest
    used, first = 0, 0
    if episodes:
        read = findings.read(folder.read, episodes[0])
        used, first = (0, 0) if read is None else (len(np.unique(read.codes)), len(read.stems))
    images = manifest.pictures
    if not folder.has_manifest:
        images = sum(len(folder.stems(one)) for one in episodes[1:]) + first
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
class BuiltReport:
    """What is in built samples, as their manifest says.

    Attributes:
        layout: `jsonl` or `packed`.
        kinds: Kind to samples.
        shape: Pictures seen and to come, actions and their values, of each window.
        tasks: Instruction to samples.
        action_ids: The fewest, the mean and the most of a window.
        id_counts: Number of action ids to windows that have so many.
        origin: What made codes and ids, by digest, and how actions are normalised.
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
        """The report for programs."""
        return asdict(self)

    def headline(self) -> str:
        """What it is, in a few words."""
        return f"{self.samples} built samples of {self.episodes} episodes, {self.layout}"

    def blocks(self) -> list[str]:
        """The report for people, block by block."""
        ids = self.action_ids
        info = {
            "samples": ", ".join(f"{count} {kind}" for kind, count in self.kinds.items()),
            "window": ", ".join(f"{count} {name}" for name, count in self.shape.items()),
            "action ids": f"{ids['min']:g} to {ids['max']:g}, {ids['mean']:g} on average"
            if {"min", "max", "mean"} <= ids.keys()
            else "",
            "pictures": self.pictures,
            "on disk": f"{size_text(self.bytes)} in {self.files} files",
            **self.origin,
        }
        return [
            pairs(info),
            findings_table(self.findings),
            table("Tasks", ("task", "samples"), self.tasks.items()),
        ]


def inspect_built(location: Path) -> BuiltReport:
    """Reads the manifest; of the files only sizes."""
    folder, findings = SamplesFolder.open(location), Problems()
    document = folder.document
    ids = dict(branch(document, "action_ids"))
    counts: Any = ids.pop("counts", {})
    if not folder.images_root.is_dir():
        message = f"its pictures are not in {folder.images_root}"
        findings.append({"code": "data.no_pictures", "message": message})
    return BuiltReport(
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
        f"{key} {str(one.get(name) or 'unknown')[:_DIGEST]}"
        for key, one, name in (
            ("codes", codes, "tokenizer_digest"),
            ("action ids", fast, "digest"),
        )
    )
    return {
        "made by": ", ".join(digests),
        "profile": f"{profile.get('name', 'unknown')}, left as they are: {raw}",
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, int]:
    return {str(key): value for key, value in values.items() if isinstance(value, int)}


@dataclass(frozen=True)
class BuiltView:
    """A sample to look at.

    Attributes:
        name: What it is called.
        facts: Name to value.
        sample: The sample.
        seen: Camera to its pictures, oldest first.
        future: The same of the pictures to come; empty where the windows are not at hand.
        actions: float64 [H, D], not normalised; None where the windows are not at hand.
    """

    name: str
    info: Mapping[str, object]
    sample: TokenSample
    seen: Mapping[str, list[FrameView]]
    future: Mapping[str, list[FrameView]]
    actions: Array | None


def view_built(folder: SamplesFolder, number: int) -> BuiltView:
    """A sample with its pictures, and its window where the folder of windows is at hand.

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
        "pictures to come": len(sample.conversation.codes),
    }
    return BuiltView(
        name=f"Sample {number}, {PurePosixPath(names[-1]).parent.name if names else ''}",
        info=info,
        sample=sample,
        seen=_strips(root, names),
        future=_strips(root, window.future if window else ()),
        actions=None if window is None else np.array(window.actions),
    )


def _strips(root: Path, names: Iterable[str]) -> dict[str, list[FrameView]]:
    """Camera to its pictures: names of one camera differ in the number of the frame."""
    found: dict[str, list[FrameView]] = {}
    known: dict[str, FrameView] = {}
    for name in names:
        camera = _FRAME.sub("", PurePosixPath(name).stem)
        if name not in known:
            known[name] = _shot(root / name)
        found.setdefault(camera, []).append(known[name])
    return found


def _shot(path: Path) -> FrameView:
    try:
        return FrameView(Image.fromarray(decode_rgb(path.read_bytes())))
    except (OSError, ValueError) as error:
        return FrameView(None, problem=f"cannot be shown: {error}")


def _window(root: Path, sample: TokenSample, names: list[str]) -> Window | None:
    """The window that a sample was built from, where it is at hand."""
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
