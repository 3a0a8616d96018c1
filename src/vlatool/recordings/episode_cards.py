"""Cards of raw episodes on the page of a source: images, charts, poses and sentences.

Some episodes are shown in full, the others collapsed. Shapes: F frames, C dimensions of a field.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.events import Reporter, counted
from vlatool.media.video import browser_clip
from vlatool.recordings import field_summary
from vlatool.recordings.base import FormatReader
from vlatool.report import episodes as report_episodes
from vlatool.report.episodes import EpisodeView, FrameView
from vlatool.report.facts import (
    Gallery,
    PageRequest,
    Part,
    Section,
    Text,
    Tile,
    Video,
    evenly_spaced,
    under_heading,
)
from vlatool.transforms.relative import actual_field

# Name of the section of broken episodes in links.
PROBLEMS = "problems"
# Most episodes on a page: each has several images.
_MAX_LISTED = 100


class EpisodeCards:
    """Episodes of a source on a page; each is read once."""

    def __init__(
        self,
        reader: FormatReader,
        known: Mapping[int, EpisodeRef],
        broken: Collection[str],  # ids of those that cannot be read
        request: PageRequest,
    ) -> None:
        self._reader = reader
        self._broken = broken
        self._request = request
        self._numbers = {ref.id: number for number, ref in known.items()}

    def sections(self, refs: Sequence[EpisodeRef], full: int, reporter: Reporter) -> list[Section]:
        """Links to all episodes, `full` of them, and the others collapsed."""
        whole = [ref.id for ref in refs if ref.id not in self._broken]
        in_full = {whole[index] for index in evenly_spaced(len(whole), full)}
        shown = {refs[index].id for index in evenly_spaced(len(refs), _MAX_LISTED)} | in_full
        tiles: list[Tile] = []
        cards: list[Section] = []
        briefs: list[Part] = []
        with reporter.progress("page", len(shown), "episodes") as bar:
            for ref in refs:
                if ref.id not in shown:
                    continue
                number = self._numbers[ref.id]
                anchor = f"e{number}"
                view: EpisodeView | None = None
                reason = "see the problems"
                if ref.id not in self._broken:
                    try:
                        view = self._view(ref, is_brief=ref.id not in in_full)
                    except DataError as error:
                        reason = error.message
                if view is None:
                    figure = FrameView(None, problem="broken").figure("")
                    tiles.append(Tile(figure, number, ref.id, [reason], PROBLEMS))
                    bar.advance()
                    continue
                tiles.append(report_episodes.episode_tile(view, number, anchor))
                if ref.id in in_full:
                    cards.append(report_episodes.episode_section(view, anchor))
                else:
                    hint = f"--episodes {number} shows this episode in full"
                    briefs.append(report_episodes.brief_episode(view, anchor, hint))
                bar.advance()
        overview: list[Part] = [Gallery(tiles)]
        if len(shown) < len(refs):
            text = f"{len(shown)} of {counted(len(refs), 'episode')}, evenly spaced"
            overview = [Text(f"{text}; --episodes selects others", "note"), *overview]
        return [
            Section("All episodes", overview),
            *under_heading(f"Episodes ({len(cards)} of {len(whole)})", cards),
            Section("Other episodes", [Text("click to open", "quiet"), *briefs] if briefs else []),
        ]

    def _view(self, ref: EpisodeRef, *, is_brief: bool) -> EpisodeView:
        """View of an episode; DataError if it cannot be read."""
        episode = self._reader.read(ref)
        view = _episode_view(episode, is_brief=is_brief)
        if not is_brief:
            view = _with_videos(view, episode, self._numbers[ref.id], self._request)
        return view


def _episode_view(episode: Episode, *, is_brief: bool) -> EpisodeView:
    """View of a raw episode; decodes the images of its strip."""
    shown = report_episodes.shown_positions(episode.num_frames, is_brief=is_brief)
    cameras = [*episode.cameras][: 1 if is_brief else None]
    numbers = field_summary.lowdim_columns(episode.lowdim, episode.num_frames)
    actions, proprioception = field_summary.policy_fields(
        numbers, episode.action_fields, episode.proprioception_fields, episode.dimension_names
    )
    return EpisodeView(
        name=episode.id,
        info={
            "task": episode.task,
            "frames": episode.num_frames,
            "seconds": f"{episode.num_frames / episode.fps:.1f}" if episode.fps else "unknown",
            "fps": f"{episode.fps:g}" if episode.fps else "unknown",
        },
        fps=episode.fps or 1.0,
        frames=np.arange(episode.num_frames),
        shown=shown,
        cameras={name: _strip(episode, name, shown) for name in cameras},
        actions=actions,
        proprioception=proprioception,
        tracks=field_summary.pose_tracks(numbers, _pose_fields(episode)),
        language=episode.language,
        spans=episode.language_spans,
        problems=[finding.message for finding in episode.findings],
    )


# Rate of the videos of episodes without one.
_FPS = 10.0


def _with_videos(
    view: EpisodeView, episode: Episode, number: int, request: PageRequest
) -> EpisodeView:
    """The view with a video per camera; a camera that cannot be decoded is a problem."""
    if request.keep_video is None:
        return view
    fps = episode.fps or _FPS
    videos: list[Video] = []
    problems = [*view.problems]
    for index, (name, frames) in enumerate(episode.cameras.items()):
        try:
            data = browser_clip(frames, Fraction(fps).limit_denominator(1001))
        except DataError as error:
            problems.append(error.message)
            continue
        source = request.keep_video(f"{number}_camera_{index}", data)
        if source is None:
            problems.append(f"{name}: its video does not fit into the page; --video keeps it")
        else:
            videos.append(Video(source, name))
    return replace(view, videos=videos, problems=problems, video_fps=fps)


def _pose_fields(episode: Episode) -> dict[str, str]:
    """Rotation field by position field of the poses that are drawn."""
    rotations: dict[str, str] = {}
    for group in episode.pose_groups:
        position = actual_field(group.position_key) or group.position_key
        rotations[position] = actual_field(group.rotation_key) or group.rotation_key
    return rotations or field_summary.position_fields(episode.lowdim)


def _strip(episode: Episode, camera: str, shown: Sequence[int]) -> list[FrameView]:
    calibration = episode.calibration.get(camera)
    intrinsics = None if calibration is None else calibration.intrinsics
    extrinsics = None if calibration is None else calibration.extrinsics
    try:
        images = episode.cameras[camera].read(shown)
    except DataError as error:
        return [FrameView(None, problem=error.message)] * len(shown)
    views: list[FrameView] = []
    for frame, image in zip(shown, images, strict=True):
        views.append(report_episodes.frame_view(image, intrinsics, extrinsics, frame))
    return views
