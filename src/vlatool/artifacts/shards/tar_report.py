"""Report of one shard, or of the tar of one episode, with a page of some samples.

Legend of shapes: S positions (the anchors that have a sample), C dimensions of a field.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.field_summary import (
    lowdim_columns,
    policy_fields,
    pose_tracks,
    position_fields,
)
from vlatool.artifacts.fields import recorded_names
from vlatool.artifacts.sample import ARRAYS, StoredSample, parse_image
from vlatool.artifacts.shards.format import MANIFEST_NAME, ShardFolder
from vlatool.artifacts.shards.sample_card import frame_rate, sample_card, stored_view
from vlatool.artifacts.tar import OpenShard, open_shard
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.pages.images import EpisodeView, FrameView, episode_section, shown_positions
from vlatool.pages.layout import Section, code, details, evenly_spaced, group, note, table, tiles
from vlatool.pages.report import PageRequest, Problems, Report, ReportPage, listed, status_text
from vlatool.pages.text import pixels_text, text_table
from vlatool.storage.tree import size_text

_DEFAULT_FPS = 10.0


@dataclass(frozen=True)
class SampleSummary:
    """Contents of a sample.

    Attributes:
        key: Key of the sample.
        members: Suffix (`lowdim.npz`) to size in bytes.
        pictures: Map from suffix of each image to its (width, height); None if it cannot be opened.
        arrays: Low-dimensional array to its `shape` and `dtype`.
        language: Map from kind of annotation to sentences.
    """

    key: str
    members: Mapping[str, int]
    pictures: Mapping[str, tuple[int, int] | None]
    arrays: Mapping[str, Mapping[str, Any]]
    language: Mapping[str, list[str]]

    def cameras(self) -> dict[str, tuple[int, int] | None]:
        """Map from camera to the (width, height) of its first image."""
        sizes: dict[str, tuple[int, int] | None] = {}
        for suffix, size in self.pictures.items():
            name = parse_image(suffix)
            if name is not None:
                sizes.setdefault(name.camera, size)
        return sizes

    def array_rows(self) -> list[tuple[str, str, str]]:
        """Name, shape and type of each array, as text."""
        return [
            (name, " x ".join(map(str, array["shape"])) or "scalar", array["dtype"])
            for name, array in self.arrays.items()
        ]


@dataclass(frozen=True)
class ShardFacts:
    """Contents of a shard.

    Attributes:
        samples: Number of keys with at least one member.
        members: Number of files in the tar.
        bytes: Size of the tar.
        members_per_sample: Map from number of members to number of samples that have that many.
        first: First sample; None in an empty tar.
        problem: Reason why the tar could not be read to its end; empty if it could.
    """

    samples: int
    members: int
    bytes: int
    members_per_sample: Mapping[int, int]
    first: SampleSummary | None
    problem: str = ""


def inspect_shard(path: Path) -> Report:
    """Reads the headers of a tar and its first sample.

    Raises:
        DataError: The file is not a tar.
    """
    facts = _read_facts(path)
    counts = ", ".join(
        f"{members} in {counted(samples, 'sample')}"
        if len(facts.members_per_sample) > 1
        else str(members)
        for members, samples in facts.members_per_sample.items()
    )
    return Report(
        kind="shard",
        headline=f"shard, {counted(facts.samples, 'sample')}",
        facts=asdict(facts),
        summary={
            "status": facts.problem or status_text("whole"),
            "on disk": size_text(facts.bytes),
            "members per sample": counts,
            "first sample": facts.first.key if facts.first else "none",
        },
        tables=_tables(facts.first) if facts.first else (),
        page=partial(_page, path, facts),
    )


def first_sample(shard: OpenShard) -> SampleSummary | None:
    """Summary of the first sample of a tar; None if there is none or it cannot be read."""
    if not shard.keys:
        return None
    try:
        with shard.reading(shard.keys[0]) as sample:
            return _sample_summary(sample, shard.members[sample.key])
    except DataError:
        return None


def _read_facts(path: Path) -> ShardFacts:
    with open_shard(path) as shard:
        counts = Counter[str]()
        for sample in shard.scan.samples:
            counts[sample.key] += len(sample.members)
        others = sum(problem.code == "not_a_file" for problem in shard.scan.problems)
        return ShardFacts(
            samples=len(counts),
            members=counts.total(),
            bytes=path.stat().st_size,
            members_per_sample=dict(Counter(counts.values()).most_common()),
            first=first_sample(shard),
            problem=shard.damage
            or (f"{counted(others, 'member is', 'members are')} not plain files" if others else ""),
        )


def _sample_summary(sample: StoredSample, ranges: Mapping[str, tuple[int, int]]) -> SampleSummary:
    """Summary of a sample; `ranges` maps each suffix to (offset, size)."""
    try:
        language = sample.language()
    except ValueError:
        language = {}
    sizes = {suffix: size for suffix, (_, size) in ranges.items()}
    headers = sample.array_headers() if ARRAYS in sample.members else {}
    arrays = {name: {"shape": shape, "dtype": dtype} for name, (shape, dtype) in headers.items()}
    return SampleSummary(sample.key, sizes, sample.image_sizes(), arrays, language)


def _tables(first: SampleSummary) -> list[str]:
    shown = {name: pixels_text(size, "unreadable") for name, size in first.pictures.items()}
    members = [(name, size_text(size), shown.get(name, "")) for name, size in first.members.items()]
    language = [(kind, f'"{texts[0]}"') for kind, texts in first.language.items()]
    return [
        text_table("Members of the first sample", ("name", "size", "width x height"), members),
        text_table(f"Arrays of {ARRAYS}", ("name", "shape", "dtype"), first.array_rows()),
        text_table("Language", ("kind", "example"), language),
    ]


def _page(path: Path, facts: ShardFacts, request: PageRequest) -> ReportPage:
    # A shard without its folder has no options.
    options = Problems().read(ShardFolder(path.parent / MANIFEST_NAME).options) or {}
    with open_shard(path) as tar:
        episode = _episode_view(tar, options)
        sections = [_overview(facts)]
        if episode is not None:
            sections.append(episode_section(episode, is_under=False))
        total = len(tar.keys)
        samples = [sample_card(tar, i, options) for i in evenly_spaced(total, request.samples)]
        sections += group(f"Samples ({len(samples)} of {total})", samples)
    kind = "shard" if episode is None else "samples of one episode"
    return ReportPage(sections, f"{kind}, {counted(facts.samples, 'sample')}")


def _overview(facts: ShardFacts) -> Section:
    info = {
        "samples": f"{facts.samples:,}",
        "members": f"{facts.members:,}",
        "status": "broken" if facts.problem else status_text("whole"),
        "on disk": size_text(facts.bytes),
    }
    members = ""
    if (first := facts.first) is not None:
        sizes = [(code(name), f"{size:,}") for name, size in first.members.items()]
        arrays = [(code(name), shape, dtype) for name, shape, dtype in first.array_rows()]
        members = details(
            "Members of the first sample", table(("member", "bytes"), sizes, numbers=(1,))
        ) + details("Arrays of the first sample", table(("array", "shape", "type"), arrays))
    problem = note(facts.problem) if facts.problem else ""
    return Section("Overview", tiles(info) + problem + members)


def _episode_view(tar: OpenShard, options: Mapping[str, Any]) -> EpisodeView | None:
    """View of the episode that the samples of a tar are from; None if they are from several.

    Args:
        tar: Samples.
        options: preprocessing_config.yaml; empty if unknown.
    """
    keys_by_anchor = _one_episode(tar)
    if keys_by_anchor is None:
        return None
    problems: list[str] = []
    rows = _anchor_rows(tar, keys_by_anchor, problems)
    if not rows:
        return None
    anchors = sorted(rows)
    keys = [keys_by_anchor[anchor] for anchor in anchors]
    numbers = _columns([rows[anchor] for anchor in anchors])
    with tar.reading(keys[0]) as first:
        metadata, language = first.metadata(), first.language()
    actions, proprioception = policy_fields(
        numbers,
        _absolute(listed(options, "action_fields"), numbers),
        _absolute(listed(options, "proprioception_fields"), numbers),
        recorded_names(options),
    )
    shown = shown_positions(len(anchors))
    fps = frame_rate(metadata, options)
    if fps is None:
        problems.append(f"the frame rate is not recorded; times assume {_DEFAULT_FPS:g} fps")
    return EpisodeView(
        name=str(metadata.get("episode_id")),
        info={
            "task": metadata.get("task"),
            "samples": len(anchors),
            "episode length": metadata.get("original_episode_length"),
            "fps": "" if fps is None else f"{fps:g}",
        },
        fps=fps or _DEFAULT_FPS,
        frames=np.array(anchors),
        shown=shown,
        cameras=_strips(tar, [keys[position] for position in shown]),
        actions=actions,
        proprioception=proprioception,
        tracks=pose_tracks(numbers, position_fields(numbers)),
        language=language,
        problems=problems,
    )


def _one_episode(tar: OpenShard) -> dict[int, str] | None:
    """Map from anchor to key; None unless samples with readable metadata are of one episode."""
    anchors: dict[int, str] = {}
    episodes: set[str] = set()
    for key in tar.keys:
        try:
            with tar.reading(key) as sample:
                metadata = sample.metadata()
        except DataError:
            continue
        anchor, episode = metadata.get("anchor_timestep"), metadata.get("episode_id")
        if not isinstance(anchor, int) or not isinstance(episode, str) or anchor in anchors:
            return None
        episodes.add(episode)
        if len(episodes) > 1:
            return None
        anchors[anchor] = key
    return anchors if len(anchors) > 1 else None


def _anchor_rows(
    tar: OpenShard, keys: Mapping[int, str], problems: list[str]
) -> dict[int, dict[str, Array]]:
    """Map from anchor to its row of each field; broken samples are added to `problems`."""
    rows: dict[int, dict[str, Array]] = {}
    for frame, key in keys.items():
        try:
            with tar.reading(key) as sample:
                step, arrays = (sample.metadata().get("anchor_relative_idx", 0), sample.arrays())
        except DataError as error:
            problems.append(error.message)
            continue
        length = len(arrays["past_mask"]) if "past_mask" in arrays else step + 1
        fields = lowdim_columns(arrays, length)
        rows[frame] = {name: values[min(step, length - 1)] for name, values in fields.items()}
    return rows


def _columns(rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Fields [S, C] that all rows have with the same width."""
    return {
        name: np.stack([row[name] for row in rows])
        for name, first in rows[0].items()
        if all(name in row and row[name].shape == first.shape for row in rows)
    }


def _absolute(names: Sequence[object], known: Mapping[str, Array]) -> list[str]:
    """Configured fields; for a relative one its absolute field, if that is in `known`."""
    pairs = ((name, name.removesuffix("_relative")) for name in map(str, names))
    return [absolute if absolute in known else name for name, absolute in pairs]


def _strips(tar: OpenShard, keys: Sequence[str]) -> dict[str, list[FrameView]]:
    """Map from camera to the image nearest to the anchor of each sample."""
    strips: dict[str, list[FrameView]] = {}
    with tar.reading(keys[0]) as first:
        views = first.image_suffixes()
    for camera in dict.fromkeys(camera for camera, _ in views):
        offset = min((offset for name, offset in views if name == camera), key=abs)
        strips[camera] = [_stored(tar, key, (camera, offset)) for key in keys]
    return strips


def _stored(tar: OpenShard, key: str, view: tuple[str, int]) -> FrameView:
    with tar.reading(key) as sample:
        names = (f"rescaled_intrinsics.{view[0]}", f"extrinsics.{view[0]}")
        arrays = sample.arrays([name for name in sample.array_headers() if name in names])
        step = sample.metadata().get("anchor_relative_idx", 0)
        return stored_view(sample, view, arrays, step + view[1])
