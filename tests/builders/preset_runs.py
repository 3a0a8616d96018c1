"""Short runs of every shipped preset at tiny size, and a script for two ranks.

    torchrun ... -m tests.builders.preset_runs FOLDER

makes the runs of two ranks that `tests/integration/test_micro_batches.py` compares.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.builders.base_models import clip_base, vlm_base
from tests.builders.future_vla import write_samples
from tests.builders.tokenizers import NETWORK, SIDE, SIZES, write_stage_1, write_teacher
from tests.builders.toy_images import write_image_shards
from tests.builders.toy_runs import toy_trainer
from vlatool.checkpoints.layout import read_metrics
from vlatool.config.resolve import Override, config_of, load_config
from vlatool.events import NULL
from vlatool.loading.base import MicroBatch
from vlatool.training.config import TrainConfig
from vlatool.training.metrics import MetricsFile
from vlatool.training.resume import identity_keys, resolved
from vlatool.training.setup import Run
from vlatool.workflows.compose import ComposeConfig, compose
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.train import save_model_assets

ROOT = Path(__file__).parents[2]
_OF_LEROBOT = ("act", "pi05", "smolvla")  # have an environment of their own
PRESETS = sorted(path.stem for path in (ROOT / "presets/runs").glob("*.yaml"))
PRESETS = [name for name in PRESETS if name not in _OF_LEROBOT]
STEPS, GLOBAL_BATCH = 8, 8
SHARDS, IMAGES, TRAINED = "data/shards", "images", "trained.json"
_BACKBONE = "model.vision_language_backbone"
_DENOISER = {"hidden_dim": 16, "n_layers": 1, "n_heads": 2}
_KEYPOINTS = {"hidden_dim": 16, "channels": (4, 8), "num_keypoints": 4}
_WORLD_FIELDS = {
    "data.camera_names": ["scene_right_0", "wrist_right_minus"],
    "data.proprioception_fields": ["robot__actual__poses__right::panda__xyz"],
    "data.action_fields": ["robot__action__poses__right::panda__xyz_relative"],
}
_BASES = {"clip": "clip", "paligemma": "paligemma", "smolvlm2": "smolvlm"}


def write_sources(root: Path) -> None:
    """Writes data, base models, a teacher and the first stage of a tokenizer."""
    raw = SampleConfig.model_validate(
        {"layout": "spartan", "output": str(root / "raw"), "episodes": 2, "frames": 20}
        | {"cameras": 6, "workers": 1}
    )
    sample(raw)
    tree = {
        "format": "spartan",
        "sink": "lbm",
        "sources": [str(root / "raw")],
        "output": str(root / "data"),
        "past_lowdim_steps": 2,
        "future_lowdim_steps": 14,
        "max_padding_left": 3,
        "max_padding_right": 15,
        "image_indices": [-1, 0],
        "resize_images_size": [48, 48],
        "workers": 1,
    }
    preprocess(config_of(PreprocessConfig, tree))
    write_image_shards(root / IMAGES)
    write_samples(root)
    compose(ComposeConfig(tiny=True, output=str(root / "tiny")))
    clip_base(root / "clip", max_position_embeddings=40)
    for family in ("paligemma", "smolvlm"):
        vlm_base(root / family, family)
    write_teacher(root)
    write_stage_1(root)


def preset_config(root: Path, preset: str, **changes: Any) -> TrainConfig:
    """The config of a preset at tiny size; `changes` have `__` in place of dots."""
    model = load_config(TrainConfig, presets=[preset]).config.model.model_dump()
    of_type = {"diffusion_policy": _policy, "future_vla": _language_model}
    keys = {
        "data.num_workers": 0,
        "data.prefetch_factor": None,
        "hparams.precision": "float32",
        "hparams.global_batch_size": GLOBAL_BATCH,
        "hparams.per_gpu_batch_size": GLOBAL_BATCH,
        "hparams.warmup": 1,
        "total_train_steps": STEPS,
        **of_type.get(model["type"], _tokenizer)(root, model),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    overrides = [Override(key, value, "test") for key, value in keys.items()]
    return load_config(TrainConfig, presets=[preset], overrides=overrides).config


def _policy(root: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    backbone = model["vision_language_backbone"]
    keys: dict[str, Any] = {
        "data.dataset_manifest": [str(root / SHARDS)],
        **{f"model.transformer.{key}": value for key, value in _DENOISER.items()},
    }
    if backbone["type"] == "keypoint_backbone":
        if backbone["group_norm"]:  # the preset of Meta-World
            keys |= _WORLD_FIELDS
        return keys | {f"{_BACKBONE}.{key}": value for key, value in _KEYPOINTS.items()}
    if backbone["type"] == "vit_backbone":
        sizes = {"img_size": 32, "hidden_dim": 12, "inter_dim": 24, "n_heads": 2, "n_layers": 1}
        return keys | {f"{_BACKBONE}.{key}": value for key, value in sizes.items()}
    if backbone["type"] == "text_backbone":
        fields = {key: names for key, names in _WORLD_FIELDS.items() if key.endswith("_fields")}
        return keys | fields | {f"{_BACKBONE}.hidden_dim": 16}
    base = next(
        folder for word, folder in _BASES.items() if word in backbone["hf_pretrained"].lower()
    )
    keys |= {f"{_BACKBONE}.hf_pretrained": str(root / base), "data.processor": str(root / base)}
    if base == "clip":
        return keys | {"data.augmentation.image.crop.shape": [40, 40]}
    return keys | {f"{_BACKBONE}.num_vlm_layers_to_use": 1}


def _language_model(root: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    del model
    return {"data.folders": str(root / "samples"), "model.compress": [8, 6, 2]} | {
        "init_from": str(root / "tiny"),
        "total_train_steps": 2,
        "data.val_ratio": 0,
        "total_val_samples": None,
    }


def _tokenizer(root: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "data.shards": [str(root / IMAGES)],
        "data.preprocessing.resize_shorter_edge": SIDE,
        "data.preprocessing.crop_size": SIDE,
    }
    if model["losses"]["discriminator_weight"]:
        # It starts within the run.
        losses = {"start": 5, "channels": 32}
        keys |= {f"model.losses.discriminator_{key}": value for key, value in losses.items()}
    if model["type"] == "vqgan":
        return keys | {f"model.{key}": value for key, value in NETWORK.items()}
    sizes = {**SIZES, "quantizer": {**model["quantizer"], **SIZES["quantizer"]}, "vqgan": NETWORK}
    keys |= {f"model.{key}": value for key, value in sizes.items()}
    keys |= {"model.teacher": str(root / "teacher.safetensors")}
    if model["stage"] == 2:
        keys |= {"init_from": str(root / "stage1.safetensors")}
        keys |= {"model.losses.perceptual_loss": "vqgan"}
    return keys


def groups_of(root: Path) -> dict[str, list[str]]:
    """Presets by the first one whose tiny run is the same."""
    groups: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for preset in PRESETS:
        config = preset_config(root, preset)
        keys = identity_keys(config) | {"fsdp": config.distributed.fsdp}
        known = first.setdefault(json.dumps(keys, sort_keys=True), preset)
        groups.setdefault(known, []).append(preset)
    return groups


@dataclass(frozen=True)
class Split:
    """A split of the global batch."""

    ranks: int  # number of processes
    size: int  # samples per process and micro-batch

    def file(self, root: Path, preset: str) -> Path:
        return root / f"{preset}-{self.ranks}-{self.size}.safetensors"


SPLITS = (Split(1, 8), Split(2, 2))


def train_preset(root: Path, preset: str, split: Split) -> dict[str, Tensor]:
    """Losses of all steps by name, final `output N`, and final `weights PART.NAME`."""
    config = preset_config(root, preset, hparams__per_gpu_batch_size=split.size)
    config, _, _ = resolved(config, None, NULL)
    rank = os.environ.get("RANK", "0")
    folder = root / "runs" / f"{preset}-{split.ranks}-{split.size}-{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    save_model_assets(config, folder)
    trainer = toy_trainer(config, folder)
    trainer.logger.metrics = MetricsFile(folder / "metrics.jsonl", NULL)
    run = trainer.run
    with run.streams.training(0) as batches:
        trainer.fit(batches)
    assert run.state.step == config.total_train_steps
    weights = {
        f"weights {name}.{key}": _whole(value.detach()).contiguous()
        for name, part in run.state.parts.items()
        for key, value in part.module.named_parameters()
        if value.requires_grad
    }
    rows = read_metrics(folder / "metrics.jsonl")
    losses = {key for row in rows for key in row if "loss" in key}
    return {
        **weights,
        **{key: torch.tensor([row[key] for row in rows if key in row]) for key in losses},
        **_outputs(run),
    }


def _outputs(run: Run) -> dict[str, Tensor]:
    """Floating-point outputs of the part `model` for made-up samples."""
    outputs: list[Tensor] = []

    def collect(module: nn.Module, inputs: object, output: object) -> None:
        del module, inputs
        values = output if isinstance(output, tuple) else (output,)
        outputs.extend(v for v in values if isinstance(v, Tensor) and v.is_floating_point())

    rows = tuple(range(GLOBAL_BATCH))
    config = run.config
    batch = config.model_type.example(config.model, config.data, GLOBAL_BATCH)
    micro_batch = MicroBatch(batch, samples=("made up",) * GLOBAL_BATCH, positions=rows)
    ctx = run.contexts.of(0, micro_batch, "outputs", training=False)
    run.placed.eval()
    run.state.parts["model"].module.register_forward_hook(collect)
    with torch.no_grad():
        loss = run.objective.validate(run.objective.prepare(batch, ctx), ctx)
    return {f"output {n}": value.contiguous() for n, value in enumerate([*outputs, loss.total])}


def _whole(value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


def train_all(root: Path, ranks: int) -> None:
    """Trains the chosen presets with the splits for a number of ranks; rank 0 writes weights."""
    for preset in json.loads((root / TRAINED).read_text()):
        for split in (split for split in SPLITS if split.ranks == ranks):
            results = train_preset(root, preset, split)
            if os.environ.get("RANK", "0") == "0":
                save_file(results, split.file(root, preset))


def main() -> None:
    """Runs on every rank."""
    try:
        train_all(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]))
    except BaseException:  # noqa: BLE001 - printed, then the rank ends
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # torch may abort while a gloo group is torn down; see cli/app.py


if __name__ == "__main__":
    main()
