"""Cards of raw episodes on a page: a link to each with an image, some in full, the others in brief.

Legend of shapes: F frames.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vlatool.artifacts.field_summary import (
    lowdim_columns,
    policy_fields,
    pose_tracks,
    position_fields,
)
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.events import Reporter, counted
from vlatool.pages.images import (
    EpisodeView,
    FrameView,
    brief_card,
    crop_drawing,
    episode_section,
    episode_tile,
    frame_figure,
    frame_view,
    gallery,
    shown_positions,
    strip,
    tile,
)
from vlatool.pages.layout import Section, evenly_spaced, group, heading, note
from vlatool.sources.base import FormatReader
from vlatool.transforms.geometry import make_geometry
from vlatool.transforms.relative import actual_field

# Name of the section of broken episodes in links.
PROBLEMS = "problems"
# Most episodes on a page: each has several images.
_MAX_LISTED = 100


class EpisodeCards:
    """Cards of the episodes of a source; each episode is read once."""

    def __init__(
        self,
        reader: FormatReader,
        known: Mapping[int, EpisodeRef],
        broken: Mapping[str, str],
    ) -> None:
        """Keeps no episode.

        Args:
            reader: Reader of the episodes.
            known: All episodes of the source by the number that selects them.
            broken: Reasons of those that cannot be read, by id.
        """
        self._reader, self._broken = reader, broken
        self._numbers = {ref.id: number for number, ref in known.items()}
        self._first: EpisodeView | None = None

    def sections(self, refs: Sequence[EpisodeRef], full: int, reporter: Reporter) -> list[Section]:
        """Links to all episodes, the cards of `full` of them, and small cards of the others."""
        whole = [ref.id for ref in refs if ref.id not in self._broken]
        in_full = {whole[index] for index in evenly_spaced(len(whole), full)}
        shown = {refs[index].id for index in evenly_spaced(len(refs), _MAX_LISTED)} | in_full
        tiles: list[str] = []
        cards: list[Section] = []
        briefs: list[str] = []
        with reporter.progress("page", len(shown), "episodes") as bar:
            for ref in refs:
                if ref.id not in shown:
                    continue
                anchor = f"e{self._numbers[ref.id]}"
                view = self._view(ref, is_brief=ref.id not in in_full)
                if isinstance(view, str):
                    tiles.append(tile(FrameView(None, problem="broken"), ref.id, [view], PROBLEMS))
                elif ref.id in in_full:
                    tiles.append(episode_tile(view, anchor))
                    cards.append(episode_section(view, anchor=anchor))
                else:
                    tiles.append(episode_tile(view, anchor))
                    hint = f"--episodes {self._numbers[ref.id]} shows this episode in full"
                    briefs.append(brief_card(view, anchor, hint))
                bar.advance()
        return [
            Section("All episodes", _listed_text(len(shown), len(refs)) + gallery(tiles)),
            *group(f"Episodes ({len(cards)} of {len(whole)})", cards),
            Section("Other episodes", "".join(briefs)),
        ]

    def crops(self) -> str:
        """Images of the cameras of an episode, with what a center crop to a square leaves out."""
        cameras = self._first.cameras if self._first else {}
        figures = [
            _cropped(camera, view)
            for camera, views in cameras.items()
            for view in views[:1]
            if view.image is not None and view.image.width != view.image.height
        ]
        text = "Dark: left out by a center crop to a square (image_resizing_method: center_crop)"
        return heading(text, strip("", figures)) if figures else ""

    def _view(self, ref: EpisodeRef, *, is_brief: bool) -> EpisodeView | str:
        """View of an episode, or the reason why there is none."""
        if ref.id in self._broken:
            return self._broken[ref.id]
        try:
            view = _episode_view(self._reader.read(ref), is_brief=is_brief)
        except DataError as error:
            return error.message
        if self._first is None or (self._first.is_brief and not is_brief):
            self._first = view
        return view


def _listed_text(shown: int, total: int) -> str:
    if shown == total:
        return ""
    text = f"{shown} of {counted(total, 'episode')}, evenly spaced; --episodes selects others"
    return note(text)


def _cropped(camera: str, view: FrameView) -> str:
    """Image with the part darkened that a center crop to a square leaves out."""
    assert view.image is not None
    width, height = view.image.size
    side = min(width, height)
    geometry = make_geometry((height, width), (side, side), "center_crop")
    drawing = crop_drawing(view.image.size, geometry.source_box)
    share = 1 - side / max(width, height)
    return frame_figure(view, f"crop of {camera}", f"{camera}: {share:.0%} left out", drawing)


def _episode_view(episode: Episode, *, is_brief: bool) -> EpisodeView:
    """View of a raw episode; decodes the images of its strip."""
    shown = shown_positions(episode.num_frames, is_brief=is_brief)
    cameras = [*episode.cameras][: 1 if is_brief else None]
    numbers = lowdim_columns(episode.lowdim, episode.num_frames)
    actions, proprioception = policy_fields(
        numbers, episode.action_fields, episode.proprioception_fields, episode.dimension_names
    )
    return EpisodeView(
        name=episode.id,
        info={
            "task": episode.task,
            "frames": episode.num_frames,
            "seconds": f"{episode.num_frames / episode.fps:.1f}",
            "fps": f"{episode.fps:g}",
        },
        fps=episode.fps,
        frames=np.arange(episode.num_frames),
        shown=shown,
        cameras={name: _strip(episode, name, shown) for name in cameras},
        actions=actions,
        proprioception=proprioception,
        tracks=pose_tracks(numbers, _pose_fields(episode)),
        language=episode.language,
        problems=[finding.message for finding in episode.findings],
        is_brief=is_brief,
    )


def _pose_fields(episode: Episode) -> dict[str, str]:
    """Map from measured position field to measured rotation field."""
    groups = {
        actual_field(group.position_key) or group.position_key: actual_field(group.rotation_key)
        or group.rotation_key
        for group in episode.pose_groups
    }
    return groups or position_fields(episode.lowdim)


def _strip(episode: Episode, camera: str, shown: Sequence[int]) -> list[FrameView]:
    calibration = episode.calibration.get(camera)
    intrinsics = None if calibration is None else calibration.intrinsics
    extrinsics = None if calibration is None else calibration.extrinsics
    try:
        images = episode.cameras[camera].read(shown)
    except DataError as error:
        return [FrameView(None, problem=error.message)] * len(shown)
    return [
        frame_view(image, intrinsics, extrinsics, frame)
        for frame, image in zip(shown, images, strict=True)
    ]
