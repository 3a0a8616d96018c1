"""Recorded observations of samples, the actions and the images that followed.

Legend of shapes: V cameras, P past steps, T action steps, A values of an action, F future steps, K
codes of an image.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import PurePosixPath

import numpy as np

from vlatool.artifacts.images import decode_plain
from vlatool.artifacts.samples.lines import TokenSample
from vlatool.episode import Array, Observation, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.base import (
    ActionField,
    DroppedSample,
    RecordedFutures,
    SampleRef,
    Target,
)
from vlatool.loading.frames import check_frame, episode_named
from vlatool.loading.vla.config import VlaDataConfig
from vlatool.loading.vla.info import VlaFolder, episode_spans, load_info
from vlatool.loading.vla.reader import VlaReader
from vlatool.loading.vla.sample import VlaAssets, VlaSample
from vlatool.storage.byte_ranges import read_file

_FRAME = re.compile(r"_frame_(\d+)\Z")
_NUMBER = re.compile(r"(\d+)\Z")


@dataclass(frozen=True)
class _Episode:
    """Consecutive samples of an episode, in the order of its frames."""

    name: str  # id of the episode
    start: int  # index of its first pair
    number: int  # number in the folder of its first sample
    frames: int  # number of its pairs


class VlaPairs:
    """Pairs of samples; see `loading.base.RecordedPairs`.

    A window with a sample of each kind is one pair. Recorded actions are those of the action ids.
    """

    def __init__(self, config: VlaDataConfig, assets: VlaAssets, location: str) -> None:
        self._info = load_info(
            VlaDataConfig(
                samples=[location],
                split="val",
                images_root=config.images_root,
                fast=config.fast,
                profile=config.profile,
            )
        )
        self._folder = self._info.first
        self._assets = assets
        _check_agrees(config, self._folder, location)
        kinds = self._folder.samples.document.get("kinds") or {}
        counts = [count for count in kinds.values() if count]
        # The two samples of a window have the same images and action ids.
        self._per_frame = 2 if len(counts) > 1 and len({*counts}) == 1 else 1
        self._reader = VlaReader(self._info)
        self.fps = self._folder.fps

    @property
    def fields(self) -> Mapping[str, ActionField]:
        profile = self._assets.profile
        assert profile is not None
        std = np.asarray(profile.std, np.float64)
        return {
            self._assets.shape.action_field: ActionField(
                names=profile.dimensions,
                mean=np.asarray(profile.mean, np.float64),
                std=std,
                is_constant=np.zeros(len(std), np.bool_),
            )
        }

    def __len__(self) -> int:
        return self._episodes[-1].start + self._episodes[-1].frames

    def find(self, episode: str, frame: int) -> int:
        """Returns the index of a pair; see `loading.base.FindsFrames`."""
        names = [entry.name for entry in self._episodes]
        matches = [_NUMBER.search(name) for name in names]
        numbers = [int(match[1]) for match in matches if match]
        if len({*numbers}) < len(names):
            numbers = list(range(len(names)))
        name = episode_named(dict(zip(numbers, names, strict=True)), episode)
        chosen = self._episodes[names.index(name)]
        frames = {
            self._frame(chosen, index): chosen.start + index for index in range(chosen.frames)
        }
        check_frame(frame, frames, name)
        return frames[frame]

    def read(self, indices: Sequence[int]) -> list[tuple[Observation, Target]]:
        """Returns pairs, fetched together; see `loading.base.RecordedPairs`."""
        located = [self._place(index) for index in indices]
        refs = [self._ref(entry, at) for entry, at in located]
        samples = self._reader.read(refs, [np.random.default_rng(0)] * len(refs))
        rows: list[tuple[Observation, Target]] = []
        for (entry, at), sample in zip(located, samples, strict=True):
            if isinstance(sample, DroppedSample):
                raise DataError(
                    sample.message,
                    hint="build the samples again, or copy the images again",
                    code=f"data.{sample.reason}",
                    details={"sample": sample.sample},
                )
            rows.append((self._observation(sample), self._target(entry, at, sample)))
        return rows

    def futures(self, index: int) -> RecordedFutures:
        """Returns the images that followed a pair; see `loading.base.HasFutures`."""
        entry, at = self._place(index)
        cameras, steps = self._assets.shape.cameras, self._assets.shape.future_steps
        codes = self._sample(entry, at).conversation.codes.reshape(steps, len(cameras), -1)
        after = [min(at + 1 + step, entry.frames - 1) for step in range(steps)]
        names = [self._sample(entry, step).images[-len(cameras) :] for step in after]
        return RecordedFutures(
            images={
                camera: np.stack([self._image(row[number]) for row in names])
                for number, camera in enumerate(cameras)
            },
            codes={camera: codes[:, number] for number, camera in enumerate(cameras)},
            mask=at + 1 + np.arange(steps) < entry.frames,
        )

    @cached_property
    def _episodes(self) -> list[_Episode]:
        entries: list[_Episode] = []
        start = 0
        spans = episode_spans(self._folder.samples, self._folder.spans)
        # An episode may continue in the next file.
        for name, group in groupby(spans, lambda item: item[0]):
            of_episode = [span for _, span in group]
            frames = sum(span.size for span in of_episode) // self._per_frame
            entries.append(_Episode(name, start, of_episode[0].first, frames))
            start += frames
        return entries

    def _place(self, index: int) -> tuple[_Episode, int]:
        entry = next(entry for entry in reversed(self._episodes) if entry.start <= index)
        return entry, index - entry.start

    def _ref(self, entry: _Episode, at: int) -> SampleRef:
        number = entry.number + at * self._per_frame
        shard = next(
            shard
            for shard, span in enumerate(self._folder.spans)
            if span.first <= number < span.first + span.size
        )
        return SampleRef(0, shard, number - self._folder.spans[shard].first)

    def _sample(self, entry: _Episode, at: int) -> TokenSample:
        return self._folder.samples.sample(entry.number + at * self._per_frame)

    def _frame(self, entry: _Episode, at: int) -> int:
        """Frame of a pair by the name of its newest image, or else its index."""
        images = self._sample(entry, at).images
        match = _FRAME.search(PurePosixPath(images[-1]).stem) if images else None
        return int(match[1]) if match else at

    def _image(self, name: str) -> UInt8Array:
        path = self._folder.image_path(name)
        try:
            return decode_plain(read_file(path))
        except (OSError, ValueError) as error:
            raise DataError.at(
                path, str(error), hint="copy the image again", code="data.broken_image"
            ) from None

    def _observation(self, sample: VlaSample) -> Observation:
        cameras = self._assets.shape.cameras
        return Observation(
            images={
                name: sample.images[number :: len(cameras)] for number, name in enumerate(cameras)
            },
            instruction=sample.conversation.task,
            is_preprocessed=True,
        )

    def _target(self, entry: _Episode, at: int, sample: VlaSample) -> Target:
        steps, field = self._assets.shape.action_steps, self._assets.shape.action_field
        before = {}
        if at:
            before = {field: self._actions(self._sample(entry, at - 1).conversation.action_ids)[0]}
        return Target(
            actions={field: self._actions(sample.conversation.action_ids)},
            mask=at + np.arange(steps) < entry.frames,
            last=before,
            episode=entry.name,
            frame=self._frame(entry, at),
        )

    def _actions(self, action_ids: Sequence[int]) -> Array:
        """Actions [T, A] of action ids."""
        shape, fast, profile = self._assets.shape, self._assets.fast, self._assets.profile
        assert fast is not None
        assert profile is not None
        chunks, problems = fast.decode([action_ids], shape.action_steps, shape.action_width)
        if problems[0] is not None:
            raise DataError.at(
                self._folder.samples.path,
                problems[0],
                hint="build the samples again",
                code="data.broken_samples",
            )
        return profile.denormalize(chunks[0]).astype(np.float64)


def _check_agrees(config: VlaDataConfig, folder: VlaFolder, location: str) -> None:
    """Raises DataError if samples have another form than those of the run."""
    known = {**config.digests, **config.shape.__dict__, **config.sizes._asdict()}
    for key, value in folder.agreed.items():
        expected = known.get(key, value)
        # Digests of published samples are unknown.
        if value != expected and value != "" and expected != "":
            raise DataError.at(
                location,
                f"{key} is {value}, the policy was trained on {expected}",
                hint="build the samples with the windows and tokenizers of its training data",
                code="data.datasets_differ",
            )
