"""Metadata of samples: files, sizes, action tokenizer and profile of each data set.

`load_info` reads the manifests of samples and of their windows, the action tokenizers, and one
image of each data set. The sizes that all samples share follow from these.

Source: formats/samples 5.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from vlatool.checkpoints.contract import Contract, SeenCamera
from vlatool.config.coerce import value_text
from vlatool.conventions.file import conventions_of
from vlatool.datasets.codes.layout import IMAGES_NAME
from vlatool.datasets.fast.layout import is_fast, read_fast
from vlatool.datasets.image_shards.layout import validation_positions
from vlatool.datasets.jsonl.layout import DATA_NAME, MANIFEST, SAMPLES_NAME, Kind, WindowManifest
from vlatool.datasets.samples.episode import KINDS
from vlatool.datasets.samples.layout import FAST_NAME, SamplesFolder, is_samples
from vlatool.datasets.samples.profile import (
    PUBLISHED,
    NormalizationProfile,
    check_same_profile,
    has_profile,
    held_dimensions,
    parse_profile,
    read_profile,
)
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.job import digest_of
from vlatool.jobs.ownership import require_input
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.loading.vla.config import VlaAssets, VlaDataConfig, VlaShape
from vlatool.media.images import decoded_size
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.uri import location
from vlatool.transforms.action_tokenizer import ActionTokenizer

# Frames per second of LIBERO. Source: reference/future-vla 1.2
_PUBLISHED_FPS = 10.0
# Field of actions in LIBERO, also for windows with actions of several fields.
_ACTIONS = "actions"
# Name of an image: prefix and camera, episode and frame.
_IMAGE = re.compile(r"(.+)_episode_\d+_frame_\d+")
_DIFFERS = "build the samples of all data sets with the same tokenizers and windows"


class LineSpan(NamedTuple):
    """Consecutive samples of one file."""

    name: str  # Path of the file, relative to the folder
    first: int  # number in the folder of the first sample
    size: int  # number of samples


@dataclass(frozen=True)
class VlaFolder:
    """Samples of one data set."""

    samples: SamplesFolder
    spans: tuple[LineSpan, ...]  # the samples in use
    # folder with the images, if it is not the one that the samples name; None: theirs
    images_root: Path | None
    assets: VlaAssets  # what a policy needs of them
    fast_digest: str  # digest of the action tokenizer; empty if unknown

    @property
    def num_samples(self) -> int:
        return sum(span.size for span in self.spans)

    @property
    def agreed(self) -> Mapping[str, Any]:
        """Values that all data sets of a run share."""
        return {
            **self.assets.shape.__dict__,
            **self.assets.sizes._asdict(),
            "fps": self.assets.fps,
            "codes": self.assets.codes_digest,
            "actions": self.fast_digest,
            "profile": self.assets.profile.digest,
        }

    def image_path(self, text: str) -> Path:
        """Location of an image of a line."""
        return _image_path(self.samples, self.images_root, text)


@dataclass(frozen=True)
class VlaInfo:
    """Metadata of all data sets of a run."""

    names: tuple[str, ...]  # names of the data sets, as configured
    folders: tuple[VlaFolder, ...]  # their samples

    @cached_property
    def datasets(self) -> tuple[DataSet, ...]:
        """The data sets; a shard is a file, or the samples of an episode in it."""
        datasets: list[DataSet] = []
        for name, folder in zip(self.names, self.folders, strict=True):
            shards: list[ShardInfo] = []
            for span in folder.spans:
                shards.append(
                    ShardInfo(folder.samples.path / span.name, span.size, first=span.first)
                )
            datasets.append(DataSet(name, tuple(shards)))
        return tuple(datasets)

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Digest of the samples of each data set, and of what their numbers stand for."""
        digests: dict[str, str] = {}
        for number, folder in enumerate(self.folders, 1):
            document = {**folder.samples.document, "pictures": None}
            digest = digest_of([document, [list(span) for span in folder.spans]])
            digests[f"data set {number}"] = f"{counted(folder.num_samples, 'sample')}, {digest}"
        digests["numbers"] = digest_of(list(map(str, self.first.agreed.values())))
        return digests

    @property
    def first(self) -> VlaFolder:
        """The first data set; the others agree with it."""
        return self.folders[0]

    @cached_property
    def profile(self) -> NormalizationProfile:
        """Normalization of the actions, with the dimensions that never moved in any data set.

        Samples that do not record the range of their actions, such as published ones, hold none.
        """
        profile = self.first.assets.profile
        ranges: list[tuple[Array, Array]] = []
        for folder in self.folders:
            document: Any = folder.samples.document
            if "action_range" not in document:
                return profile
            ranges.append(_action_range(folder.samples.path, document, profile.width))
        return replace(profile, held=held_dimensions(profile.dimensions, ranges))

    @property
    def tasks(self) -> Sequence[str]:
        """Instructions of all data sets."""
        tasks: dict[str, None] = {}
        for folder in self.folders:
            tasks |= dict.fromkeys(folder.samples.document.get("tasks") or ())
        return list(tasks)

    @property
    def kinds(self) -> Sequence[Kind]:
        """Kinds of the samples of all data sets."""
        present: set[str] = set()
        for folder in self.folders:
            counts = folder.samples.document.get("kinds") or {}
            present.update(kind for kind, count in counts.items() if count)
        return [kind for kind in KINDS if kind in present]

    @property
    def max_action_ids(self) -> int:
        """Largest number of action ids of a sample."""
        largest = 0
        for folder in self.folders:
            counts = folder.samples.document.get("action_ids") or {}
            largest = max(largest, int(counts.get("max") or 0))
        return largest


