"""Recorded observations and the actions that followed, to evaluate a policy on samples.

Legend of shapes: K images of a camera, T action steps, C dimensions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vlatool.artifacts.fields import dimension_names
from vlatool.artifacts.sample import StoredSample
from vlatool.artifacts.shards.format import ShardFolder, tar_episode
from vlatool.episode import Array, Observation
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.loading.base import ActionField, DroppedSample, PairOptions, Target
from vlatool.loading.dataset import SampleDataset
from vlatool.loading.frames import check_frame, episode_named
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.config import AugmentationConfig, RoboticsDataConfig, image_names
from vlatool.loading.robotics.decode import DecodedSample
from vlatool.loading.robotics.info import RoboticsInfo, load_info
from vlatool.loading.robotics.reader import RoboticsReader
from vlatool.loading.shard_reader import ShardCache, ShardReader
from vlatool.storage.uri import pinned
from vlatool.transforms.relative import SUFFIX

if TYPE_CHECKING:
    from vlatool.loading.robotics.kind import RoboticsAssets

# Smallest standard deviation that errors are divided by.
_MIN_STD = 1e-9
# Samples fetched together to look up a frame.
_READ_AT_ONCE = 64


class RoboticsPairs:
    """Pairs of `lbm` shards; see `loading.base.RecordedPairs`.

    Samples are read with all their past steps, so that the action before the current one is known.
    """

    def __init__(
        self,
        config: RoboticsDataConfig,  # section `data` of the run
        assets: "RoboticsAssets",  # assets of the run
        info: RoboticsInfo,
        options: PairOptions,  # form of the pairs
    ) -> None:
        self.fps = info.fps
        sees = options.sees
        self._sees, self._horizon, self._anchor = sees, options.horizon, info.past
        self._offsets = sorted({step for view in sees.cameras.values() for step in view.offsets})
        # Of a relative pose a policy sees the absolute one, from which data have it computed.
        self._observed = [
            name
            for name in config.proprioception_fields
            if name in sees.fields or name.endswith(SUFFIX)
        ]
        cameras = list(sees.cameras)
        changes = {
            "camera_names": cameras,
            "image_indices": self._offsets,
            "image_names": image_names(cameras, self._offsets),
            "proprioception_fields": self._observed,
            "lowdim_past_timesteps": info.past,
            "lowdim_future_timesteps": options.horizon - 1,
            # No random crops; weights are those of the training data sets.
            "augmentation": AugmentationConfig(),
            "dataset_weighting": [],
        }
        whole = config.model_copy(update=changes)
        self._order = SampleOrder(info.datasets, OrderOptions(options.seed, shuffle=False))
        self._samples = SampleDataset(whole, info, self._order, RoboticsReader(whole, info))
        self._datasets = info.datasets
        self._shards = ShardReader(info.datasets, ShardCache.of(whole, info.datasets))
        self.fields = {name: _action_field(name, assets) for name in config.action_fields}

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, indices: Sequence[int]) -> list[tuple[Observation, Target]]:
        """Returns pairs, fetched together; see `loading.base.RecordedPairs`."""
        samples = self._samples.__getitems__(indices)
        return [(self._observation(sample), self._target(sample)) for sample in samples]

    def find(self, episode: str, frame: int) -> int:
        """Returns the index of a pair; see `loading.base.FindsFrames`.

        Data without a tar per episode are read to their end.
        """
        frames: dict[str, dict[int, int]] = {}
        for index, sample in self._stored(episode):
            metadata = sample.metadata()
            episode_frames = frames.setdefault(str(metadata.get("episode_id")), {})
            episode_frames[metadata.get("anchor_timestep", -1)] = index
        name = episode_named(dict(enumerate(sorted(frames))), episode if len(frames) > 1 else "0")
        check_frame(frame, frames[name], name)
        return frames[name][frame]

    def _stored(self, episode: str) -> Iterator[tuple[int, StoredSample]]:
        """Yields samples with their indices; only those of the episode if tars are episodes."""
        refs = list(enumerate(self._order.refs(range(len(self)))))
        (dataset,) = self._datasets
        tars = [tar_episode(shard.location) or "" for shard in dataset.shards]
        if all(tars):
            name = episode_named(dict(enumerate(tars)), episode)
            refs = [(index, ref) for index, ref in refs if tars[ref.shard] == name]
        for start in range(0, len(refs), _READ_AT_ONCE):
            rows = refs[start : start + _READ_AT_ONCE]
            read = self._shards.members([ref for _, ref in rows])
            for (index, _), members in zip(rows, read, strict=True):
                if not isinstance(members, DroppedSample):
                    yield index, StoredSample(*members)

    def _observation(self, sample: DecodedSample) -> Observation:
        first = self._anchor - self._sees.past
        past = slice(first, self._anchor)
        mask = sample.image_mask
        return Observation(
            images=self._by_camera(sample.images),
            fields={name: sample.fields[name][first : self._anchor + 1] for name in self._observed},
            instruction=sample.instruction,
            past_actions={name: sample.fields[name][past] for name in self.fields},
            past_mask=sample.past_mask[past],
            image_masks={} if mask is None else self._by_camera(mask),
            is_preprocessed=True,
        )

    def _by_camera(self, values: Array) -> Mapping[str, Array]:
        """Rows of N images, time outer, camera inner, by camera at its offsets [K, ...]."""
        cameras = self._sees.cameras
        by_offset = values.reshape(len(self._offsets), len(cameras), *values.shape[1:])
        return {
            name: by_offset[[self._offsets.index(step) for step in view.offsets], number]
            for number, (name, view) in enumerate(cameras.items())
        }

    def _target(self, sample: DecodedSample) -> Target:
        steps = slice(self._anchor, self._anchor + self._horizon)
        before = self._anchor - 1
        return Target(
            actions={name: sample.fields[name][steps] for name in self.fields},
            mask=sample.future_mask[steps],
            last={name: sample.fields[name][before] for name in self.fields if before >= 0},
            episode=str(sample.metadata["episode_id"]),
            frame=int(sample.metadata["anchor_timestep"]),
        )


def _action_field(name: str, assets: "RoboticsAssets") -> ActionField:
    statistics, is_constant = assets.statistics[name], assets.normalizer.constant([name])
    return ActionField(
        names=dimension_names(name, len(is_constant), assets.names),
        mean=np.asarray(statistics["mean"]),
        std=np.maximum(np.asarray(statistics["std"]), _MIN_STD),
        is_constant=is_constant,
    )


def pairs_info(location: str, config: RoboticsDataConfig, options: PairOptions) -> RoboticsInfo:
    """Loads the info of the data, with whole episodes in frame order if the data contain them."""
    folder = ShardFolder.open(pinned(location))
    info = load_info(RoboticsDataConfig(dataset_manifest=[str(folder.manifest)]))
    if folder.episodes is not None:
        info = replace(info, shards=(tuple(folder.episodes.shards()),))
    info.widths([*config.action_fields, *config.proprioception_fields])
    for key, needed, has in (
        ("lowdim_past_timesteps", options.sees.past, info.past),
        ("lowdim_future_timesteps", options.horizon - 1, info.future),
    ):
        if needed > has:
            raise DataError(
                f"{location}: windows have {counted(has, 'step')}, {key} of the policy is {needed}",
                hint="preprocess the data with the window size that the policy was trained on",
                code="data.window_too_large",
            )
    known = info.options[0].get("camera_names") or []
    for camera in options.sees.cameras:
        if known and camera not in known and not config.pad_missing_images:
            raise DataError(
                f"{location}: camera {camera!r} of the policy is not in the data, which have "
                f"{', '.join(known)}",
                hint="preprocess the data with the cameras that the policy was trained on",
                code="data.unknown_camera_names",
            )
    return info
