"""LeRobot v2.0 and v2.1 data sets, with video or image columns, as episodes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlatool.config.base import ConfigModel
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource
from vlatool.errors import DataError
from vlatool.findings import Family, Finding
from vlatool.sources.base import DatasetWarnings, id_part, refuse_missing_or_pointer
from vlatool.sources.lerobot.codes import LEROBOT
from vlatool.sources.lerobot.dataset import (
    LeRobotConfig,
    Recording,
    dataset_roots,
    open_dataset,
)
from vlatool.sources.lerobot.meta import Feature, read_tasks
from vlatool.sources.lerobot.rows import FRAME_INDEX, Rows, read_rows, timestamp_oddity
from vlatool.sources.lerobot.tasks import (
    Instruction,
    instruction_of_list,
    instruction_of_rows,
    without_labels,
)
from vlatool.sources.parquet_images import ParquetImages
from vlatool.sources.video import VideoFacts, VideoFrames, probe_video

_FRAME_METADATA = ("timestamp", FRAME_INDEX, "episode_index", "index", "task_index")
_TASK_DESCRIPTION = "task_description"

Warnings = list[tuple[str, str]]


class LeRobotReader:
    """Reads LeRobot v2.0 and v2.1; rows pair with frames by number, never by time."""

    Config: ClassVar[type[ConfigModel]] = LeRobotConfig
    findings: ClassVar[Family] = LEROBOT

    def __init__(self, config: LeRobotConfig) -> None:
        self.config = config
        self.warnings: list[tuple[str, str]] = []

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every listed episode; all metadata is read and checked before the first one is given.

        Raises:
            DataError: `data.no_episodes`, `data.unknown_field`, `data.unsupported_version`, or
                broken metadata.
        """
        warnings = DatasetWarnings()
        found: dict[Path, tuple[Path, list[Recording]]] = {}
        for source in sources:
            for root in dataset_roots(source):
                if root.resolve() in found:
                    warnings.add_once("data.duplicate_source", f"{root} was given twice; read once")
                else:
                    found[root.resolve()] = (source, open_dataset(root, self.config, warnings))
        self.warnings = warnings.items
        return _refs(list(found.values()))

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; pictures stay on disk.

        Raises:
            DataError: Its files are missing or broken, or disagree; names file and field.
        """
        recording: Recording = ref.extras["recording"]
        dataset, line = recording.dataset, recording.line
        name = f"episode {line.number}"
        rows = read_rows(recording.data_file, name, self._columns(recording))
        _check_length(recording, rows)
        warnings: Warnings = []
        task = self._instruction(recording, rows, warnings)
        metadata = {key: rows.values(key) for key in _FRAME_METADATA if key in rows.columns}
        _note_oddities(recording, metadata, warnings)
        return Episode(
            id=ref.id,
            task=task,
            fps=dataset.info.fps,
            num_frames=len(rows),
            cameras=_cameras(recording, rows, warnings),
            lowdim=_lowdim(recording, rows),
            language={"original": [task]},
            action_fields=dataset.action_keys,
            proprioception_fields=dataset.observation_keys,
            frame_metadata=metadata,
            warnings=tuple(warnings),
            extras=_extras(recording),
        )

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
        """Every defect of an episode; with `deep` every frame is decoded."""
        from vlatool.sources.lerobot.checks import check_lerobot_episode

        yield from check_lerobot_episode(self, ref, deep=deep)

    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]:
        """Defects that concern more than one episode."""
        from vlatool.sources.lerobot.set_checks import check_lerobot_sources

        yield from check_lerobot_sources(self, sources)

    def _columns(self, recording: Recording) -> list[str]:
        """Columns of the parquet file that reading needs; pictures are left on disk."""
        dataset = recording.dataset
        annotations = [name for name in dataset.info.features if name.startswith("annotation.")]
        task_column = [self.config.task_column] if self.config.task_column else []
        fields = [*dataset.observation_keys, *dataset.action_keys]
        return [*fields, *_FRAME_METADATA, *annotations, *task_column]

    def _instruction(self, recording: Recording, rows: Rows, warnings: Warnings) -> str:
        """The sentence of the episode: the rows decide, then the list, then the folder's name."""
        table = _task_table(recording, warnings)
        column = self._task_column(rows)
        values = rows.values(column) if column else []
        if column and (table or isinstance(values[0], str)):
            instruction = instruction_of_rows(rows.episode, column, values, table)
        else:
            instruction = self._listed_instruction(recording, rows, table)
        warnings.extend(instruction.warnings)
        if instruction.text:
            return instruction.text
        words = _name_in_words(recording.dataset.name)
        warnings.append(("language_fallback", f"{rows.episode}: no instruction; using {words!r}"))
        return words

    def _listed_instruction(
        self, recording: Recording, rows: Rows, table: dict[int, str]
    ) -> Instruction:
        """The sentence of episodes.jsonl, without those that only label the episode."""
        labels = {
            table.get(value)
            for column in rows.table.column_names
            if column.startswith("annotation.") and not column.endswith(_TASK_DESCRIPTION)
            for value in rows.values(column)
        }
        listed = recording.line.tasks
        sentences = [text for text in listed if text not in labels] or listed
        return instruction_of_list(rows.episode, sentences, self.config.task_join)

    def _task_column(self, rows: Rows) -> str | None:
        """The column that names the task, null when there is none."""
        if self.config.task_column is not None:
            rows.require(self.config.task_column)
            return self.config.task_column
        described = [name for name in rows.table.column_names if name.endswith(_TASK_DESCRIPTION)]
        return "task_index" if "task_index" in rows.columns else next(iter(described), None)


