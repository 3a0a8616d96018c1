"""Raw Diffusion-Spartan episodes. Source: lbm-data 2, 3.3."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vlatool.episode import Array, Calibration, Episode, EpisodeRef, FrameSource, PoseGroup
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.sources.language import LanguageAnnotations, task_in_words
from vlatool.sources.npz import NpzArchive, missing_array
from vlatool.sources.order import unique_refs
from vlatool.sources.spartan.arrays import camera_matrices, field_values
from vlatool.sources.spartan.codes import SPARTAN
from vlatool.sources.spartan.config import SpartanConfig, validation_episodes, with_action_file
from vlatool.sources.spartan.layout import (
    episode_folders,
    episode_number,
    episode_place,
    episode_ref,
)
from vlatool.storage.tree import file_names
from vlatool.transforms.relative import SUFFIX, actual_field

_REQUIRED = ("metadata.yaml", "observations.npz", "actions.npz", "intrinsics.npz", "extrinsics.npz")
_CAMERA_NAME = re.compile(r"^[a-z0-9_.-]+\Z")
_RATE_HZ = 10.0
_INSTRUCTION = "language_instruction"
_SUMMARY = "summary.npz"
_PICTURES = ("", "_depth", "_label")


class SpartanReader:
    """Reads raw Spartan episodes; any folder above them can be the source."""

    Config = SpartanConfig
    findings = SPARTAN

    def __init__(self, config: SpartanConfig) -> None:
        self.config, self._groups = with_action_file(config)
        self.warnings: list[tuple[str, str]] = []

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Episodes below the sources in natural order.

        Raises:
            DataError: A source is missing or has no episode below it.
        """
        annotations = LanguageAnnotations.load(self.config.language_annotations_path)
        held_out = validation_episodes(self.config.validation_episodes_path)
        found: list[EpisodeRef] = []
        for source in sources:
            folders = episode_folders(source)
            if not folders:
                raise DataError(
                    f"{source}: no Spartan episode here or below",
                    hint="looked for folders episode_<N> that contain processed/",
                    code="data.no_episodes",
                    details={"source": str(source)},
                )
            for folder in folders:
                ref = episode_ref(folder, source, self.config.task)
                held = episode_number(folder) in held_out.get(ref.task, ())
                reason = "validation_episode" if held else ""
                language = annotations.sentences(ref.task)
                found.append(replace(ref, language=language, held_out=reason))
        self._warn_of_unmatched(held_out, found)
        yield from unique_refs(found)

    def _warn_of_unmatched(
        self, held_out: Mapping[str, frozenset[int]], refs: Sequence[EpisodeRef]
    ) -> None:
        """A misspelt task would let validation episodes into the training data."""
        there = {(ref.task, episode_number(ref.path)) for ref in refs}
        for task, numbers in held_out.items():
            missing = sorted(number for number in numbers if (task, number) not in there)
            if missing:
                message = f"validation episodes {missing} of task {task!r} are not in the source"
                self.warnings.append(("validation_episode_missing", message))

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; arrays nobody needs are not inflated.

        Raises:
            DataError: A file or array is missing, broken, or does not fit the others.
        """
        folder = ref.path / "processed"
        present = file_names(folder)
        for name in _REQUIRED:
            if name not in present:
                raise DataError(
                    f"{folder / name}: missing",
                    hint="the episode is incomplete; download or record it again",
                    code="data.missing_file",
                    details={"path": str(folder / name)},
                )
        camera_ids = _camera_ids(folder)
        observations = NpzArchive(folder / "observations.npz")
        observations.load_headers(camera_ids)
        cameras, warnings = _cameras(observations, camera_ids)
        lowdim = {**self._observed(observations, camera_ids), **self._actions(folder)}
        num_frames = _common_length(folder, lowdim, cameras)
        language, fallback = _language(ref, lowdim)
        groups = tuple(group for group in self._groups if _is_complete(group, lowdim))
        success, unknown = _success(folder / _SUMMARY) if _SUMMARY in present else (None, [])
        return Episode(
            id=ref.id,
            task=ref.task,
            fps=_RATE_HZ,
            num_frames=num_frames,
            cameras=cameras,
            lowdim=lowdim,
            language=language,
            calibration=_calibration(folder, cameras, camera_ids),
            depth=_Companions(observations, camera_ids, "depth", num_frames),
            labels=_Companions(observations, camera_ids, "label", num_frames),
            success=success,
            action_fields=self._policy_actions(groups),
            proprioception_fields=self._policy_proprioception(lowdim),
            pose_groups=groups,
            warnings=(*warnings, *fallback, *unknown),
            extras={"source_episode": episode_place(ref.path)},
        )

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
        """Every defect of an episode; with `deep` every frame is decoded."""
        from vlatool.sources.spartan.checks import check_spartan_episode

        yield from check_spartan_episode(self, ref, deep=deep)

    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]:
        """Defects that concern more than one episode."""
        from vlatool.sources.spartan.checks import check_spartan_sources

        yield from check_spartan_sources(self, sources)

    def _observed(self, archive: NpzArchive, camera_ids: Iterable[str]) -> dict[str, Array]:
        """Observation fields in file order."""
        fields: dict[str, Array] = {}
        pictures = {f"{camera}{kind}" for camera in camera_ids for kind in _PICTURES}
        for name in archive.names:
            if name in self.config.data_discard_keys or name in pictures:
                continue
            header = archive.header(name)
            if len(header.shape) <= 2 or name.startswith(("robot__", "language_")):
                fields[name] = field_values(archive, name)
        return fields

    def _actions(self, folder: Path) -> dict[str, Array]:
        archive = NpzArchive(folder / "actions.npz")
        if "actions" not in archive:
            raise missing_array(archive.path, "actions")
        vector = archive.read("actions")
        ends = self.config.action_index_fields
        is_wide = vector.ndim == 2 and vector.shape[1] >= ends[-1]
        if not is_wide or vector.dtype.kind not in "biuf":
            raise DataError(
                f"{archive.path}: actions is {vector.dtype}{list(vector.shape)}, "
                f"expected numbers [frames, {ends[-1]}]",
                hint="name the parts it really has with --action-fields-config-path",
                code="data.narrow_actions",
                details={"path": str(archive.path), "key": "actions"},
            )
        starts = [0, *ends[:-1]]
        return {
            name: vector[:, start:end]
            for name, start, end in zip(self.config.action_key_fields, starts, ends, strict=True)
        }

    def _policy_actions(self, groups: Sequence[PoseGroup]) -> tuple[str, ...]:
        """Left arm first, poses relative where they can be. Source: lbm-data 6.5."""
        relative = {key for group in groups for key in (group.position_key, group.rotation_key)}
        ordered = sorted(self.config.action_key_fields, key=_published_order)
        return tuple(name + SUFFIX if name in relative else name for name in ordered)

    def _policy_proprioception(self, lowdim: Mapping[str, Array]) -> tuple[str, ...]:
        """The measured counterpart of every action field."""
        ordered = sorted(self.config.action_key_fields, key=_published_order)
        measured = [actual_field(name) for name in ordered]
        return tuple(name for name in measured if name is not None and name in lowdim)


def _cameras(
    archive: NpzArchive, camera_ids: Mapping[str, str]
) -> tuple[dict[str, FrameSource], list[tuple[str, str]]]:
    """Cameras by semantic name, in the order of metadata.yaml."""
    cameras: dict[str, FrameSource] = {}
    warnings: list[tuple[str, str]] = []
    for camera_id, name in camera_ids.items():
        if camera_id in archive:
            cameras[name] = archive.frames(camera_id)
        else:
            message = f"{archive.path}: camera {name!r} ({camera_id}) has no pictures"
            warnings.append(("missing_camera", message))
    if not cameras:
        raise DataError(
            f"{archive.path}: no camera of camera_id_to_semantic_name has pictures",
            hint="the ids in metadata.yaml must be names of arrays in this file",
            code="data.no_cameras",
            details={"path": str(archive.path)},
        )
    return cameras, warnings


def _camera_ids(folder: Path) -> dict[str, str]:
    """Hardware id to semantic name."""
    path = folder / "metadata.yaml"
    mapping = _read_yaml(path).get("camera_id_to_semantic_name")
    if not isinstance(mapping, Mapping) or not mapping:
        raise DataError(
            f"{path}: camera_id_to_semantic_name is missing or empty",
            hint="it names the cameras, for example 6CD146030E99: scene_right_0",
            code="data.missing_field",
            details={"path": str(path), "key": "camera_id_to_semantic_name"},
        )
    names = {str(camera_id): str(name).lower() for camera_id, name in mapping.items()}
    for name in names.values():
        if not _CAMERA_NAME.match(name):
            raise DataError(
                f"{path}: the camera name {name!r} cannot be a file name in a shard",
                hint="use letters, digits, dots, dashes and underscores",
                code="data.bad_camera_name",
                details={"path": str(path), "camera": name},
            )
    if len(set(names.values())) < len(names):
        raise DataError(
            f"{path}: two cameras have the same name: {', '.join(names.values())}",
            hint="names are compared in lower case; give each camera its own",
            code="data.bad_camera_name",
            details={"path": str(path)},
        )
    return names


class _Companions(Mapping[str, FrameSource]):
    """Depth or labels of the cameras that have them; looked for only when they are asked for."""

    def __init__(
        self, archive: NpzArchive, camera_ids: Mapping[str, str], kind: str, num_frames: int
    ) -> None:
        self._archive = archive
        self._keys = {name: f"{camera}_{kind}" for camera, name in camera_ids.items()}
        self._num_frames = num_frames

    @cached_property
    def _found(self) -> dict[str, FrameSource]:
        archive = self._archive
        archive.load_headers(self._keys.values())
        return {
            name: archive.frames(key, channels=None)
            for name, key in self._keys.items()
            if key in archive and archive.header(key).shape[:1] == (self._num_frames,)
        }

    def __getitem__(self, name: str) -> FrameSource:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _language(
    ref: EpisodeRef, lowdim: Mapping[str, Array]
) -> tuple[Mapping[str, Sequence[str]], list[tuple[str, str]]]:
    """Annotations of the task, else the episode's own sentence, else the task in words."""
    if ref.language:
        return ref.language, []
    if _INSTRUCTION in lowdim and len(lowdim[_INSTRUCTION]) and str(lowdim[_INSTRUCTION][0]):
        sentence, origin = str(lowdim[_INSTRUCTION][0]), "its own language_instruction"
    else:
        sentence, origin = task_in_words(ref.task), "the task's name in words"
    if not sentence:
        message = "no language: no annotation, no language_instruction, no task in the path"
        return {}, [("no_language", message)]
    message = f"task {ref.task!r} has no language annotation: each episode uses {origin}"
    return {"original": [sentence]}, [("language_fallback", message)]


