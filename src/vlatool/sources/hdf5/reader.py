"""HDF5 recordings: robomimic, Isaac Lab, LIBERO and ALOHA by structure, others by a mapping.

Source: formats/hdf5 1 to 3.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlatool.artifacts.images import decode_rgb
from vlatool.config.base import ConfigModel, option
from vlatool.episode import Episode, EpisodeRef, FieldSpec, FrameSource, Survey, UInt8Array
from vlatool.errors import DataError, VlatoolError
from vlatool.findings import Finding, FindingCodes
from vlatool.sources import base
from vlatool.sources.frames import SingleImages, video_beside
from vlatool.sources.hdf5 import rules
from vlatool.sources.language import first_text, recorded_language
from vlatool.sources.mapping import RecordingMapping, proposal, read_mapping
from vlatool.sources.rules import distinct_recordings
from vlatool.storage.tree import natural_key, walk
from vlatool.storage.uri import can_list, location


class Hdf5Config(ConfigModel):
    """Options of HDF5 recordings. What files do not store is given here."""

    fps: float | None = option(None, "Frames per second; null: that of the file.", gt=0)
    instruction: str | None = option(None, "Instruction of all episodes; null: that of the file.")
    mapping: str | None = option(
        None, "YAML file that names cameras and fields; null: find the layout by structure."
    )
    mask: str | None = option(
        None, "Read the episodes that mask/NAME of each file lists, as train."
    )


class Hdf5Images(SingleImages):
    """A dataset of images, read row by row; opened at the first read and held until `close`."""

    def __init__(
        self,
        place: tuple[Path, str],  # file, and path of the dataset in it
        kind: rules.Kind,
        shape: tuple[int, int, int],  # (frames, height, width)
        *,
        bgr: bool,
    ) -> None:
        self._path, self._name = place
        self._kind = kind
        self._shape = shape
        self._bgr = bgr
        self._open: tuple[Any, Any] | None = None

    def __len__(self) -> int:
        return self._shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    @property
    def size(self) -> tuple[int, int]:
        return self._shape[1:]

    def encoded(self, index: int) -> bytes | None:
        """The stored JPEG or PNG; None for arrays, and where colors are swapped."""
        return self._row(index) if self._kind == "encoded" and not self._bgr else None

    def close(self) -> None:
        if self._open is not None:
            self._open[0].__exit__(None, None, None)
            self._open = None

    def image(self, index: int) -> UInt8Array:
        if self._kind == "pixels":
            image = self._reading(index, lambda dataset: np.asarray(dataset[index], np.uint8))
        else:
            try:
                image = decode_rgb(self._row(index))
            except ValueError as error:
                raise self.image_error(index, str(error)) from error
        return image[..., ::-1] if self._bgr else image

    def _row(self, index: int) -> bytes:
        return self._reading(index, lambda dataset: rules.row_bytes(dataset, index))

    def _reading(self, index: int, read: Any) -> Any:
        with rules.readable(self._path, f"{self._name}: frame {index}"):
            if self._open is None:
                context = rules.opened(self._path, rules.CACHE)
                self._open = context, context.__enter__()[self._name]
            return read(self._open[1])

    def image_error(self, index: int, reason: str) -> DataError:
        place = f"{self._name}: frame {index}"
        return rules.HDF5.error("unreadable", self._path, place, reason, frame=index)


class Hdf5Reader(base.FormatReader):
    """Reader of HDF5 recordings; a source is a file or a folder of files."""

    Config: ClassVar[type[ConfigModel]] = Hdf5Config
    findings: ClassVar[FindingCodes | None] = rules.HDF5
    config: Hdf5Config

    @cached_property
    def _mapping(self) -> RecordingMapping | None:
        name = self.config.mapping
        return None if name is None else read_mapping(location(name), RecordingMapping)

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every group that is an episode, by file in natural order; reads names, no values."""
        findings: list[Finding] = []
        searched = f"files {', '.join(rules.SUFFIXES)}"
        files = distinct_recordings(sources, _files, searched, findings)
        self.source_findings = findings
        yield from self._refs(files)

    def _refs(self, files: Sequence[tuple[Path, Path]]) -> Iterator[EpisodeRef]:
        used: dict[str, int] = {}
        for path, source in files:
            with rules.opened(path) as file:
                layout = rules.layout_of(file, path, self._mapping)
                self.layout = self.layout or layout.name
                mask = self.config.mask
                chosen = None if mask is None else rules.masked(file, mask, path)
            for group in layout.groups:
                name = group.rpartition("/")[2]
                if chosen is not None and name not in chosen:
                    continue
                identity = "_".join(base.id_part(part) for part in (path.stem, name) if part)
                yield EpisodeRef(
                    id=base.unused_id(identity, used),
                    path=path,
                    source=str(source),
                    number=_number(name) if len(files) == 1 else None,
                    extras={"name": group, "actions": layout.actions},
                )

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras, fields and lengths from shapes; no row is read."""
        reasons: list[VlatoolError] = []
        surveys: list[Survey] = []
        for path, of_file in groupby(refs, key=lambda ref: ref.path):
            with ExitStack() as held:
                with suppress(DataError):  # which each episode raises again
                    held.enter_context(rules.opened(path))  # the library shares what it has read
                surveys += base.survey_each(self._survey, of_file, reasons)
        return base.merge_surveys(surveys, reasons)

    def _survey(self, ref: EpisodeRef) -> Survey:
        with self._opened(ref) as (group, mapping, contents):
            cameras = self._cameras(ref, group, mapping, contents)
            fps = self._fps(ref, group, mapping, rules.stored_facts(group.file)[0])
            return Survey(
                1,
                {name: camera.size for name, camera in cameras.items()},
                {
                    name: FieldSpec(int(np.prod(dataset.shape[1:], dtype=np.int64)))
                    for name, dataset in contents.fields.items()
                },
                contents.num_frames,
                fps or None,
                tuple(mapping.action_fields),
                tuple(mapping.proprioception_fields),
                text_kinds=tuple(mapping.language),
            )

    def read(self, ref: EpisodeRef) -> Episode:
        with self._opened(ref) as (group, mapping, contents):
            stored, instruction, task = rules.stored_facts(group.file)
            texts = {"original": [instruction]}
            references = {"original": mapping.instruction, **mapping.language}
            for kind, reference in references.items():
                if reference:
                    texts[kind] = rules.texts_at(group, reference, ref.path, contents.num_frames)
            option = self.config.instruction
            language, findings = recorded_language(ref, contents.num_frames, texts, option)
            success = self._success(ref, group, mapping)
            counted = group.attrs.get("num_samples")
            if counted is not None and int(counted) != contents.num_frames:
                reason = f"num_samples is {counted}, the episode has {contents.num_frames} frames"
                findings.append(rules.HDF5.at("not_counted", ref.path, reason, episode=ref.id))
            if contents.others:
                names = ", ".join(contents.others)
                findings.append(rules.HDF5("ignored", f"{ref.id}: left out: {names}"))
            return Episode(
                id=ref.id,
                task=task or first_text(language),
                fps=self._fps(ref, group, mapping, stored),
                num_frames=contents.num_frames,
                cameras=self._cameras(ref, group, mapping, contents),
                lowdim={
                    name: rules.columns(dataset, ref.path)
                    for name, dataset in contents.fields.items()
                },
                language=language[0],
                language_spans=tuple(language[1]),
                success=success,
                action_fields=tuple(mapping.action_fields),
                proprioception_fields=tuple(mapping.proprioception_fields),
                findings=tuple(findings),
                extras={"source_episode": f"{ref.path.name}:{ref.extras['name']}"},
            )

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first episode, with questions as comments."""
        path = next(iter(_files(source)), None)
        if path is None:
            return None
        with rules.opened(path) as file, rules.readable(path):
            return proposal(*rules.proposed(file))

    def _opened(self, ref: EpisodeRef) -> Any:
        return rules.episode_at(ref.path, **ref.extras, mapping=self._mapping)

    def _fps(
        self, ref: EpisodeRef, group: Any, mapping: RecordingMapping, stored: float | None
    ) -> float:
        """Frames per second, 0 if unknown; the option comes before the mapping and the file."""
        if mapping.fps:
            stored = float(rules.value_at(group, mapping.fps, ref.path))
        return self.config.fps or stored or 0.0

    @staticmethod
    def _success(ref: EpisodeRef, group: Any, mapping: RecordingMapping) -> bool | None:
        if mapping.success:
            return bool(rules.value_at(group, mapping.success, ref.path))
        stored = group.attrs.get("success")
        return None if stored is None else bool(stored)

    @staticmethod
    def _cameras(
        ref: EpisodeRef, group: Any, mapping: RecordingMapping, contents: rules.Contents
    ) -> Mapping[str, FrameSource]:
        cameras: dict[str, FrameSource] = {}
        for name, camera in mapping.cameras.items():
            if camera.path:
                dataset, kind, (height, width) = contents.images[name]
                shape = contents.num_frames, height, width
                cameras[name] = Hdf5Images((ref.path, dataset), kind, shape, bgr=camera.bgr)
                continue
            episode = group.name.rpartition("/")[2]
            file = camera.video.format(stem=ref.path.stem, episode=episode)
            path = ref.path.parent / file
            cameras[name] = video_beside(path, contents.num_frames, rules.HDF5)
        return cameras


def _number(name: str) -> int | None:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) <= 9 else None


def _files(source: Path) -> list[Path]:
    """HDF5 files at or below a source, in natural order."""
    if source.suffix.lower() in rules.SUFFIXES and source.is_file():
        return [source]
    names = [
        folder / name
        for folder, _, files in (walk(source) if can_list(source) else ())
        for name in files
        if name.lower().endswith(rules.SUFFIXES)
    ]
    return sorted(names, key=natural_key)
