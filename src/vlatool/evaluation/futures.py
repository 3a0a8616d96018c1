"""Measures predicted images, as codes and as pixels, beside simple baselines, and draws them.

Legend of shapes: F steps after an observation, S side of the images of the tokenizer, K codes of an
image.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlatool.episode import Array, Observation, UInt8Array
from vlatool.errors import DataError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.evaluation.control import chunk_seed
from vlatool.evaluation.facts import SheetRow, save_contact_sheet
from vlatool.evaluation.image_metrics import MOVED
from vlatool.events import Progress
from vlatool.loading.base import RecordedFutures, RecordedPairs
from vlatool.loading.robotics.options import ImageTransform
from vlatool.media.video import encode_video
from vlatool.models.base import Policy
from vlatool.models.images import psnr_of_error
from vlatool.models.policy import in_batches
from vlatool.models.tokenizer import OpenTokenizer, open_tokenizer, rank_device
from vlatool.storage.atomic import write_bytes
from vlatool.transforms.neighbors import spread

# Steps after the observation that the report has.
STEPS = (1, 4, 16)
_SHEET_COLUMNS = 8
# Frame rate of the video, slow enough to look at.
_VIDEO_FPS = 4
_GAP_PX = 4


class FutureScores:
    """Accumulator of the errors of predicted images, per step."""

    def __init__(self, tokenizer: OpenTokenizer) -> None:
        self._tokenizer = tokenizer
        self._sums: dict[int, dict[str, list[tuple[float, float]]]] = {}
        self._samples = 0

    def add(
        self,
        codes: Mapping[str, Array],  # predicted codes [F, K] by camera
        recorded: RecordedFutures,  # what followed
        observation: Observation,  # the observation; its newest images are the present ones
    ) -> None:
        self._samples += 1
        steps: list[int] = []  # those that were recorded
        for step in STEPS:
            if step <= len(recorded.mask) and recorded.mask[step - 1]:
                steps.append(step)
        if not steps:
            return
        rows = [step - 1 for step in steps]
        tokenizer = self._tokenizer
        for camera, predicted_codes in codes.items():
            predicted = predicted_codes[rows]
            real = prepared_images(tokenizer, camera, recorded.images[camera][rows])
            present = prepared_images(tokenizer, camera, observation.images[camera][-1:])
            if recorded.codes:
                real_codes = recorded.codes[camera][rows]
            else:
                real_codes = _codes_of(tokenizer, real)
            present_codes = _codes_of(tokenizer, present)
            moves: Array = np.abs(real.astype(np.int16) - present).max(axis=-1) > MOVED
            images = {
                "psnr": decoded_images(tokenizer, predicted),
                "copy_present_psnr": present,
                "reconstruction_psnr": decoded_images(tokenizer, real_codes),
            }
            for name, compared in images.items():
                errors = np.square(compared.astype(np.float64) - real).mean(axis=-1)
                for index, step in enumerate(steps):
                    moving = errors[index][moves[index]]
                    self._add(step, name, errors[index].mean(), 1.0)
                    self._add(step, f"moving_{name}", moving.sum(), float(moving.size))
            accuracy = (predicted == real_codes).mean(axis=1)
            copy_accuracy = (present_codes == real_codes).mean(axis=1)
            for index, step in enumerate(steps):
                self._add(step, "code_accuracy", accuracy[index], 1.0)
                self._add(step, "copy_present_code_accuracy", copy_accuracy[index], 1.0)

    def _add(self, step: int, name: str, total: float, count: float) -> None:
        sums = self._sums.setdefault(step, {}).setdefault(name, [])
        sums.append((float(total), count))

    def report(self) -> dict[str, Any]:
        """Figures by step: accuracies of codes, and PSNR of mean squared errors in dB. Names with
        `moving_` count only pixels that differ from the present image; None if none differs.
        """
        steps: dict[str, Any] = {}
        for step, sums in sorted(self._sums.items()):
            steps[str(step)] = {name: _figure(name, values) for name, values in sums.items()}
        return {"samples": self._samples, "steps": steps}


def _codes_of(tokenizer: OpenTokenizer, images: UInt8Array) -> Array:
    """Codes [N, K] of images [N, S, S, 3]."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(tokenizer.device)
    return tokenizer.network.encode(pixels).values.cpu().numpy()


def decoded_images(tokenizer: OpenTokenizer, codes: Array) -> UInt8Array:
    """Images uint8 [N, S, S, 3] of codes [N, K]."""
    values = torch.from_numpy(codes.astype(np.int64)).to(tokenizer.device)
    return tokenizer.network.decode(values).cpu().numpy()


