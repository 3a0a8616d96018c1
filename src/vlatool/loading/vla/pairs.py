"""Pairs of samples: observations, with the actions and the images that followed.

Legend of shapes: T action steps, A values of an action, F future steps, K codes of an image.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from vlatool.datasets.samples.episode import TokenSample
from vlatool.episode import Array, Observation, UInt8Array
from vlatool.errors import DataError
from vlatool.loading import base
from vlatool.loading.lookup import check_frame, episode_named
from vlatool.loading.vla.config import VlaAssets, VlaDataConfig, VlaSample
from vlatool.loading.vla.info import episode_spans, load_info
from vlatool.loading.vla.reader import VlaReader
from vlatool.media.images import decode_plain
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


class VlaPairs(base.RecordedPairs):
    """Pairs of samples; see `RecordedPairs`. A window with a sample of each kind is one pair.
    Recorded actions are decoded from the action ids.
    """

    has_futures: ClassVar[bool] = True

    def __init__(
        self, config: VlaDataConfig, assets: VlaAssets, location: str, *, val_ratio: float = 0.0
    ) -> None:
        self._info = load_info(
            VlaDataConfig(
                samples=[location],
                split="val",
                val_ratio=val_ratio,
                images_root=config.images_root,
                fast=config.fast,
                profile=config.profile,
            )
        )
        self._folder = self._info.first
        self._assets = assets
        trained = {**config.digests, **config.shape.__dict__, **config.sizes._asdict()}
        for key, value in self._folder.agreed.items():
            expected = trained.get(key, value)
            # Digests of published samples are unknown.
            if value != expected and value != "" and expected != "":
                raise DataError.at(
                    location,
                    f"{key} is {value}, the policy was trained on {expected}",
                    hint="build the samples with the windows and tokenizers of its training data",
                    code="data.mismatch",
                )
        kinds = self._folder.samples.document.get("kinds") or {}
        counts = [count for count in kinds.values() if count]
        # The two samples of a window have the same images and action ids.
        self._per_frame = 2 if len(counts) > 1 and len({*counts}) == 1 else 1
        self._reader = VlaReader(self._info)
        self.fps = self._folder.assets.fps
        self.contract = self._folder.assets.contract
        profile = assets.profile
        self.fields = {
            assets.shape.action_field: base.ActionField(
                names=profile.dimensions,
                mean=np.asarray(profile.mean, np.float64),
                std=np.asarray(profile.std, np.float64),
                is_constant=profile.is_held,
            )
        }

    @cached_property
    def _episodes(self) -> list[_Episode]:
        episodes: list[_Episode] = []
        start = 0
        spans = episode_spans(self._folder.samples, self._folder.spans)
        # An episode may continue in the next file.
        for name, group in groupby(spans, lambda item: item[0]):
            of_episode = [span for _, span in group]
            frames = sum(span.size for span in of_episode) // self._per_frame
            episodes.append(_Episode(name, start, of_episode[0].first, frames))
            start += frames
        return episodes

    def __len__(self) -> int:
        return self._episodes[-1].start + self._episodes[-1].frames

    def _place(self, index: int) -> tuple[_Episode, int]:
        """Episode of a pair, and number of the pair in it."""
        for episode in reversed(self._episodes):
            if episode.start <= index:
                return episode, index - episode.start
        raise IndexError(index)

    def _sample(self, episode: _Episode, pair: int) -> TokenSample:
        return self._folder.samples.sample(episode.number + pair * self._per_frame)

    def _frame(self, episode: _Episode, pair: int) -> int:
        """Frame of a pair by the name of its newest image, or else its number."""
        images = self._sample(episode, pair).images
        match = _FRAME.search(PurePosixPath(images[-1]).stem) if images else None
        return int(match[1]) if match else pair

    def find(self, episode: str, frame: int) -> int:
        names = [entry.name for entry in self._episodes]
        numbers: list[int] = []
        for name in names:
            match = _NUMBER.search(name)
            if match:
                numbers.append(int(match[1]))
        if len({*numbers}) < len(names):
            numbers = list(range(len(names)))
        name = episode_named(dict(zip(numbers, names, strict=True)), episode)
        entry = self._episodes[names.index(name)]
        indices = {self._frame(entry, pair): entry.start + pair for pair in range(entry.frames)}
        check_frame(frame, indices, name)
        return indices[frame]

    def read(self, indices: Sequence[int]) -> list[tuple[Observation, base.Target]]:
        places = [self._place(index) for index in indices]
        starts = [span.first for span in self._folder.spans]
        refs: list[base.SampleRef] = []
        for episode, pair in places:
            number = episode.number + pair * self._per_frame
            shard = bisect_right(starts, number) - 1
            refs.append(base.SampleRef(0, shard, number - starts[shard]))
        samples = self._reader.read(refs, [np.random.default_rng(0)] * len(refs))
        pairs: list[tuple[Observation, base.Target]] = []
        for (episode, pair), sample in zip(places, samples, strict=True):
            if isinstance(sample, base.DroppedSample):
                raise DataError(
                    sample.message,
                    hint="build the samples again, or copy the images again",
                    code="data.broken",
                    details={"reason": sample.reason, "sample": sample.sample},
                )
            pairs.append((self._observation(sample), self._target(episode, pair, sample)))
        return pairs

    def _observation(self, sample: VlaSample) -> Observation:
        images: dict[str, UInt8Array] = {}
        cameras = self._assets.shape.cameras
        for number, name in enumerate(cameras):  # time outer, camera inner
            images[name] = sample.images[number :: len(cameras)]
        return Observation(
            images=images, instruction=sample.conversation.task, is_preprocessed=True
        )

    def _target(self, episode: _Episode, pair: int, sample: VlaSample) -> base.Target:
        steps = self._assets.shape.action_steps
        field = self._assets.shape.action_field
        last: dict[str, Array] = {}
        if pair:
            before = self._sample(episode, pair - 1).conversation
            last[field] = self._actions(before.action_ids)[0]
        return base.Target(
            actions={field: self._actions(sample.conversation.action_ids)},
            mask=pair + np.arange(steps) < episode.frames,
            last=last,
            episode=episode.name,
            frame=self._frame(episode, pair),
        )

    def _actions(self, action_ids: Sequence[int]) -> Array:
        """Actions [T, A] of action ids."""
        shape = self._assets.shape
        fast = self._assets.fast
        assert fast is not None
        chunks, problems = fast.decode([action_ids], shape.action_steps, shape.action_width)
        if problems[0] is not None:
            raise DataError.at(
                self._folder.samples.path,
                problems[0],
                hint="build the samples again",
                code="data.broken",
            )
        return self._info.profile.denormalize(chunks[0])

    def futures(self, index: int) -> base.RecordedFutures:
        episode, pair = self._place(index)
        cameras = self._assets.shape.cameras
        steps = self._assets.shape.future_steps
        codes = self._sample(episode, pair).conversation.codes.reshape(steps, len(cameras), -1)
        # The newest images of the pairs that follow; after the end of the episode its last ones.
        names: list[Sequence[str]] = []
        for step in range(steps):
            following = min(pair + 1 + step, episode.frames - 1)
            names.append(self._sample(episode, following).images[-len(cameras) :])
        images: dict[str, UInt8Array] = {}
        for number, camera in enumerate(cameras):
            images[camera] = np.stack([self._image(row[number]) for row in names])
        return base.RecordedFutures(
            images=images,
            codes={camera: codes[:, number] for number, camera in enumerate(cameras)},
            mask=pair + 1 + np.arange(steps) < episode.frames,
        )

    def _image(self, name: str) -> UInt8Array:
        path = self._folder.image_path(name)
        try:
            return decode_plain(read_file(path))
        except (OSError, ValueError) as error:
            raise DataError.at(
                path, str(error), hint="copy the image again", code="data.broken"
            ) from None
