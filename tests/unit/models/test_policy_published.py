"""Job files and records of the published program, loaded unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders.errors import fails
from vlatool.config.resolve import ReadOptions, Resolved, load_config, parse_override
from vlatool.training.config import TrainConfig

Write = Callable[[str, str], Path]

# A job with the structure of published ones: sections in folders, names with underscores, repeated
# `<<`, numbers that YAML 1.1 reads as text.
JOB = {
    "models/transformer_100m.yaml": """
        type: transformer
        hidden_dim: 512
        n_layers: 12
        n_heads: 8
        post_embed_norm: true
        is_causal: true
        max_seq_len: 2048
        vocab_size: 50432
        """,
    "models/diffusion_policy.yaml": """
        type: diffusion_policy
        vision_language_backbone:
          type: clip_backbone
          hf_pretrained: openai/clip-vit-base-patch32
          disable_text: false
        transformer:
          <<: !include transformer_100m.yaml
          is_causal: false
        noise_scheduler: {num_timesteps: 1000, beta_start: 1e-4, beta_end: 0.02,
                          clamp_range: [-3.0, 3.0]}
        use_flow_matching_scheduler: true
        """,
    "data/diffusion_policy.yaml": """
        type: robotics
        processor: openai/clip-vit-base-patch32
        processor_kwargs: {size: {height: 224, width: 224}}
        img_num_tokens: 64
        allow_multiple_epochs: True
        lowdim_past_timesteps: 1
        lowdim_future_timesteps: 14
        prefetch_factor: 8
        """,
    "data/lbm/lbm_data_params.yaml": """
        language_instruction_types: ["original", "randomized"]
        normalization: {enabled: True, method: percentile_1_99, scope: per_timestep,
                        epsilon: 1e-2, centered_norm: True}
        """,
    "jobs/job.yaml": """
        total_train_samples: 100_000
        wandb_tags: []
        model:
          <<: !include ../models/diffusion_policy.yaml
          vision_language_backbone:
            hf_pretrained: openai/clip-vit-base-patch32
            freeze_text_encoder: true
          transformer:
            <<: !include ../models/transformer_100m.yaml
            is_causal: true
          noise_scheduler: {clamp_range: [-3.0, 3.0]}
        data:
          <<: !include ../data/diffusion_policy.yaml
          <<: !include ../data/lbm/lbm_data_params.yaml
          dataset_manifest: ["s3://bucket/shards/manifest.jsonl"]
          dataset_statistics: ["s3://bucket/shards/stats.json"]
          dataset_modality: ["robotics"]
          dataset_weighting: [1]
        hparams: {lr: 5e-4, warmup: "0.1", per_gpu_batch_size: 16, global_batch_size: 128}
        """,
}
RECORD = """
data:
  dataset_statistics: [null]
  normalization: {include_fields: [action], lowdim_past_timesteps: 1}
  an_older_key: 1
  seed: 42
  prefetch_factor: null
distributed: {device: 'cuda:0', dist_url: env://, local_rank: 0, rank: 0, world_size: 8}
hparams: {world_size: 8, warmup: '1000', decay: '0.3'}
model:
  type: diffusion_policy
  resume_from_checkpoint: null
  vision_language_backbone: {type: clip_backbone, freeze: false}
save_path: null
wandb: true
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Function that writes a file below an empty folder, the current folder."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def load(*files: str, compat: bool = False, **set_: Any) -> Resolved[TrainConfig]:
    """Loads files, with keys over them that have `__` in place of dots."""
    overrides = [parse_override(f"{key.replace('__', '.')}={value}") for key, value in set_.items()]
    options = ReadOptions(compat=compat)
    return load_config(TrainConfig, files=files, overrides=overrides, read_options=options)


@pytest.mark.parametrize("compat", [False, True])
def test_job_file_means_the_same_with_deep_and_with_shallow_merging(
    write: Write, compat: bool
) -> None:
    for name, text in JOB.items():
        write(name, text)
    config: Any = load("jobs/job.yaml", compat=compat).config
    backbone, denoiser, noise = (
        config.model.vision_language_backbone,
        config.model.transformer,
        config.model.noise_scheduler,
    )
    assert (backbone.type, backbone.freeze_text_encoder) == ("clip_backbone", True)
    assert (denoiser.hidden_dim, denoiser.post_embed_norm, denoiser.is_causal) == (512, True, True)
    assert (noise.num_timesteps, noise.clamp_range) == (1000, (-3.0, 3.0))
    assert config.data.normalization.epsilon == 1e-2
    assert (config.hparams.warmup, config.total_train_samples) == (0.1, 100_000)
    assert config.data.dataset_manifest == ["s3://bucket/shards/manifest.jsonl"]


def test_record_is_read_leniently_and_unknown_keys_are_listed(write: Write) -> None:
    write("config.yaml", RECORD)
    resolved = load("config.yaml", hparams__lr="1e-3")
    assert set(resolved.unknown_keys) == {
        "data.an_older_key",
        "distributed.device",
        "distributed.local_rank",
        "distributed.rank",
    }
    config = resolved.config
    assert (config.save_path, config.data.dataset_statistics) == ("runs", [])
    assert (config.data.prefetch_factor, config.hparams.warmup) == (4, 1000.0)
    assert "hparams.lr" in resolved.typed
    assert "hparams.warmup" not in resolved.typed
    # Rules that have no key in published files.
    model: Any = config.model
    assert model.vision_language_backbone.image_words
    assert model.clean_padded_steps
    assert config.hparams.decay_by_name


def test_keys_of_a_file_are_typed_and_included_keys_are_not(write: Write) -> None:
    write("part.yaml", "lr: 1\n")
    write("job.yaml", "hparams:\n  <<: !include part.yaml\n  wd: 0\n")
    assert load("job.yaml").typed == {"hparams.wd"}


def test_unknown_key_of_a_job_is_ignored_only_with_compat(write: Write) -> None:
    write("job.yaml", "hparams: {lr: 1, momentum: 2}\n")
    assert load("job.yaml", compat=True).unknown_keys == ("hparams.momentum",)
    with fails("config.unknown_key"):
        load("job.yaml")
    with fails("config.unknown_key"):  # typed keys are never ignored
        load("job.yaml", compat=True, hparams__speed=1)


def test_shallow_merging_replaces_a_whole_section(write: Write) -> None:
    write("part.yaml", "data: {shuffle: false}\n")
    write("job.yaml", "<<: !include part.yaml\ndata: {num_workers: 1}\n")
    assert load("job.yaml", compat=True).config.data.shuffle
    assert not load("job.yaml").config.data.shuffle


def test_earlier_name_of_crop(write: Write) -> None:
    write("job.yaml", "data: {augmentation: {image: {random_crop: {enabled: true}}}}\n")
    data: Any = load("job.yaml").config.data
    assert data.augmentation.image.crop.enabled


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ("freeze_text_encoder: true", "clip_backbone"),
        ("patch_size: 16, img_size: 64", "vit_backbone"),
    ],
)
def test_backbone_type_is_derived_from_its_keys(write: Write, keys: str, kind: str) -> None:
    write("job.yaml", f"model: {{type: diffusion_policy, vision_language_backbone: {{{keys}}}}}")
    model: Any = load("job.yaml").config.model
    assert model.vision_language_backbone.type == kind
