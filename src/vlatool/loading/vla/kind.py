"""Data kind of samples for a language model with images: reader, check, pairs.

Legend of shapes: V cameras, P past steps, T action steps, A values of an action, F future steps, K
codes of an image.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from vlatool.config.base import derivation_rules
from vlatool.episode import Array, Observation, UInt8Array
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter, counted
from vlatool.formats.contract import CONTRACT, Contract
from vlatool.formats.fast.layout import is_fast, read_fast, write_fast
from vlatool.formats.media.images import NotRgbError, decode_plain
from vlatool.formats.samples.episode import TokenSample
from vlatool.formats.samples.layout import FAST_NAME
from vlatool.formats.samples.profile import NAME as PROFILE_NAME
from vlatool.formats.samples.profile import has_profile, read_profile, write_profile
from vlatool.loading import base
from vlatool.loading.shard_reader import BROKEN_SAMPLE, check_frame, episode_named
from vlatool.loading.vla.config import VlaAssets, VlaDataConfig, VlaSample
from vlatool.loading.vla.info import VlaFolder, VlaInfo, episode_spans, load_info
from vlatool.report.text import few_text
from vlatool.storage.background import in_parallel
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.tree import file_names
from vlatool.storage.uri import is_remote

OTHER_SHAPE = "other_shape"
MISSING_IMAGE = "missing_image"
BROKEN_IMAGE = "broken_image"
NOT_RGB = "not_rgb"
OTHER_SIZE = "other_image_size"
DROP_REASONS = (BROKEN_SAMPLE, OTHER_SHAPE, MISSING_IMAGE, BROKEN_IMAGE, NOT_RGB, OTHER_SIZE)

_MAX_REQUESTS = 32


class UnusableError(Exception):
    """Reason why a sample cannot be used, one of `DROP_REASONS`, and its description."""


class VlaReader(base.SampleReader):
    """Reads lines or packed samples, and decodes their images; picklable."""

    def __init__(self, info: VlaInfo) -> None:
        self._info = info

    def read(
        self, refs: Sequence[base.SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[VlaSample | base.DroppedSample]:
        return self.read_into(refs, rngs, partial(np.empty, dtype=np.uint8))

    def read_into(
        self,
        refs: Sequence[base.SampleRef],
        rngs: Sequence[np.random.Generator],
        allocate: base.Allocate,
    ) -> list[VlaSample | base.DroppedSample]:
        shape = self._info.first.shape.past_images, *self._info.first.shape.image_size, 3
        rows = allocate(len(refs) * math.prod(shape)).reshape(len(refs), *shape)
        results: list[VlaSample | base.DroppedSample] = []
        used = 0
        for ref in refs:
            folder = self._info.folders[ref.dataset]
            number = folder.spans[ref.shard].first + ref.sample
            key = sample_key(folder, number)
            try:
                sample = read_sample(folder, number)
                _fill(rows[used], folder, sample.images)
            except UnusableError as error:
                reason, message = error.args
                results.append(base.DroppedSample(reason, key, f"{key}: {message}"))
                continue
            results.append(VlaSample(key, sample.conversation, rows[used]))
            used += 1
        return results

    def __reduce__(self) -> tuple[type["VlaReader"], tuple[VlaInfo]]:
        return (VlaReader, (self._info,))


def sample_key(folder: VlaFolder, number: int) -> str:
    """File of a sample, and number of its line from 1."""
    name, at = folder.samples.locate(number)
    return f"{folder.samples.path / name}:{at + 1}"


def read_sample(folder: VlaFolder, number: int) -> TokenSample:
    """Sample by its number in the folder; `UnusableError` if it does not fit the others."""
    try:
        sample = folder.samples.sample(number)
    except DataError as error:
        raise UnusableError(BROKEN_SAMPLE, error.message) from None
    expected = folder.shape.past_images, folder.shape.future_images
    counts = len(sample.images), len(sample.conversation.codes)
    if counts != expected:
        raise UnusableError(
            OTHER_SHAPE,
            f"has {counted(counts[0], 'past image')} and codes of {counted(counts[1], 'image')}, "
            f"expected {expected[0]} and {expected[1]}",
        )
    return sample


def _fill(row: UInt8Array, folder: VlaFolder, names: Sequence[str]) -> None:
    """Decodes the images of a sample; an image that occurs twice is decoded once; `row`: uint8 [P,
    H, W, 3], written.
    """
    paths = {name: folder.image_path(name) for name in dict.fromkeys(names)}
    first_of: dict[str, int] = {}
    for name, data in zip(paths, _contents(paths.values()), strict=True):
        at = names.index(name)
        row[at] = _decoded(paths[name], data, folder.shape.image_size)
        first_of[name] = at
    for at, name in enumerate(names):
        if first_of[name] != at:
            row[at] = row[first_of[name]]


def _contents(paths: Iterable[Path]) -> Iterable[bytes | None]:
    """Content of each file, None for missing ones; remote files are read concurrently."""
    listed = list(paths)
    each: Callable[..., Iterable[bytes | None]] = map
    if any(map(is_remote, listed)):
        each = partial(in_parallel, max_concurrent=_MAX_REQUESTS)
    return each(_content, listed)


def _content(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _decoded(path: Path, data: bytes | None, size: tuple[int, int]) -> UInt8Array:
    """Pixels uint8 [H, W, 3] of an image; `UnusableError` if it has none of this size."""
    if data is None:
        raise UnusableError(MISSING_IMAGE, f"the image {path} is missing")
    try:
        pixels = decode_plain(data)
    except NotRgbError as error:
        raise UnusableError(NOT_RGB, f"the image {path} {error}") from None
    except ValueError as error:
        raise UnusableError(BROKEN_IMAGE, f"the image {path} cannot be decoded: {error}") from None
    if pixels.shape[:2] != size:
        actual, expected = (f"{height} x {width}" for height, width in (pixels.shape[:2], size))
        raise UnusableError(
            OTHER_SIZE, f"the image {path} has {actual} pixels, the first one has {expected}"
        )
    return pixels


# Samples that are read at most, evenly spaced; about 0.3 ms each.
_MAX_SAMPLES = 20_000


def check_samples(info: VlaInfo, reporter: Reporter = NULL) -> None:
    """Raises an error for the first sample that cannot be used; reads at most 20,000. Data on
    remote storage are not read.
    """
    local = [folder for folder in info.folders if not is_remote(folder.samples.path)]
    count = sum(folder.num_samples for folder in local)
    step = max(1, -(-count // _MAX_SAMPLES))
    known: dict[Path, frozenset[str]] = {}
    with reporter.progress("checking samples", -(-count // step), "samples") as bar:
        for folder, number in islice(_numbers(local), 0, None, step):
            try:
                names = read_sample(folder, number).images
                for path in dict.fromkeys(map(folder.image_path, names)):
                    if path.parent not in known:
                        known[path.parent] = file_names(path.parent)
                    if path.name not in known[path.parent]:
                        raise UnusableError(MISSING_IMAGE, f"the image {path} is missing")
            except UnusableError as error:
                reason, message = error.args
                key = sample_key(folder, number)
                raise DataError(
                    f"{key}: {message.removeprefix(f'{key}: ')}",
                    hint="run `vlatool verify` on the samples; to leave out what cannot be used, "
                    "set data.max_dropped_share",
                    code="data.broken",
                    details={"reason": reason, "sample": key},
                ) from None
            bar.advance()


def _numbers(folders: list[VlaFolder]) -> Iterator[tuple[VlaFolder, int]]:
    for folder in folders:
        for span in folder.spans:
            for number in range(span.first, span.first + span.size):
                yield folder, number


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
    Recorded actions are those of the action ids.
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
        known = {**config.digests, **config.shape.__dict__, **config.sizes._asdict()}
        for key, value in self._folder.agreed.items():
            expected = known.get(key, value)
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
        self.fps = self._folder.fps
        self.contract = self._folder.contract
        profile = assets.profile
        std = np.asarray(profile.std, np.float64)
        self.fields = {
            assets.shape.action_field: base.ActionField(
                names=profile.dimensions,
                mean=np.asarray(profile.mean, np.float64),
                std=std,
                is_constant=profile.is_held,
            )
        }

    def __len__(self) -> int:
        return self._episodes[-1].start + self._episodes[-1].frames

    def find(self, episode: str, frame: int) -> int:
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

    def read(self, indices: Sequence[int]) -> list[tuple[Observation, base.Target]]:
        located = [self._place(index) for index in indices]
        refs = [self._ref(entry, at) for entry, at in located]
        samples = self._reader.read(refs, [np.random.default_rng(0)] * len(refs))
        rows: list[tuple[Observation, base.Target]] = []
        for (entry, at), sample in zip(located, samples, strict=True):
            if isinstance(sample, base.DroppedSample):
                raise DataError(
                    sample.message,
                    hint="build the samples again, or copy the images again",
                    code="data.broken",
                    details={"reason": sample.reason, "sample": sample.sample},
                )
            rows.append((self._observation(sample), self._target(entry, at, sample)))
        return rows

    def futures(self, index: int) -> base.RecordedFutures:
        entry, at = self._place(index)
        cameras = self._assets.shape.cameras
        steps = self._assets.shape.future_steps
        codes = self._sample(entry, at).conversation.codes.reshape(steps, len(cameras), -1)
        after = [min(at + 1 + step, entry.frames - 1) for step in range(steps)]
        names = [self._sample(entry, step).images[-len(cameras) :] for step in after]
        return base.RecordedFutures(
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

    def _ref(self, entry: _Episode, at: int) -> base.SampleRef:
        number = entry.number + at * self._per_frame
        shard = next(
            shard
            for shard, span in enumerate(self._folder.spans)
            if span.first <= number < span.first + span.size
        )
        return base.SampleRef(0, shard, number - self._folder.spans[shard].first)

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
                path, str(error), hint="copy the image again", code="data.broken"
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

    def _target(self, entry: _Episode, at: int, sample: VlaSample) -> base.Target:
        steps = self._assets.shape.action_steps
        field = self._assets.shape.action_field
        before = {}
        if at:
            before = {field: self._actions(self._sample(entry, at - 1).conversation.action_ids)[0]}
        return base.Target(
            actions={field: self._actions(sample.conversation.action_ids)},
            mask=at + np.arange(steps) < entry.frames,
            last=before,
            episode=entry.name,
            frame=self._frame(entry, at),
        )

    def _actions(self, action_ids: Sequence[int]) -> Array:
        """Actions [T, A] of action ids."""
        shape = self._assets.shape
        fast = self._assets.fast
        profile = self._info.profile
        assert fast is not None
        chunks, problems = fast.decode([action_ids], shape.action_steps, shape.action_width)
        if problems[0] is not None:
            raise DataError.at(
                self._folder.samples.path,
                problems[0],
                hint="build the samples again",
                code="data.broken",
            )
        return profile.denormalize(chunks[0])


class VlaKind(base.DataKind):
    """Samples with numbers for actions and future images; see `loading.base.DataKind`."""

    name: ClassVar[str] = "vla"
    Config: ClassVar[type[base.LoadingConfig]] = VlaDataConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("samples",)
    drop_reasons: ClassVar[tuple[str, ...]] = DROP_REASONS

    def load_info(self, config: VlaDataConfig, reporter: Reporter = NULL) -> VlaInfo:  # pyright: ignore[reportIncompatibleMethodOverride] - a cached_property is read-only, too
        return load_info(config, reporter)

    def validation(self, config: VlaDataConfig) -> VlaDataConfig | None:
        """Returns the section of `val_samples`, or of the episodes that `val_ratio` selects."""
        if not config.val_samples and not config.val_ratio:
            return None
        changes: dict[str, Any] = {"val_samples": [], "split": "val", "shuffle": False}
        if config.val_samples:
            changes |= {"samples": config.val_samples, "dataset_weighting": []}
        return config.model_copy(update=changes)

    def derive(self, config: VlaDataConfig, info: VlaInfo) -> tuple[VlaDataConfig, dict[str, str]]:
        """Fills in shape, sizes and digests, which all data sets share."""
        first = info.first
        values = {
            **asdict(first.shape),
            "cameras": list(first.shape.cameras),
            "fps": first.fps,
            "codes_per_image": first.sizes.codes_per_image,
            "num_codes": first.sizes.codebook_size,
            "num_actions": first.sizes.action_ids,
            "codes_digest": first.codes_digest,
            "fast_digest": first.fast_digest,
            "profile_digest": first.profile.digest,
        }
        return config.model_copy(update=values), derivation_rules(config, values)

    def check_samples(
        self, config: VlaDataConfig, info: VlaInfo, reporter: Reporter = NULL
    ) -> None:
        """Checks lines and names of images, unless samples may be dropped."""
        if info.profile.held:
            listed = few_text(list(info.profile.held))
            reporter.note(f"never change in the data, so the policy holds them: {listed}")
        if not config.max_dropped_share:
            check_samples(info, reporter)

    def contents(self, config: VlaDataConfig, sample: VlaSample) -> Mapping[str, Any]:
        conversation = sample.conversation
        return {
            "images": sample.images,
            "actions": conversation.action_ids,
            "codes": conversation.codes,
            "instruction": conversation.task,
        }

    def reader(self, config: VlaDataConfig, info: VlaInfo) -> VlaReader:
        return VlaReader(info)

    def make_assets(self, config: VlaDataConfig, info: VlaInfo) -> VlaAssets:
        first = info.first
        return VlaAssets(
            *(first.sizes, first.shape, first.fps, first.fast, info.profile),
            *(first.codes_digest, first.contract),
        )

    def save_assets(self, config: VlaDataConfig, info: VlaInfo, folder: Path) -> None:
        """Writes the action tokenizer, if there is one, and the profile to fast/."""
        write_profile(folder / FAST_NAME / PROFILE_NAME, info.profile)
        if info.first.fast is not None:
            write_fast(folder / FAST_NAME, info.first.fast)
        CONTRACT.write(folder, asdict(info.first.contract))

    def load_assets(self, config: VlaDataConfig, folder: Path) -> VlaAssets:
        fast = folder / FAST_NAME
        if not has_profile(fast):
            raise _unusable(fast / PROFILE_NAME, "is missing")
        profile = read_profile(str(fast))
        tokenizer = read_fast(fast) if is_fast(fast) else None
        if profile.digest != config.profile_digest:
            raise _unusable(fast / PROFILE_NAME, "is not the profile of the run")
        if tokenizer is not None and tokenizer.digest != config.fast_digest:
            raise _unusable(fast, "is not the action tokenizer of the run")
        fps = config.fps
        assert fps is not None
        contract = CONTRACT.read(folder) or Contract()
        digest = config.codes_digest
        return VlaAssets(config.sizes, config.shape, fps, tokenizer, profile, digest, contract)

    def pairs(
        self, config: VlaDataConfig, assets: VlaAssets, location: str, options: base.PairOptions
    ) -> VlaPairs:
        ratio = config.val_ratio if options.split == "val" else 0.0
        return VlaPairs(config, assets, location, val_ratio=ratio)


def _unusable(path: Path, reason: str) -> DataError:
    return DataError.at(
        path,
        reason,
        hint="copy it again from the original run folder",
        code="data.broken",
    )