def reconstructed_images(tokenizer: OpenTokenizer, images: UInt8Array) -> UInt8Array:
    """Images [N, S, S, 3] after a tokenizer has encoded and decoded them."""
    return decoded_images(tokenizer, _codes_of(tokenizer, images))


def prepared_images(tokenizer: OpenTokenizer, camera: str, images: UInt8Array) -> UInt8Array:
    """Images uint8 [N, S, S, 3] in the size of a tokenizer, of images of any size."""
    side = tokenizer.network.image_size
    transform = ImageTransform((side, side))
    return np.stack([transform.apply(camera, image) for image in images])


def _figure(name: str, pairs: Sequence[tuple[float, float]]) -> float | None:
    """Mean of sums and counts, as PSNR if it is an error; None if nothing was counted."""
    total, count = np.sum(pairs, axis=0).tolist()
    if not count:
        return None
    mean = total / count
    if name.endswith("psnr"):
        return float(psnr_of_error(torch.tensor(mean, dtype=torch.float64)))
    return mean


def evaluate_futures(
    policy: Policy,
    pairs: RecordedPairs,
    tokenizer: OpenTokenizer,
    config: OpenLoopConfig,
    bar: Progress,
) -> dict[str, Any]:
    """Predicts the images after some observations and compares them with the recorded ones."""
    predicts = checked_policy(policy, tokenizer)
    if not pairs.has_futures:
        raise DataError(
            f"{config.data}: has no images from the steps after a sample",
            hint="leave --tokenizer out",
            code="data.missing",
        )
    scores = FutureScores(tokenizer)
    ask = predicts.future_codes
    count = min(len(pairs), config.future_samples)
    chosen = [number * len(pairs) // count for number in range(count)]
    for start in range(0, count, config.batch_size):
        indices = chosen[start : start + config.batch_size]
        observations = [observation for observation, _ in pairs.read(indices)]
        seeds = [chunk_seed(config.seed, index) for index in indices]
        codes = in_batches(ask, observations, seeds, config.batch_size)
        for row, index in enumerate(indices):
            values = {camera: rows[row] for camera, rows in codes.items()}
            scores.add(values, pairs.futures(index), observations[row])
        bar.advance(len(indices))
    return scores.report()


def tokenizer_for(policy: Policy, location: str | None) -> OpenTokenizer | None:
    """Opens the visual tokenizer for the codes that a policy predicts; None without a location."""
    if location is None:
        return None
    tokenizer = open_tokenizer(location, rank_device())
    checked_policy(policy, tokenizer)
    return tokenizer


def checked_policy(policy: Policy, tokenizer: OpenTokenizer) -> Policy:
    """Returns the policy, after checking that it predicts the codes of this tokenizer."""
    if not policy.predicts_images:
        raise DataError(
            "the policy predicts no images",
            hint="leave --tokenizer out",
            code="data.missing",
        )
    tokenizer.check_decoder()
    return policy.with_tokenizer(tokenizer.network)


def save_futures(
    folder: Path,  # folder of the files
    # By the label of each line, images [F, S, S, 3] by camera; all of the same shape.
    lines: Mapping[str, Mapping[str, UInt8Array]],
    name_of: Callable[[str], str],  # name of the file of a camera
    video: str,
) -> None:
    """Saves a sheet of images per camera, and a video of all cameras with rows of images."""
    cameras = list(next(iter(lines.values())))
    for camera in cameras:
        rows: list[SheetRow] = []
        for label, images in lines.items():
            steps = spread(len(images[camera]), _SHEET_COLUMNS)
            title = f"{camera}, {label}: {', '.join(f'+{step + 1}' for step in steps)}"
            frames = [images[camera][step] for step in steps]
            rows.append(SheetRow(title, verdict="", is_good=True, frames=frames))
        save_contact_sheet(folder / name_of(camera), rows)
    video_rows = [_row([images[camera] for camera in cameras]) for images in lines.values()]
    video_frames = np.concatenate(video_rows, axis=1)
    write_bytes(folder / video, encode_video(list(video_frames), _VIDEO_FPS))


def _row(cameras: Sequence[UInt8Array]) -> UInt8Array:
    """Images of several cameras side by side, with even sides: [F, S + gap, V (S + gap), 3]."""
    tiles: list[UInt8Array] = []
    for images in cameras:
        height, width = images.shape[1:3]
        padding = ((0, 0), (0, _GAP_PX + height % 2), (0, _GAP_PX + width % 2), (0, 0))
        tiles.append(np.pad(images, padding))
    return np.concatenate(tiles, axis=2)
