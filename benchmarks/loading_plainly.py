"""Samples/s and CPU time of the training loader against a plain one on the same shards.

    python benchmarks/loading_plainly.py DATA [--workers 1,2] [--batch 16] [--runs 3]

DATA is an output of `vlatool preprocess spartan`. The plain loader follows the description of the
published trainer: a webdataset pipeline in a torch DataLoader whose processes decode every image
with Pillow and every array of the npz, select the fields of action and proprioception, normalize
and collate. Its other work is left out: logs, its tokenizer, and resizing and scaling of images,
which the model does here. The variant `plain-simplejpeg` uses the faster JPEG decoder of this
package. The loader of this package makes the batches of `vlatool train`. They run in turn,
A B C A B C ..., each time in new processes; the first batches are not counted. The last line is a
lower bound for any loader: the CPU time of decoding the images alone, all into the same buffer.
Source: formats/lbm 5.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import process_stats
import simplejpeg
import torch
import webdataset as wds
from machine import describe
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from vlatool.config.resolve import Override, load_config
from vlatool.episode import Array
from vlatool.loading.loader import LoaderPlan, build_loader
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.training.config import TrainConfig

PRESET = "diffusion-policy-tiny"
SEED = 42
IMAGES = (".jpg", ".jpeg", ".png")
LARGEST_IMAGE = 1 << 24
CPU = "milliseconds"
_TICK = 10.0  # milliseconds: the resolution of CPU times, below which a short run measures 0
TICKS = os.sysconf("SC_CLK_TCK")


def by_pillow(content: bytes) -> Array:
    """Pixels uint8 [H, W, 3]."""
    with Image.open(BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def decoded(decode: Callable[[bytes], Array], sample: dict[str, Any]) -> dict[str, Any]:
    """Decodes all members of a sample."""
    return {name: _value(decode, name, content) for name, content in sample.items()}


def _value(decode: Callable[[bytes], Array], name: str, content: Any) -> Any:
    if name.endswith(IMAGES):
        return torch.from_numpy(decode(content))
    if name.endswith(".npz"):
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    return json.loads(content) if name.endswith(".json") else content


class Fields:
    """Selection of the values of a decoded sample that a batch needs; picklable."""

    def __init__(self, data: Any) -> None:
        self.images = [
            f"{camera}_t{index}.jpg" for index in data.image_indices for camera in data.camera_names
        ]
        self.names = list(dict.fromkeys([*data.action_fields, *data.proprioception_fields]))
        self.past, self.future = data.lowdim_past_timesteps, data.lowdim_future_timesteps

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        arrays, metadata = sample["lowdim.npz"], sample["metadata.json"]
        anchor = metadata["anchor_relative_idx"]
        window = slice(anchor - self.past, anchor + self.future + 1)
        sentences = sample.get("language_instructions.json", {}).get("original") or [""]
        return {
            "images": [sample[name] for name in self.images],
            "fields": {name: torch.from_numpy(arrays[name][window]) for name in self.names},
            "past_mask": torch.from_numpy(arrays["past_mask"][window]),
            "future_mask": torch.from_numpy(arrays["future_mask"][window]),
            "text": random.choice(sentences),
        }


class Collate:
    """Samples to tensors; picklable.

    Args:
        data: Data section, derived.
        scales: Field to center and scale, float32.
    """

    def __init__(self, data: Any, scales: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.actions, self.observed = data.action_fields, data.proprioception_fields
        self.steps, self.scales = data.lowdim_past_timesteps + 1, scales

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        images = torch.stack([image for sample in samples for image in sample["images"]])
        fields = {
            name: (torch.stack([sample["fields"][name] for sample in samples]).float() - center)
            / scale
            for name, (center, scale) in self.scales.items()
        }
        observed = torch.cat([fields[name] for name in self.observed], -1)
        return {
            "images": images.view(len(samples), -1, *images.shape[1:]).permute(0, 1, 4, 2, 3),
            "actions": torch.cat([fields[name] for name in self.actions], -1),
            "proprioception": observed[:, : self.steps],
            "past_mask": torch.stack([sample["past_mask"] for sample in samples]),
            "future_mask": torch.stack([sample["future_mask"] for sample in samples]),
            "text": [sample["text"] for sample in samples],
        }


class Run:
    """Configuration of `vlatool train`, with the batches of both loaders."""

    def __init__(self, folder: str, batch: int) -> None:
        typed = {"data.folders": [folder], "total_train_steps": 1, "hparams.lr": 1e-3}
        overrides = [Override(key, value, "benchmark") for key, value in typed.items()]
        config = load_config(TrainConfig, presets=[PRESET], overrides=overrides).config
        self.kind = config.data_kind
        self.info = self.kind.load_info(config.data)
        self.config, _ = config.derive(self.info)
        self.data = self.config.data
        self.assets = self.kind.make_assets(self.data, self.info)
        self.batch = batch

    @property
    def shards(self) -> list[str]:
        """Locations of the shards."""
        return [str(shard.location) for dataset in self.info.datasets for shard in dataset.shards]

    def batches(self, workers: int) -> Iterator[Any]:
        """Batches of `vlatool train`."""
        model_type, model = self.config.model_type, self.config.model
        plan = LoaderPlan(
            self.batch,
            num_workers=workers,
            prefetch_factor=self.data.prefetch_factor,
            drop_reasons=self.kind.drop_reasons,
        )
        order = SampleOrder(self.info.datasets, OrderOptions.of(self.data, SEED))
        batcher = model_type.batcher(model, self.data, self.assets, None, training=True)
        dummy = partial(model_type.example, model, self.data, self.batch)
        reader = self.kind.reader(self.data, self.info)
        return iter(build_loader(plan, order, reader, batcher, dummy))

    def plain_batches(
        self, workers: int, epochs: int, decode: Callable[[bytes], Array]
    ) -> Iterator[Any]:
        """Batches of the plain loader: the same samples, in another order."""
        fields = Fields(self.data)
        steps = fields.past + 1 + fields.future
        scales = {name: self.assets.normalizer.scale(name, steps) for name in fields.names}
        tensors = {
            name: (torch.from_numpy(scale_of_field.center), torch.from_numpy(scale_of_field.scale))
            for name, scale_of_field in scales.items()
        }
        stream = wds.DataPipeline(
            wds.SimpleShardList(self.shards * epochs, seed=SEED),
            wds.detshuffle(bufsize=2000, initial=500, seed=SEED),
            wds.split_by_node,
            wds.split_by_worker,
            wds.tarfile_to_samples(handler=wds.warn_and_continue),
            wds.map(partial(decoded, decode), handler=wds.warn_and_continue),
            wds.map(fields, handler=wds.warn_and_continue),
            wds.batched(self.batch, collation_fn=list, partial=False),
            wds.map(Collate(self.data, tensors), handler=wds.warn_and_continue),
        )
        factor = self.data.prefetch_factor
        return iter(
            DataLoader(
                stream,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=factor,
                persistent_workers=True,
                in_order=False,
            )
        )

    def decoding_ms(self) -> float:
        """CPU milliseconds of decoding the images of a sample."""
        pixels = np.empty(LARGEST_IMAGE, np.uint8)
        spent = count = 0
        for sample in islice(wds.WebDataset(self.shards, shardshuffle=False), 100):
            images = [data for name, data in sample.items() if name.endswith(IMAGES)]
            started = time.process_time()
            for data in images:
                simplejpeg.decode_jpeg(data, buffer=pixels)
            spent += time.process_time() - started
            count += 1
        return 1000 * spent / count


def processor_s() -> float:
    """User and system time of this process and its descendants so far."""
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in process_stats.tree(os.getpid())]
    return sum(sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats) / TICKS


def measure(loader: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Samples/s and CPU milliseconds per sample; runs in its own process."""
    run, workers = Run(arguments.data, arguments.batch), int(arguments.workers)
    if loader == "decoding":
        return {"rate": 0, "milliseconds": run.decoding_ms()}
    warm = 5 * workers  # more than are prefetched: batches that are counted are made meanwhile
    steps = arguments.samples // run.batch
    total = sum(dataset.size for dataset in run.info.datasets)
    epochs = 2 + (warm * 2 + steps) * run.batch * 2 // total
    if loader == "vlatool":
        batches = run.batches(workers)
    else:
        decode = by_pillow if loader == "plain" else simplejpeg.decode_jpeg
        batches = run.plain_batches(workers, epochs, decode)
    list(islice(batches, warm))
    started, spent = time.perf_counter(), processor_s()
    count = sum(1 for _ in islice(batches, steps)) * run.batch
    seconds, spent = time.perf_counter() - started, processor_s() - spent
    return {"rate": count / seconds, "milliseconds": 1000 * spent / count}


