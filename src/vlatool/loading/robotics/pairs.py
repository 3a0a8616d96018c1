"""Pairs of recorded observations and the actions that followed, to evaluate a policy on.

`pairs_info` opens the data with the windows of the policy, and `RoboticsPairs` reads each sample
with all its past steps, so that the action before the current one is known.

Legend of shapes: K images of a camera, T action steps, C dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlatool.datasets.frames.layout import FramesFolder
from vlatool.datasets.lbm.layout import ShardFolder, tar_episode
from vlatool.datasets.stats.layout import Statistics
from vlatool.episode import NO_CAMERAS, Array, Observation
from vlatool.errors import DataError
from vlatool.loading import base
from vlatool.loading.lookup import check_frame, episode_named
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.config import AugmentationConfig, RoboticsDataConfig, image_names
from vlatool.loading.robotics.mixture import RoboticsAssets, RoboticsInfo, contract_of, load_info
from vlatool.loading.robotics.reader import DecodedSample, RoboticsReader
from vlatool.recordings.field_summary import dimension_names
from vlatool.storage.uri import pinned
from vlatool.transforms.relative import SUFFIX

# Smallest standard deviation that errors are divided by.
_MIN_STD = 1e-9
# Samples fetched together to look up a frame.
_READ_AT_ONCE = 64


def pairs_info(
    location: str, config: RoboticsDataConfig, options: base.PairOptions, statistics: Statistics
) -> RoboticsInfo:
    """Loads the info of the data, with whole episodes in frame order if the data contain them.

    Args:
        location: Folder of the data, of any scheme.
        config: Section `data` of the run.
        options: Form of the pairs.
        statistics: Those of the run, for fields that the data lack.
    """
    place = pinned(location)
    keys: dict[str, Any] = {"rename": config.rename, "split": options.split}
    folder = None
    if FramesFolder.find(place) is None:
        folder = ShardFolder.open(place)
        keys["dataset_manifest"] = [str(folder.manifest)]
    else:
        keys["dataset_manifest"] = [str(place)]
        steps = {
            "past_lowdim_steps": max(options.sees.past, config.lowdim_past_timesteps or 0),
            "future_lowdim_steps": options.horizon - 1,
            "image_indices": config.image_indices,
        }
        keys["windows"] = config.windows.model_copy(update=steps)
        # Only the statistics of these fields are computed.
        keys["action_fields"] = config.action_fields
        keys["proprioception_fields"] = config.proprioception_fields
    info = load_info(RoboticsDataConfig(**keys))

    fields = [*config.action_fields, *config.proprioception_fields]
    (dataset,) = info.sets
    if folder is not None and folder.episodes is not None:
        dataset = replace(dataset, shards=folder.episodes.shards())
    if config.pad_missing_fields:
        padded = frozenset(fields) - info.statistics.keys()
        dataset = replace(dataset, padded=padded)
        own = {name: statistics[name] for name in padded}
        info = replace(info, statistics={**info.statistics, **own})
    info = replace(info, sets=(dataset,))
    info.widths(fields)
    info.check_steps(options.sees.past, options.horizon - 1)
    for camera in options.sees.cameras:
        is_missing = dataset.cameras and camera not in dataset.cameras
        if is_missing and not config.pad_missing_images:
            raise DataError(
                f"{location}: camera {camera!r} of the policy is not in the data, which have "
                f"{', '.join(dataset.cameras)}",
                hint="preprocess the data with the cameras that the policy was trained on, such as "
                f"--rename cameras.{camera}=OLD",
                code="data.unknown_field",
            )
    return info


class RoboticsPairs(base.RecordedPairs):
    """Pairs of one data set; see `RecordedPairs`."""

    def __init__(
        self,
        config: RoboticsDataConfig,  # section `data` of the run
        assets: RoboticsAssets,  # assets of the run
        info: RoboticsInfo,  # result of `pairs_info`
        options: base.PairOptions,  # form of the pairs
    ) -> None:
        from vlatool.loading.dataset import SampleDataset  # imports torch

        self.fps = info.fps
        self.contract = contract_of(config, info.options, info.statistics)
        sees = options.sees
        self._sees = sees
        self._horizon = options.horizon
        self._anchor = info.past
        offsets: set[int] = set()
        for view in sees.cameras.values():
            offsets.update(view.offsets)
        self._offsets = sorted(offsets)
        self._observed: list[str] = []
        for name in config.proprioception_fields:
            # Of a relative pose a policy sees the absolute one, from which data have it computed.
            if name in sees.fields or name.endswith(SUFFIX):
                self._observed.append(name)
        cameras = list(sees.cameras)
        changes = {
            "camera_names": cameras or [NO_CAMERAS],
            "image_indices": self._offsets,
            "image_names": image_names(cameras, self._offsets),
            "proprioception_fields": self._observed,
            "lowdim_past_timesteps": info.past,
            "lowdim_future_timesteps": options.horizon - 1,
            # No random crops; weights belong to the training data sets.
            "augmentation": AugmentationConfig(),
            "dataset_weighting": [],
        }
        whole = config.model_copy(update=changes)
        self._order = SampleOrder(info.datasets, OrderOptions(options.seed, shuffle=False))
        self._reader = RoboticsReader(whole, info)
        self._samples = SampleDataset(whole, info, self._order, self._reader)
        self._shards = info.datasets[0].shards
        self._actions = config.action_fields
        self._normalizer = assets.normalizer
        fields: dict[str, base.ActionField] = {}
        for name in config.action_fields:
            if name in info.sets[0].padded:
                continue
            is_constant = assets.normalizer.constant([name])
            fields[name] = base.ActionField(
                names=dimension_names(name, len(is_constant), assets.names),
                mean=np.asarray(assets.statistics[name]["mean"]),
                std=np.maximum(np.asarray(assets.statistics[name]["std"]), _MIN_STD),
                is_constant=is_constant,
            )
        self.fields = fields

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, indices: Sequence[int]) -> list[tuple[Observation, base.Target]]:
        samples = self._samples.__getitems__(indices)
        return [(self._observation(sample), self._target(sample)) for sample in samples]

    def _observation(self, sample: DecodedSample) -> Observation:
        first = self._anchor - self._sees.past
        steps = slice(first, self._anchor + 1)
        past = slice(first, self._anchor)
        image_masks: Mapping[str, Array] = {}
        if sample.image_mask is not None:
            image_masks = self._by_camera(sample.image_mask)
        return Observation(
            images=self._by_camera(sample.images),
            fields={name: self._values(sample, name, steps) for name in self._observed},
            instruction=sample.instruction,
            past_actions={name: self._values(sample, name, past) for name in self._actions},
            past_mask=sample.past_mask[past],
            image_masks=image_masks,
            is_preprocessed=True,
        )

    def _values(self, sample: DecodedSample, name: str, steps: slice) -> Array:
        """Values of some steps; of a padded field those that are 0 when they are normalized."""
        values = sample.fields[name][steps]
        if name in sample.padded_fields:
            return self._normalizer.denormalize(name, np.zeros(values.shape))
        return values

    def _by_camera(self, values: Array) -> Mapping[str, Array]:
        """Rows of N images, time outer, camera inner, by camera at its offsets [K, ...]."""
        cameras = self._sees.cameras
        by_offset = values.reshape(len(self._offsets), len(cameras), *values.shape[1:])
        images: dict[str, Array] = {}
        for number, (name, view) in enumerate(cameras.items()):
            rows = [self._offsets.index(step) for step in view.offsets]
            images[name] = by_offset[rows, number]
        return images

    def _target(self, sample: DecodedSample) -> base.Target:
        steps = slice(self._anchor, self._anchor + self._horizon)
        before = self._anchor - 1
        last: dict[str, Array] = {}
        if before >= 0 and sample.past_mask[before]:
            last = {name: sample.fields[name][before] for name in self.fields}
        return base.Target(
            actions={name: sample.fields[name][steps] for name in self.fields},
            mask=sample.future_mask[steps],
            last=last,
            episode=str(sample.metadata["episode_id"]),
            frame=int(sample.metadata["anchor_timestep"]),
        )

    def find(self, episode: str, frame: int) -> int:
        """Returns the index of a pair; see `RecordedPairs`. Data without a tar per episode are read
        to their end.
        """
        refs = list(enumerate(self._order.refs(range(len(self)))))
        tars = [tar_episode(shard.location) or "" for shard in self._shards]
        if all(tars):
            name = episode_named(dict(enumerate(tars)), episode)
            refs = [(index, ref) for index, ref in refs if tars[ref.shard] == name]
        pairs: dict[str, dict[int, int]] = {}  # index of each frame of each episode
        for start in range(0, len(refs), _READ_AT_ONCE):
            part = refs[start : start + _READ_AT_ONCE]
            samples = self._reader.stored([ref for _, ref in part])
            for (index, _), sample in zip(part, samples, strict=True):
                if not isinstance(sample, base.DroppedSample):
                    metadata = sample.metadata()
                    frames = pairs.setdefault(str(metadata.get("episode_id")), {})
                    frames[metadata.get("anchor_timestep", -1)] = index
        name = episode_named(dict(enumerate(sorted(pairs))), episode if len(pairs) > 1 else "0")
        check_frame(frame, pairs[name], name)
        return pairs[name][frame]
