"""Next commands on the road to a FUTURE-VLA policy: the lines of its guide, typed one by one.

Images of 256 x 256 and 32 codes are those of the published models; for others there are tiny ones.
"""

import os
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vlatool.artifacts.codes.format import CodesFolder
from vlatool.artifacts.samples.format import SamplesFolder
from vlatool.artifacts.shards.format import MANIFEST_NAME, SHARDS_NAME
from vlatool.artifacts.windows.format import is_windows
from vlatool.errors import VlatoolError
from vlatool.jobs.record import read_record
from vlatool.storage.uri import location

if TYPE_CHECKING:
    from vlatool.training.config import TrainConfig

_PUBLISHED_SIZE = (256, 256)
_PUBLISHED_CODES = 32
# Pixels along a side and codes of an image to the presets of both stages.
_TITOK = {
    (256, 32): "titok-l32",
    (256, 64): "titok-b64",
    (256, 128): "titok-s128",
}
_TEACHER = "maskgit-vqgan-imagenet-f16-256.bin"  # published weights, which the guide names
_BASE_MODELS = "--qwen Qwen/Qwen3-VL-4B-Instruct --dino facebook/dinov3-vitb16-pretrain-lvd1689m"


def after_recordings(libero: str) -> str:
    record = read_record(location(libero))
    is_published = record is not None and record.options.get("size") == "published"
    preset = "future-vla" if is_published else "future-vla-tiny-data"
    return f"vlatool preprocess libero {libero} --preset {preset} --output {libero}-windows"


def after_windows(windows: str, size: object) -> str:
    form = "--val-ratio 0.05"
    if size == _PUBLISHED_SIZE:
        form = "--preset titok-images --val-ratio 0.01"
    return f"vlatool preprocess images {windows} {form} --output {windows}-images"


def after_images(shards: str, size: object) -> str:
    form = f"--preset future-vla-tiny-tokenizer --data {shards} --output runs/tokenizer"
    if size == _PUBLISHED_SIZE:
        form = (
            f"--preset titok-l32-stage1 --data {shards} --model.teacher {_TEACHER} -o runs/stage1"
        )
    return f"vlatool tokenizer train {form}"


def after_training(config: "TrainConfig", run: str, *, is_tokenizer: bool) -> str:
    """The next stage of a training, or what measures the model."""
    first = getattr(config.data, config.data_kind.folders_keys[0])[0]
    data = str(first).removesuffix(f"/{SHARDS_NAME}/{MANIFEST_NAME}")
    model: Any = config.model
    beside = os.path.dirname(run) or "."
    if model.type == "titok" and model.stage == 1 and model.teacher:
        sizes = model.image_size, model.num_latent_tokens
        line = ["vlatool", "tokenizer", "train", "--preset"]
        line += [f"{_TITOK.get(sizes, 'titok-tiny')}-stage2", "--data", data]
        line += ["--model.teacher", model.teacher, "--init-from", run]
        return shlex.join([*line, "--output", f"{beside}/stage2"])
    if model.type == "future_vla" and model.freeze_layers:
        line = ["vlatool", "train", "--preset", "future-vla-tiny", "--init-from", run]
        return shlex.join([*line, "--data", data, "--output", f"{beside}/vla"])
    kind = ("tokenizer", "eval") if is_tokenizer else ("eval", "open-loop")
    return shlex.join(["vlatool", *kind, run, data])


def after_tokenizer_eval(checkpoint: str, shards: str) -> str:
    """Encodes the windows whose images the tokenizer was trained on, if these are known."""
    with suppress(VlatoolError):  # the result stands without it
        record = read_record(location(shards))
        sources = [] if record is None else record.options.get("sources") or []
        if len(sources) == 1 and is_windows(location(sources[0])):
            return f"vlatool encode {shlex.quote(sources[0])} --tokenizer {shlex.quote(checkpoint)}"
    return ""


def after_codes(codes: str) -> str:
    """Fits FAST on the windows beside codes; checks codes elsewhere."""
    folder = location(codes)
    with suppress(VlatoolError):
        if is_windows(folder.parent):
            form = "--profile libero --vocab-size 2048"
            if CodesFolder.open(folder).manifest.codes_per_picture != _PUBLISHED_CODES:
                form = "--vocab-size 256 --scale 5"
            windows = shlex.quote(str(folder.parent))
            if location("fast").exists():  # of other windows: their samples have the same ids
                preset = " --preset future-vla-tiny-build" * ("256" in form)
                return f"vlatool build-dataset {windows}{preset} --fast fast"
            return f"vlatool tokenizer fit-fast {windows} --output fast {form}"
    return f"vlatool verify {shlex.quote(codes)}"


def after_samples(samples: str) -> str:
    """Makes weights to start from, and trains; measures a model that is there."""
    if location("runs/vla").exists():
        return f"vlatool eval open-loop runs/vla {shlex.quote(samples)}"
    base = _BASE_MODELS
    preset = "future-vla-libero"
    with suppress(VlatoolError):
        if SamplesFolder.open(location(samples)).sizes.codes_per_image != _PUBLISHED_CODES:
            base = "--tiny"
            preset = "future-vla-tiny"
    return (
        f"vlatool compose {base} --output composed && vlatool train --preset {preset} "
        f"--init-from composed --data {shlex.quote(samples)} --output runs/vla"
    )