def load_info(config: VlaDataConfig, reporter: Reporter = NULL) -> VlaInfo:
    """Reads the manifests of samples and windows, the action tokenizers, and one image each."""
    if not config.samples:
        raise DataError(
            "no samples are configured",
            hint="set --data DIR or data.samples, the output of `vlatool build-dataset`",
            code="data.no_source",
        )
    folders = tuple(_folder(text, config, reporter) for text in config.samples)
    agreed = folders[0].agreed
    for name, folder in zip(config.samples, folders, strict=True):
        for key, value in folder.agreed.items():
            if value != agreed[key]:
                raise DataError(
                    f"{name}: {key} is {value_text(value)}, but in {config.samples[0]} it is "
                    f"{value_text(agreed[key])}",
                    hint=_DIFFERS,
                    code="data.mismatch",
                    details={"key": key},
                )
    return VlaInfo(tuple(config.samples), folders)


def _folder(text: str, config: VlaDataConfig, reporter: Reporter) -> VlaFolder:
    samples = _open_samples(text)
    if not len(samples):
        raise DataError.at(
            samples.path, "has no samples", hint="build it again", code="data.no_samples"
        )
    images_root = location(config.images_root) if config.images_root else None
    root = images_root or samples.images_root
    windows = MANIFEST.read(root) if samples.has_manifest else None
    profile = _profile(samples, config)
    shape = _shape(samples, images_root, windows, profile)
    fast, fast_digest = _fast(samples, config, reporter)
    if profile.width != shape.action_width:
        raise DataError.at(
            samples.path,
            f"actions have {counted(shape.action_width, 'value')}, the profile {profile.name} has "
            f"{profile.width}",
            hint="set data.profile to the normalization of these actions",
            code="data.mismatch",
        )
    document: Any = samples.document
    codes_digest = str((document.get("codes") or {}).get("tokenizer_digest") or "")
    digests = {"codes": codes_digest, "actions": fast_digest}
    recorded = windows.recorded_sizes if windows else {}
    cameras: dict[str, SeenCamera] = {}
    for name in shape.cameras:
        cameras[name] = SeenCamera(tuple(recorded.get(name, ())), shape.image_size)
    conventions = conventions_of(root) if windows else None
    fps = config.fps or (windows and windows.fps) or _PUBLISHED_FPS
    contract = Contract(
        cameras=cameras,
        resize_method=windows.resize_method if windows else "",
        resize_filter=windows.resize_filter if windows else "",
        actions={shape.action_field: shape.action_width},
        fps=fps,
        horizon=shape.action_steps,
        conventions=conventions.groups if conventions else (),
        statistics=profile.digest,
        tokenizers={name: digest for name, digest in digests.items() if digest},
    )
    assets = VlaAssets(
        sizes=samples.sizes,
        shape=shape,
        fps=fps,
        fast=fast,
        profile=profile,
        codes_digest=codes_digest,
        contract=contract,
    )
    return VlaFolder(samples, _spans(samples, config), images_root, assets, fast_digest)


