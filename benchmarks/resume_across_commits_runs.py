"""Commands that `resume_across_commits.py` runs: the smallest run of every command that writes.

`made/NAME` is the finished output of the case NAME, made by the earlier commit. `OUT` in a line
stands for `out/NAME`; `-o out/NAME` is added to a line without it.
"""

from dataclasses import dataclass

HAND = "right::panda"
ACTIONS = f"""\
action_key_fields: [robot__action__poses__{HAND}__xyz, robot__action__grippers__{HAND}_hand]
action_index_fields: [3, 4]
pose_groups:
  - name: hand
    position_key: robot__actual__poses__{HAND}__xyz
    rotation_key: robot__actual__poses__{HAND}__rot_6d
"""
TRANSFORMER = """\
model:
  type: diffusion_policy
  vision_language_backbone:
    {type: vit_backbone, hidden_dim: 16, inter_dim: 32, patch_size: 16, img_size: 96, n_heads: 2,
     n_layers: 1}
  transformer: {type: transformer, hidden_dim: 32, n_layers: 1, n_heads: 2, is_causal: false}
  noise_scheduler: {num_timesteps: 1000, clamp_range: [-4.0, 4.0]}
"""
# Files beside the outputs.
FILES = {"actions.yaml": ACTIONS, "transformer.yaml": TRANSFORMER}

_WINDOWS = (
    "--past-lowdim-steps 1 --future-lowdim-steps 6 --max-padding-right 6 --samples-per-shard 8"
)
_STEPS = (
    "--total-train-steps 4 --num-checkpoints 2 --log_every_n_steps 1 --data.num_workers 0 "
    "--data.lanes 2 "
    "--hparams.global_batch_size 4"
)
_IMAGES = f"{_STEPS} --data made/images --data.preprocessing.crop_size 16"
_VQGAN = (
    "--model.channel_mult [1,1,2] --model.z_channels 8 --model.codebook_size 32 "
    "--model.norm_groups 8"
)
_TITOK = (
    "--model.teacher made/vqgan --model.patch_size 4 --model.num_latent_tokens 32 "
    "--model.encoder.hidden_dim 32 --model.decoder.hidden_dim 32"
)
_BUILD = "build-dataset made/windows --fast made/fast --tokens made/codes --workers 1"


@dataclass(frozen=True)
class Case:
    """Command to be tried.

    Attributes:
        line: Words of the command line.
        before: Case whose output the command adds files to; empty for a new output.
        again: Exit code of the command when its output is finished.
    """

    line: str
    before: str = ""
    again: int = 0


CASES = {
    "spartan": Case("sample spartan --episodes 4 --frames 12 --workers 1"),
    "lerobot": Case("sample lerobot --episodes 4 --frames 12 --workers 1"),
    "libero": Case("sample libero --episodes 4 --frames 8 --workers 1"),
    "shards": Case(f"preprocess spartan made/spartan {_WINDOWS} --camera-names scene_right_0"),
    "shards-actions": Case(
        f"preprocess spartan made/spartan {_WINDOWS} --camera-names scene_right_0 "
        "--action-fields-config-path actions.yaml --no-keep-episodes"
    ),
    "shards-lerobot": Case(f"preprocess lerobot made/lerobot {_WINDOWS}"),
    "frames": Case("preprocess spartan made/spartan --sink frames"),
    "lerobot-set": Case("preprocess spartan made/spartan --sink lerobot"),
    "windows": Case(
        "preprocess libero made/libero --past-steps 2 --future-steps 4 --resize-images-size 32,32"
    ),
    "windows-spartan": Case(
        "preprocess spartan made/spartan --sink jsonl --past-steps 2 --future-steps 4"
    ),
    "images": Case("preprocess images made/windows/images --val-ratio 0.5"),
    "images-spartan": Case("preprocess spartan made/spartan --sink image-shards"),
    "split": Case("split OUT --val-ratio 0.25", before="images"),
    "stats-merge": Case("stats merge made/shards made/shards -o OUT/stats.json"),
    "stats-compute": Case("stats compute made/shards -o OUT/stats.json --workers 1", again=2),
    "fast": Case("tokenizer fit-fast made/windows --vocab-size 300 --workers 1"),
    "vqgan": Case(f"tokenizer train -p vqgan-tiny {_IMAGES} {_VQGAN}"),
    "titok-1": Case(f"tokenizer train -p titok-tiny-stage1 {_IMAGES} {_TITOK}"),
    "titok-2": Case(
        f"tokenizer train -p titok-tiny-stage2 {_IMAGES} {_TITOK} "
        "--model.init_weight made/titok-1 --model.losses.discriminator_start 1"
    ),
    "tokenizer-eval": Case("tokenizer eval made/titok-2 made/images --split train"),
    "tokenizer-export": Case("tokenizer export made/titok-2"),
    "codes-json": Case(
        "encode made/windows --tokenizer made/titok-2 --num-workers 0 --check-every 20"
    ),
    "codes": Case("encode made/windows --tokenizer made/titok-2 --num-workers 0 --layout packed"),
    "decode": Case("decode made/codes --tokenizer made/titok-2"),
    "built": Case(_BUILD),
    "built-packed": Case(f"{_BUILD} --packed"),
    "built-lines": Case(f"{_BUILD} --lines-per-file 5"),
    "export-codes": Case("export made/codes"),
    "export-samples": Case("export made/built-packed"),
    "policy": Case(
        f"train -p diffusion-policy-tiny --data made/shards {_STEPS} "
        "--data.augmentation.image.color_jitter.enabled true"
    ),
    "policy-transformer": Case(
        f"train -p diffusion-policy-tiny -c transformer.yaml --data made/shards {_STEPS}"
    ),
    "finetune": Case(
        f"finetune -p diffusion-policy-tiny --from made/policy --data made/shards "
        f"--data made/shards --data.dataset_weighting [1,3] {_STEPS}"
    ),
    "export-policy": Case("export made/policy-transformer"),
    "open-loop": Case("eval open-loop made/policy made/shards --max-samples 4"),
    "rollout": Case("eval rollout made/policy -p rollout-world --episodes 51 --max-steps 1"),
}