def child(loader: str, arguments: argparse.Namespace, workers: str) -> dict[str, float]:
    """Result of `measure`, and the memory of the largest loader process in MiB."""
    words = [f"--{key}={getattr(arguments, key)}" for key in ("batch", "samples")]
    command = [sys.executable, __file__, arguments.data, "--child", loader, *words]
    stats = process_stats.run([*command, f"--workers={workers}"])
    return {**json.loads(stats.stdout), "memory": stats.worker_mib}


def median_and_range(runs: Sequence[dict[str, float]], key: str, digits: int = 0) -> str:
    """Median and range."""
    values = [run[key] for run in runs]
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main(arguments: argparse.Namespace) -> None:
    """Runs the loaders in turn, for each number of loader processes."""
    print(describe())
    for workers in arguments.workers.split(","):
        loaders = ("plain", "plain-simplejpeg", "vlatool")
        runs_of: dict[str, list[dict[str, float]]] = {loader: [] for loader in loaders}
        for _ in range(arguments.runs):
            for loader in loaders:
                runs_of[loader].append(child(loader, arguments, workers))
        print(f"{workers} loader processes, batches of {arguments.batch}")
        for loader, runs in runs_of.items():
            print(
                f"  {loader}: {median_and_range(runs, 'rate')} samples/s, "
                f"{median_and_range(runs, 'milliseconds', 2)} CPU ms per sample, "
                f"{median_and_range(runs, 'memory')} MiB"
            )
        for loader in loaders[:-1]:
            pairs = list(zip(runs_of["vlatool"], runs_of[loader], strict=True))
            rates = [{"times": ours["rate"] / other["rate"]} for ours, other in pairs]
            spent = [{"times": other[CPU] / max(ours[CPU], _TICK)} for ours, other in pairs]
            print(f"  {median_and_range(rates, 'times', 2)} times the rate of {loader},", end=" ")
            print(f"{median_and_range(spent, 'times', 2)} times less CPU time")
    least = [child("decoding", arguments, "0") for _ in range(arguments.runs)]
    print(f"decoding the images alone: {median_and_range(least, 'milliseconds', 2)} ms per sample")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1600)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", default="", help="for internal use")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments)))
    else:
        main(arguments)