def _action_range(path: Path, document: Mapping[str, Any], width: int) -> tuple[Array, Array]:
    """Smallest and largest actions [D] that a manifest records."""
    with suppress(TypeError, ValueError, KeyError):
        recorded = document["action_range"]
        low, high = np.array([recorded["min"], recorded["max"]], np.float64)
        if low.shape == (width,) and np.isfinite([low, high]).all():
            return low, high
    raise DataError.at(
        path,
        f"action_range of the manifest is not `min` and `max` with {width} numbers each",
        hint="copy the folder again, or build it again",
        code="data.broken",
    )


def _open_samples(text: str) -> SamplesFolder:
    """Samples at a location, in `samples/` of a folder of windows, or above a folder of lines."""
    path = require_input(text)
    candidates = [path]
    if path.name == DATA_NAME:
        candidates.append(path.parent)
    candidates.append(path / SAMPLES_NAME)
    for folder in candidates:
        if is_samples(folder):
            return SamplesFolder.open(folder)
    return SamplesFolder.open(path)


def _image_path(samples: SamplesFolder, images_root: Path | None, text: str) -> Path:
    """Location of an image of a line; `images_root`: folder with images/; None: as the line
    says.
    """
    if images_root is not None:
        return images_root / text[text.rfind(f"{IMAGES_NAME}/") :]
    if samples.prefix and text.startswith(samples.prefix):
        return samples.images_root / text.removeprefix(samples.prefix)
    is_absolute = text.startswith("/") or "://" in text
    return location(text if is_absolute else f"{samples.path}/{text}")


def _shape(
    samples: SamplesFolder,
    images_root: Path | None,
    windows: WindowManifest | None,
    profile: NormalizationProfile,
) -> VlaShape:
    """Sizes of a sample, from manifests and the first sample and image."""
    first = samples.sample(0)
    if not first.images:
        raise DataError.at(
            samples.path,
            "its samples have no past images",
            hint="build the samples from windows with past steps",
            code="data.missing",
        )
    action_field = _ACTIONS
    cameras = _cameras(first.images) if windows is None else windows.cameras
    if windows is not None and len(windows.action_fields) == 1:
        action_field = windows.action_fields[0]
    past, past_rest = divmod(len(first.images), len(cameras))
    future, future_rest = divmod(len(first.conversation.codes), len(cameras))
    if past_rest or future_rest:
        raise DataError.at(
            samples.path,
            f"samples have {len(first.images)} past and {len(first.conversation.codes)} future "
            f"images, which are not whole steps of {counted(len(cameras), 'camera')} "
            f"({', '.join(cameras)})",
            hint="build the samples again",
            code="data.broken",
        )
    path = _image_path(samples, images_root, first.images[-1])
    try:
        width, height = decoded_size(read_file(path))
    except FileNotFoundError:
        raise DataError.at(
            path,
            f"is missing, and {samples.path / samples.files[0][0]} names it in its first line",
            hint="copy the images to that place, or set data.images_root to the folder with "
            f"{IMAGES_NAME}/",
            code="data.missing",
        ) from None
    except ValueError as error:
        raise DataError.at(path, error, hint="copy the image again", code="data.broken") from None
    recorded: Any = samples.document.get("shape") or {}
    return VlaShape(
        cameras=tuple(cameras),
        past_steps=past,
        future_steps=future,
        image_size=(height, width),
        action_steps=int(recorded.get("steps") or future),
        action_width=int(recorded.get("width") or profile.width),
        action_field=action_field,
    )