def _success(summary: Path) -> tuple[bool | None, list[tuple[str, str]]]:
    """Whether the episode succeeded; None where its summary does not say."""
    try:
        value = NpzArchive(summary).read("episode_success")
        if value.dtype.kind not in "biu":
            return None, [
                ("success_unreadable", f"{summary}: episode_success is {value.dtype}, not bool")
            ]
        return bool(value.reshape(-1)[0]), []
    except (DataError, IndexError) as error:
        reason = error.message if isinstance(error, DataError) else "it is empty"
        return None, [("success_unreadable", f"{summary}: episode_success is unknown: {reason}")]


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        # BaseLoader builds text, lists and mappings only, so camera ids stay text.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(
            f"{path}: not valid YAML: {' '.join(str(error).split())}",
            hint="the file is damaged; download or record it again",
            code="data.broken_yaml",
            details={"path": str(path)},
        ) from None
    return content if isinstance(content, Mapping) else {}


def _common_length(
    folder: Path, lowdim: Mapping[str, Array], cameras: Mapping[str, FrameSource]
) -> int:
    """The number of frames that every array agrees on."""
    lengths = {name: len(values) for name, values in lowdim.items()}
    lengths |= {f"camera {name}": len(frames) for name, frames in cameras.items()}
    expected = lengths[next(iter(cameras))] if not lowdim else next(iter(lengths.values()))
    for name, length in lengths.items():
        if length != expected:
            first = next(iter(lengths))
            raise DataError(
                f"{folder}: {name!r} has {length} frames, {first!r} has {expected}",
                hint="the episode is inconsistent; record or download it again",
                code="data.length_mismatch",
                details={"path": str(folder), "key": name},
            )
    if expected == 0:
        raise DataError(
            f"{folder}: the episode has no frames",
            hint="leave it out with --episodes, or record it again",
            code="data.empty_episode",
            details={"path": str(folder)},
        )
    return expected


def _calibration(
    folder: Path, cameras: Mapping[str, FrameSource], names: Mapping[str, str]
) -> dict[str, Calibration]:
    intrinsics = NpzArchive(folder / "intrinsics.npz")
    extrinsics = NpzArchive(folder / "extrinsics.npz")
    return {
        name: Calibration(
            camera_matrices(intrinsics, camera_id, (3, 3)),
            camera_matrices(extrinsics, camera_id, (4, 4)),
        )
        for camera_id, name in names.items()
        if name in cameras
    }


def _is_complete(group: PoseGroup, lowdim: Mapping[str, Array]) -> bool:
    keys = (group.position_key, group.rotation_key)
    return all(key in lowdim and (actual_field(key) or key) in lowdim for key in keys)


def _published_order(field: str) -> tuple[int, int]:
    """Left before right, position before rotation before gripper."""
    part = 2 if "gripper" in field else (1 if field.endswith("rot_6d") else 0)
    return (0 if "left" in field else 1, part)