def _refs(found: Sequence[tuple[Path, list[Recording]]]) -> Iterator[EpisodeRef]:
    """Refs of data sets; the second of two with one name has `-2` after it."""
    seen: Counter[str] = Counter()
    for source, recordings in found:
        dataset = recordings[0].dataset
        name = id_part(dataset.name)
        seen[name] += 1
        prefix = name if seen[name] == 1 else f"{name}-{seen[name]}"
        metadata = _metadata_files(dataset.root)
        for recording in recordings:
            number = recording.line.number
            sentences = without_labels(recording.line.tasks)
            yield EpisodeRef(
                id=f"{prefix}_episode_{number:06d}",
                path=recording.data_file,
                source=str(source),
                number=number if len(found) == 1 else None,
                task=sentences[0] if sentences else _name_in_words(dataset.name),
                files=(*recording.videos.values(), *metadata),
                extras={"recording": recording},
            )


def _metadata_files(root: Path) -> list[Path]:
    return sorted((root / "meta").glob("*.json*"))


def _check_length(recording: Recording, rows: Rows) -> None:
    length = recording.line.length
    if length is not None and length != len(rows):
        raise DataError(
            f"{rows.episode}: {rows.path} has {len(rows)} rows, meta/episodes.jsonl says {length}",
            hint="the file or the list is from another version; get both again",
            code="data.length_mismatch",
            details={"file": str(rows.path), "rows": len(rows), "length": length},
        )


def _lowdim(recording: Recording, rows: Rows) -> dict[str, Array]:
    dataset = recording.dataset
    names = dict.fromkeys([*dataset.observation_keys, *dataset.action_keys])
    return {name: rows.vectors(name, dataset.info.features[name].width) for name in names}


def _cameras(recording: Recording, rows: Rows, warnings: Warnings) -> dict[str, FrameSource]:
    cameras: dict[str, FrameSource] = {}
    for camera in recording.dataset.cameras:
        frames = (
            _video(recording, camera, rows, warnings)
            if camera.dtype == "video"
            else _images(recording, camera, rows, warnings)
        )
        if frames is not None:
            cameras[camera.name] = frames
    return cameras


def _images(
    recording: Recording, camera: Feature, rows: Rows, warnings: Warnings
) -> ParquetImages | None:
    if camera.name not in rows.columns:
        message = f"{rows.episode}, camera {camera.name}: no such column in {rows.path}"
        warnings.append(("missing_camera", message))
        return None
    return ParquetImages(rows.path, camera.name, recording.dataset.root, rows.order.tolist())


def _video(
    recording: Recording, camera: Feature, rows: Rows, warnings: Warnings
) -> VideoFrames | None:
    path = recording.videos[camera.name]
    place = f"{rows.episode}, camera {camera.name}"
    if not path.exists():
        warnings.append(("missing_camera", f"{place}: {path} is missing"))
        return None
    refuse_missing_or_pointer(path, place)
    facts = probe_video(path)
    if facts.num_frames < len(rows):
        raise DataError(
            f"{place}: {path} has {facts.num_frames} frames, the data has {len(rows)} rows",
            hint="the video is incomplete; get it again, or leave the episode out with --episodes",
            code="data.video_too_short",
            details={"file": str(path), "camera": camera.name, "frames": facts.num_frames},
        )
    info = recording.dataset.info
    warnings.extend(_video_oddities(f"{place}: {path}", facts, camera, len(rows), info.fps))
    return VideoFrames(path, len(rows))


def _video_oddities(
    place: str, facts: VideoFacts, camera: Feature, num_rows: int, fps: float
) -> Iterator[tuple[str, str]]:
    """Where a usable video differs from what the rows and info.json say."""
    if facts.num_frames > num_rows:
        extra = f"{facts.num_frames} frames for {num_rows} rows; those after the last are unused"
        yield "lerobot.extra_frames", f"{place} has {extra}"
    if facts.fps is not None and abs(float(facts.fps) - fps) > 0.01:
        yield "lerobot.video_fps", f"{place} runs at {float(facts.fps):g} fps, the data at {fps:g}"
    if camera.shape and not set(facts.size) <= set(camera.shape):
        height, width = facts.size
        declared = f"meta/info.json says {list(camera.shape)}"
        yield "lerobot.picture_size", f"{place} is {width}x{height} (w x h), {declared}"


def _task_table(recording: Recording, warnings: Warnings) -> dict[int, str]:
    """Task number to sentence; empty, with a warning, when the table is unreadable."""
    try:
        return read_tasks(recording.dataset.root)
    except DataError as error:
        warnings.append(("lerobot.tasks_unreadable", error.message))
        return {}


def _note_oddities(
    recording: Recording, metadata: dict[str, list[Any]], warnings: Warnings
) -> None:
    number, name = recording.line.number, f"episode {recording.line.number}"
    if "timestamp" in metadata:
        oddity = timestamp_oddity(metadata["timestamp"], recording.dataset.info.fps, name)
        if oddity:
            warnings.append(("lerobot.timestamps", oddity))
    others = set(metadata.get("episode_index", ())) - {number}
    if others:
        message = f"{name}: {recording.data_file} also says episode_index {sorted(others, key=str)}"
        warnings.append(("lerobot.episode_index", message))


def _extras(recording: Recording) -> dict[str, Any]:
    info = recording.dataset.info
    return {
        "source_version": info.layout,
        "dataset": recording.dataset.name,
        "robot_type": info.robot_type,
        "source_episode_index": recording.line.number,
    }


def _name_in_words(name: str) -> str:
    return " ".join(id_part(name).replace("-", "_").split("_"))