def _cameras(images: Sequence[str]) -> tuple[str, ...]:
    """Cameras in the names of images, without the words that all names begin with."""
    names: dict[str, None] = {}
    for text in images:
        stem = PurePosixPath(text).stem
        match = _IMAGE.fullmatch(stem)
        names[match[1] if match else stem] = None
    words = [name.split("_") for name in names]
    shared = 0
    if len(words) > 1:
        shortest = min(map(len, words))
        while shared < shortest - 1 and len({part[shared] for part in words}) == 1:
            shared += 1
    return tuple("_".join(part[shared:]) for part in words)


def _fast(
    samples: SamplesFolder, config: VlaDataConfig, reporter: Reporter
) -> tuple[ActionTokenizer | None, str]:
    """Action tokenizer, and its digest as the manifest has it."""
    document: Any = samples.document
    recorded = str((document.get("fast") or {}).get("digest") or "")
    if config.fast is not None:
        folder = location(config.fast)
    else:
        folder = samples.path / FAST_NAME
        if not is_fast(folder):
            if config.split == "train":
                message = (
                    f"{samples.path}: no action tokenizer in {FAST_NAME}/: the model can be "
                    "trained, but actions that it predicts cannot be decoded; set data.fast"
                )
                reporter.warn("data.no_source", message)
            return None, recorded
    tokenizer = read_fast(folder)
    if recorded and tokenizer.digest != recorded:
        raise DataError.at(
            folder,
            f"is not the action tokenizer of {samples.path}, whose manifest has another digest",
            hint="set data.fast to the folder that `build-dataset --fast` had",
            code="data.mismatch",
        )
    if has_profile(folder):
        check_same_profile(_profile(samples, config), read_profile(str(folder)))
    return tokenizer, tokenizer.digest


def _profile(samples: SamplesFolder, config: VlaDataConfig) -> NormalizationProfile:
    """Normalization of the actions, from the manifest, else from the config or `libero`."""
    recorded: Any = dict(samples.document.get("profile") or {})
    digest = recorded.pop("digest", "")
    if not recorded:
        return read_profile(config.profile or PUBLISHED)
    profile = parse_profile(recorded, f"{samples.path}: profile of the manifest")
    if digest and digest != profile.digest:
        raise DataError.at(
            samples.path,
            "the profile of the manifest does not have the digest beside it",
            hint="copy the samples again, or build them again",
            code="data.broken",
        )
    if config.profile:
        check_same_profile(profile, read_profile(config.profile))
    return profile


def _spans(samples: SamplesFolder, config: VlaDataConfig) -> tuple[LineSpan, ...]:
    """The files, or the samples of the selected episodes in them."""
    files: list[LineSpan] = []
    first = 0
    for name, count in samples.files:
        files.append(LineSpan(name, first, count))
        first += count
    if not config.val_ratio:
        return tuple(files)
    by_episode: dict[str, list[LineSpan]] = {}
    for episode, span in episode_spans(samples, files):
        by_episode.setdefault(episode, []).append(span)
    held_out = {*validation_positions(len(by_episode), config.val_ratio)}
    selected: list[LineSpan] = []
    for number, spans in enumerate(by_episode.values()):
        if (number in held_out) == (config.split == "val"):
            selected += spans
    if not selected:
        raise DataError.at(
            samples.path,
            f"has one episode, which data.val_ratio {config.val_ratio:g} leaves for validation",
            hint="set data.val_ratio to 0, or record more episodes",
            code="data.no_samples",
        )
    return tuple(selected)


def episode_spans(
    samples: SamplesFolder, files: Iterable[LineSpan]
) -> Iterator[tuple[str, LineSpan]]:
    """Samples of each episode in each file; a file with several episodes is read."""
    for span in files:
        if not span.size:
            continue
        last = span.first + span.size - 1
        episode = _episode(samples, span.first)
        if episode == _episode(samples, last):
            yield episode, span
            continue
        numbers = range(span.first, last + 1)
        for episode, group in groupby(numbers, lambda number: _episode(samples, number)):
            of_episode = list(group)
            yield episode, LineSpan(span.name, of_episode[0], len(of_episode))


def _episode(samples: SamplesFolder, number: int) -> str:
    images = samples.sample(number).images
    return PurePosixPath(images[-1]).parent.name if images else ""
