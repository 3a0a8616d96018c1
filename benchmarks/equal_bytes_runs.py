"""Runs of `equal_bytes.py`: built inputs, all writing commands, all options that affect bytes.

A line is a command without the program. `equal_bytes.py` completes it with `-q`, `-o out/NAME` if
it writes a folder, `--workers 1` for `preprocess`, and `--json` unless the name ends in `-text`.
A run starts after the runs whose outputs (`out/NAME`) its line names.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

BUCKET = "equal-bytes"
HAND = "right::panda"
XYZ = f"robot__actual__poses__{HAND}__xyz"
OTHER_XYZ = "robot__desired__poses__left::panda__xyz"
ROT = f"robot__actual__poses__{HAND}__rot_6d"
WORLD_TASK = "WorldPutBlockInBin"
IN_S3 = f"s3://{BUCKET}/out"

SAMPLES = {
    "sample-spartan": "sample spartan -o raw/spartan --episodes 4 --frames 28 --depth --seed 1",
    "sample-spartan-b": "sample spartan -o raw/spartan-b --episodes 2 --frames 20 --seed 5",
    "sample-spartan-6": "sample spartan -o raw/spartan-6 --episodes 2 --frames 20 --cameras 6 "
    "--size medium --workers 2",
    "sample-published": "sample spartan -o raw/published --episodes 1 --frames 12 --cameras 4 "
    "--size published --depth",
    "sample-lerobot": "sample lerobot -o raw/lerobot --episodes 4 --frames 24 --seed 2",
    "sample-lerobot-b": "sample lerobot -o raw/lerobot-b --episodes 2 --frames 20 --seed 6",
    "sample-lerobot-4": "sample lerobot -o raw/lerobot-4 --episodes 2 --cameras 4 --size medium",
    "sample-libero": "sample libero -o raw/libero --episodes 3 --frames 24",
    "sample-folder": "sample folder -o raw/folder --episodes 2 --frames 20 --seed 3",
}
SPARTAN = "preprocess spartan raw/spartan --sink lbm"
SHORT = "--past-lowdim-steps 1 --future-lowdim-steps 3 --max-padding-right 3 --samples-per-shard 8"
PREPROCESS = {
    "spartan": SPARTAN,
    "spartan-two-workers": f"{SPARTAN} --workers 2",
    "spartan-ray": f"{SPARTAN} --engine ray --ray-num-cpus 2",
    "spartan-from-s3": f"preprocess spartan s3://{BUCKET}/raw/spartan --sink lbm",
    "spartan-to-s3": f"{SPARTAN} {SHORT} -o {IN_S3}/spartan-to-s3 --workers 2",
    "spartan-windows-zero": f"{SPARTAN} --past-lowdim-steps 3 --future-lowdim-steps 5 --stride 2 "
    "--max-padding-left 3 --max-padding-right 5 --padding-strategy zero --image-indices -2,0,1",
    "spartan-windows-reflect": f"{SPARTAN} {SHORT} --max-padding-left 1 --padding-strategy reflect "
    "--seed 7 --samples-per-shard 5",
    "spartan-unpadded": f"{SPARTAN} --max-padding-left 0 --max-padding-right 0 --image-indices 0",
    "spartan-still-threshold": f"{SPARTAN} {SHORT} --filter-still-samples --still-threshold 0.3",
    "spartan-still-fields": f"{SPARTAN} {SHORT} --filter-still-samples "
    f"--still-field-thresholds '{{\"{XYZ}\": 0.15}}'",
    "spartan-turned-depth": f"{SPARTAN} {SHORT} --depth --labels --resize-images-size 48,40 "
    "--camera-rotations '{scene_right_0: 1, wrist_right_minus: 2}' --image-resizing-filter bicubic",
    "spartan-no-crop": f"{SPARTAN} {SHORT} --image-resizing-method resize_no_crop "
    "--image-resizing-filter bilinear --resize-images-size 40,24 --jpeg-quality 70 "
    "--camera-names wrist_right_minus",
    "spartan-fit-compat": f"{SPARTAN} {SHORT} --image-resizing-method resize_fit --compat --depth "
    "--image-resizing-filter box --resize-images-size 32,48 "
    "--camera-rotations '{scene_right_0: 3}'",
    "spartan-nearest": f"{SPARTAN} {SHORT} --image-resizing-filter nearest --labels "
    "--resize-images-size 96,80 --camera-names wrist_right_minus,scene_right_0",
    "spartan-fields": f"{SPARTAN} {SHORT} --data-discard-keys robot__version,{OTHER_XYZ} "
    "--action-key-fields a,b --action-index-fields 3,20 --no-compute-statistics --task Other",
    "spartan-action-file": f"{SPARTAN} {SHORT} --action-fields-config-path raw/actions.yaml",
    "spartan-pose-groups": f"{SPARTAN} {SHORT} --config raw/poses.yaml",
    "spartan-language-held-out": f"{SPARTAN} {SHORT} --language-annotations-path raw/language.yaml "
    "--validation-episodes-path raw/validation.json",
    "spartan-episodes": f"{SPARTAN} {SHORT} --episodes 0:2,3",
    "spartan-max-episodes": f"{SPARTAN} {SHORT} --max-episodes 2 --set jpeg_quality=50",
    "spartan-two-sources": f"preprocess spartan raw/spartan raw/spartan-b {SHORT} --workers 2",
    "spartan-mixed-sources": f"preprocess spartan raw/spartan raw/built-cups {SHORT}",
    "spartan-published-names": f"preprocess --type spartan --source-episodes raw/spartan "
    f"--use-depth-data {SHORT} --max-episodes-to-process 1",
    "preset-14-future": "preprocess spartan raw/published --preset lbm-1past-14future --depth",
    "preset-20-future": "preprocess spartan raw/published --preset lbm-5past-20future --compat",
    "preset-two": f"preprocess spartan raw/spartan-6 -p lbm-cameras-6 -p lbm-fields {SHORT}",
    "preset-world": "preprocess spartan raw/spartan-6 --preset world-windows",
    "cups": f"preprocess spartan raw/built-cups {SHORT}",
    "cups-successful": f"preprocess spartan raw/built-cups {SHORT} --only-successful",
    "cups-all-cameras": f"preprocess spartan raw/built-cups {SHORT} --depth "
    "--camera-names scene_right_0,wrist_left_minus --skip-episodes-missing-cameras",
    "broken": f"preprocess spartan raw/built-broken {SHORT}",
    "broken-nan-kept": f"preprocess spartan raw/built-broken {SHORT} --no-fail-on-nan",
    "broken-stop": f"preprocess spartan raw/built-broken {SHORT} --on-error stop",
    "broken-tolerated": f"preprocess spartan raw/built-broken {SHORT} --max-failures 5",
    "lerobot": "preprocess lerobot raw/lerobot --sink lbm",
    "lerobot-ray": "preprocess lerobot raw/lerobot --sink lbm --engine ray --ray-num-cpus 1",
    "lerobot-options": f"preprocess lerobot raw/lerobot-4 {SHORT} --resize-images-size 48,48 "
    "--stride 2 --filter-still-samples --episodes 1: --camera-rotations "
    "'{observation.images.scene_right_0: 1}' --padding-strategy reflect --image-indices 0,2",
    "lerobot-images": f"preprocess lerobot raw/built-lerobot {SHORT} --workers 2 --task-join ' / ' "
    "--observation-keys observation.gripper,observation.state --task-column task_index",
    "lerobot-two-sources": f"preprocess lerobot raw/lerobot raw/lerobot-b {SHORT} "
    "--skip-episodes-missing-cameras",
    "lerobot-mixed-sources": f"preprocess lerobot raw/lerobot raw/built-lerobot {SHORT}",
    "libero": "preprocess lerobot raw/libero --sink lbm",
    "libero-poses": f"preprocess lerobot raw/libero {SHORT} --config raw/libero.yaml --seed 3 "
    "--observation-keys state --action-keys actions --max-episodes 2",
    "folder": "preprocess folder raw/folder",
    "dry-run-spartan": f"{SPARTAN} --dry-run",
    "dry-run-lerobot": "preprocess lerobot raw/lerobot --sink lbm --dry-run",
    "no-source": "preprocess spartan raw/nothing",
    "bad-options": f"{SPARTAN} --stride 0 --jpeg-quality 500",
    "again": f"{SPARTAN} -o out/spartan",
    "refused": f"{SPARTAN} {SHORT} -o out/spartan-two-workers",
    "overwritten": f"{SPARTAN} {SHORT} --seed 9 -o out/spartan-no-crop --overwrite",
}
LIBERO = "preprocess libero raw/libero"
STEPS = "--past-steps 2 --future-steps 2"
WINDOWS = {
    "windows": f"{LIBERO} {STEPS} --resize-images-size 64,64",
    "windows-preset": f"{LIBERO} --preset future-vla --max-episodes 1",
    "windows-resized": f"{LIBERO} {STEPS} --qa-mode random --seed 3 --name other --action-width 7 "
    "--image-resizing-method resize_fit --image-resizing-filter bilinear "
    "--resize-images-size 48,40 --exclude 1",
    "windows-alternate": f"{LIBERO} --past-steps 3 --future-steps 1 --qa-mode alternate "
    "--resize-images-size null --camera-names wrist_image --workers 2",
    "windows-to-s3": f"{LIBERO} {STEPS} --qa-mode vla --resize-images-size 64,64 "
    f"-o {IN_S3}/windows-to-s3",
    "windows-of-lerobot": f"preprocess lerobot raw/lerobot --sink jsonl {STEPS} "
    "--resize-images-size 32,32",
    "image-shards": f"{LIBERO} --sink image-shards --val-ratio 0.3",
    "image-shards-jpeg": "preprocess images out/windows/images --image-format jpeg --jpeg-quality "
    "80 --jpeg-subsampling 4:2:0 --resize-images-size 48 --no-image-metadata --split-name part "
    "--val-ratio 0.5 --workers 2",
    "image-shards-mixed": "preprocess images raw/built-images --extensions .png,.jpg,.gif,.webp",
    "image-shards-preset": "preprocess images raw/built-images --preset titok-images "
    "--resize-images-size 32",
    "image-shards-to-s3": f"{SPARTAN} --sink image-shards -o {IN_S3}/image-shards-to-s3",
    "image-shards-split": "preprocess images out/windows/images",
    "split": "split out/image-shards-split --val-ratio 0.5",
    "split-absolute": f"split {IN_S3}/image-shards-to-s3 --absolute",
    "split-lists": "split out/image-shards-jpeg --train-output out/split-lists/train.txt "
    "--val-output out/split-lists/val.txt --val-ratio 0.3 --file-pattern '.*_(\\d+)\\.tar$'",
}
TRAIN = "--set log_every_n_steps=1 --num-checkpoints 2 --set data.num_workers=0"
BATCH = "--set hparams.global_batch_size=8 --set hparams.per_gpu_batch_size=4"
ON_IMAGES = f"--data out/image-shards {TRAIN} {BATCH}"
TITOK = "--model.encoder.n_layers 1 --model.decoder.n_layers 1"
TOKENIZERS = {
    "fast": "tokenizer fit-fast out/windows --vocab-size 300",
    "fast-published": "tokenizer fit-fast out/windows --profile libero --alphabet published "
    "--vocab-size 300 --gripper normalised",
    "fast-shards": "tokenizer fit-fast out/policy-data out/policy-data --scale 20 --raw 0 "
    "--vocab-size 400 --workers 2 --limit 90 --seed 3 "
    "--action-fields robot__action__poses__right::panda__xyz_relative",
    "vqgan": f"tokenizer train -p vqgan-tiny {ON_IMAGES} --total-train-steps 6",
    "vqgan-discriminator": f"tokenizer train -p vqgan-tiny {ON_IMAGES} --total-train-steps 4 "
    "--model.losses.discriminator_weight 0.1 --model.losses.discriminator_start 1 "
    "--data.preprocessing.random_flip true --data.preprocessing.crop_size 48",
    "stage-1": f"tokenizer train -p titok-tiny-stage1 {ON_IMAGES} {TITOK} --total-train-steps 6 "
    "--model.teacher out/vqgan --model.cache_teacher_ids true",
    "stage-2": f"tokenizer train -p titok-tiny-stage2 {ON_IMAGES} {TITOK} --total-train-steps 6 "
    "--model.teacher out/vqgan --model.init_weight out/stage-1 "
    "--model.losses.discriminator_start 2 --model.losses.discriminator_ramp 2",
    "stage-pixels": f"tokenizer train -p titok-tiny-stage1 {ON_IMAGES} {TITOK} "
    "--total-train-steps 3 --model.decoder_head pixel --model.latent_layout aligned "
    "--model.losses.perceptual_loss gradients --model.losses.discriminator_start 1 "
    "--model.quantizer.use_l2_norm false --ema.type ema",
    "stage-kl": f"tokenizer train -p titok-tiny-stage1 {ON_IMAGES} {TITOK} --total-train-steps 3 "
    "--model.decoder_head pixel --model.quantizer.type kl "
    "--model.losses.perceptual_loss gradients",
    "tokenizer-export": "tokenizer export out/stage-2",
    "tokenizer-export-step": "tokenizer export out/stage-1/checkpoints/step_00000003",
    "tokenizer-eval": "tokenizer eval out/stage-2 out/image-shards",
    "tokenizer-eval-stage-1": "tokenizer eval out/stage-1 out/image-shards --split train",
    "tokenizer-eval-vqgan": "tokenizer eval out/vqgan out/image-shards --batch-size 7",
    "no-teacher": f"tokenizer train -p titok-tiny-stage1 {ON_IMAGES}",
}
PROFILE = "--profile out/fast/profile.yaml"
CODES = {
    "codes": "encode out/windows --tokenizer out/stage-2",
    "codes-packed": "encode out/windows --tokenizer out/tokenizer-export --layout packed "
    "--check-every 7 --batch-size 5",
    "codes-bf16": "encode out/windows --tokenizer out/stage-1 --layout packed --precision bf16 "
    "--check-every 0",
    "codes-of-shards": "encode out/image-shards --tokenizer out/stage-2 --layout packed",
    "codes-of-raw": "encode raw/libero --tokenizer out/stage-pixels --format libero",
    "codes-to-s3": f"encode {IN_S3}/windows-to-s3 --tokenizer out/stage-2 -o {IN_S3}/codes-to-s3",
    "codes-vqgan": "encode out/windows --tokenizer out/vqgan",
    "codes-refused": "encode out/windows --tokenizer out/stage-kl",
    "decoded": "decode out/codes --tokenizer out/stage-2",
    "decoded-episode": "decode out/codes-packed/episode_000001.npz --batch-size 5 "
    "--tokenizer out/tokenizer-export",
    "decoded-pixels": "decode out/codes-of-raw --tokenizer out/stage-pixels",
    "decoded-refused": "decode out/codes-bf16 --tokenizer out/stage-1",
    "decoded-by-another": "decode out/codes-of-raw --tokenizer out/stage-2",
    "samples": f"build-dataset out/windows --fast out/fast {PROFILE} --tokens out/codes",
    "samples-packed": f"build-dataset out/windows --fast out/fast {PROFILE} --packed "
    "--tokens out/codes-packed --workers 1",
    "samples-lines": "build-dataset out/windows --fast out/fast-published "
    "--tokens out/codes-packed --lines-per-file 7 --kinds wm --gripper normalised --limit 2",
    "samples-to-s3": f"build-dataset {IN_S3}/windows-to-s3 --fast out/fast {PROFILE} --absolute "
    f"--kinds vla --tokens {IN_S3}/codes-to-s3 -o {IN_S3}/samples-to-s3",
    "samples-packed-to-s3": f"build-dataset {IN_S3}/windows-to-s3 --fast out/fast --packed "
    f"--tokens {IN_S3}/codes-to-s3 -o {IN_S3}/samples-packed-to-s3",
    "samples-without-codes": "build-dataset out/windows --fast out/fast",
    "export-codes-json": "export out/codes-packed",
    "export-codes-packed": "export out/codes --workers 2",
    "export-samples": "export out/samples-packed --layout jsonl",
    "export-samples-to-s3": f"export {IN_S3}/samples-packed-to-s3 --absolute "
    f"-o {IN_S3}/export-samples-to-s3",
}
ON_POLICY_DATA = f"--data out/policy-data {TRAIN} {BATCH}"
NARROW = (
    "--model.transformer.hidden_dim 16 --model.transformer.n_layers 1 --model.transformer.n_heads 2"
)
KEYPOINTS = (
    f"-p world-pick {ON_POLICY_DATA} {NARROW} --set model.vision_language_backbone.hidden_dim=16 "
    "--set model.vision_language_backbone.channels=4,8 --set data.shuffle_initial=8"
)
VIT_MODEL = """model:
  type: diffusion_policy
  vision_language_backbone: {type: vit_backbone, hidden_dim: 64, inter_dim: 256, patch_size: 16,
    img_size: 96, n_heads: 4, n_layers: 2}
  transformer: {type: transformer, hidden_dim: 128, n_layers: 2, n_heads: 4, is_causal: false}
  noise_scheduler: {num_timesteps: 1000, clamp_range: [-4.0, 4.0]}
"""
VIT = (
    f"-p diffusion-policy-tiny -c raw/vit.yaml {ON_POLICY_DATA} {NARROW} "
    "--set model.vision_language_backbone.hidden_dim=16 "
    "--set model.vision_language_backbone.inter_dim=32"
)
BASE = "model.vision_language_backbone"
FIELDS = (
    f"--data.proprioception_fields {XYZ},robot__actual__grippers__{HAND}_hand --data.action_fields "
    f"robot__action__poses__{HAND}__xyz,robot__action__grippers__{HAND}_hand"
)
CLIP = (
    f"{ON_POLICY_DATA} {NARROW} {FIELDS} --model.type diffusion_policy "
    f"--{BASE}.type clip_backbone --{BASE}.hf_pretrained raw/built-clip"
)
VLM = (
    f"{ON_POLICY_DATA} {NARROW} {FIELDS} --model.type diffusion_policy --{BASE}.type vlm_backbone "
    f"--{BASE}.image_size 32 --{BASE}.num_vlm_layers_to_use 2 --total-train-steps 3"
)
POLICIES = {
    "policy-data": f"{SPARTAN} --preset world-windows --sink lbm --samples-per-shard 16",
    "policy-data-b": "preprocess spartan raw/spartan-b --preset world-windows",
    "policy": f"train {KEYPOINTS} --total-train-steps 20",
    "policy-two-loaders": f"train {KEYPOINTS} --total-train-steps 6 --data.num_workers 2",
    "policy-short": f"train {KEYPOINTS} --total-train-samples 40 --hparams.lr_scheduler const "
    "--data.image_indices -1,0 --data.augmentation.image.color_jitter.enabled true "
    "--data.normalization.method percentile_5_95 --data.normalization.scope global "
    "--data.normalization.centered_norm true",
    "policy-continued": f"train {KEYPOINTS} --total-train-samples 72 --hparams.lr_scheduler const "
    "--data.image_indices -1,0 --data.augmentation.image.color_jitter.enabled true "
    "--data.normalization.method percentile_5_95 --data.normalization.scope global "
    "--data.normalization.centered_norm true "
    "-o out/policy-short",
    "policy-mixture": f"train {KEYPOINTS} --data out/policy-data-b --total-train-steps 6 "
    "--data.dataset_weighting 1,3 --val_every_n_checkpoints 1 --ema.type rising "
    "--data.val_dataset_manifest out/policy-data-b/shards --total_val_samples 16",
    "policy-vit": f"train {VIT} --total-train-steps 6",
    "policy-clip": f"train {CLIP} --total-train-steps 4",
    "policy-paligemma": f"train {VLM} --{BASE}.hf_pretrained raw/built-paligemma",
    "policy-smolvlm": f"train {VLM} --{BASE}.hf_pretrained raw/built-smolvlm",
    "policy-qwen3": f"train {VLM} --{BASE}.hf_pretrained raw/built-qwen3_vl",
    "policy-finetuned": f"finetune --from out/policy {KEYPOINTS} --total-train-steps 5 "
    "--hparams.seed 7 --model.resume_except output_layer",
    "policy-from-export": f"finetune --from out/export-policy/checkpoints/ema_1.pt {VIT} "
    "--total-train-steps 3",
    "policy-dry-run": f"train {KEYPOINTS} --total-train-steps 20 --dry-run",
    "policy-without-data": "train -p world-pick",
    "policy-bad-key": f"train {KEYPOINTS} --set hparams.rl=1",
    "policy-other": f"train {KEYPOINTS} --total-train-steps 20 --hparams.lr 0.5 -o out/policy",
    "export-policy": "export out/policy-vit",
    "export-policy-clip": "export out/policy-clip",
    "export-policy-paligemma": "export out/policy-paligemma",
    "export-policy-refused": "export out/policy",
    "open-loop": "eval open-loop out/policy out/policy-data --max-samples 20",
    "open-loop-raw": "eval open-loop out/policy-vit/checkpoints/step_00000003 out/policy-data-b "
    "--max-samples 9 --batch-size 4 --weights raw --inference-steps 3 --seed 4",
    "rollout": "eval rollout out/policy --env vlatool/PickPlace-v0 --episodes 2 --max-steps 12",
    "rollout-preset": "eval rollout out/policy-clip -p rollout-world --episodes 1 --max-steps 8 "
    "--seed 3 --execute-steps 2 --instruction 'put the red block in the bin'",
}
STATS = {
    "stats-merge": "stats merge out/spartan out/spartan-windows-zero -o out/merged.json",
    "stats-merge-weights": "stats merge out/lerobot out/lerobot-two-sources --weights 1,3 "
    "-o out/weighted.json",
    "stats-merge-compact": "stats merge out/cups out/preset-world --compact -o out/compact.json",
    "stats-merge-refused": "stats merge out/libero out/lerobot",
    "stats-merge-printed": "stats merge out/lerobot out/lerobot-ray",
    "stats-compute": "stats compute out/spartan-fields -o out/computed.json",
}
OTHERS = {
    "demo": "demo --episodes 3 --steps 4 --rollouts 2",
    "resolve-config": "resolve-config -p diffusion-policy-tiny -c raw/vit.yaml "
    "--output out/vit.yaml",
    "resolve-published": "resolve-config -p vla-diffusion-bellpepper-published "
    "--output out/published.yaml",
    "resolve-titok": "resolve-config -p titok-l32-stage2 --output out/titok.yaml",
    "resolve-lbm": "resolve-config -p diffusion-policy-lbm1 --explain",
    "inspect-page": "inspect raw/spartan --episodes 0:2 --html out/page.html",
    "inspect-text": "inspect raw/lerobot",
    "inspect-output": "inspect out/lerobot",
    "inspect-windows": "inspect out/windows --html out/windows.html",
    "inspect-image-shards": "inspect out/image-shards",
    "inspect-codes": "inspect out/codes-packed",
    "inspect-samples": "inspect out/samples --html out/samples.html",
    "inspect-fast": "inspect out/fast",
    "inspect-run": "inspect out/policy",
    "inspect-tokenizer-run": "inspect out/stage-2",
    "dry-run-text": f"{SPARTAN} {SHORT} --dry-run",
    "verify-source": "verify raw/built-broken --full",
    "verify-output": "verify out/spartan-turned-depth --full",
    "verify-windows": "verify out/windows --full",
    "verify-image-shards": "verify out/image-shards-jpeg --full",
    "verify-codes": "verify out/codes --full",
    "verify-samples": "verify out/samples-packed --full",
    "verify-fast": "verify out/fast",
    "verify-run": "verify out/policy --full",
    "verify-refused": "verify raw/nothing",
    "unknown-command": "trian",
    "unknown-preset": "resolve-config --preset wrold-pick",
}
RUNS = PREPROCESS | WINDOWS | TOKENIZERS | CODES | POLICIES | STATS | OTHERS
# Commands whose output no option names: run to output.
OUTPUTS = {
    "split": "out/image-shards-split",
    "split-absolute": f"{IN_S3}/image-shards-to-s3",
    "split-lists": "out/split-lists",
}


def make_inputs(raw: Path) -> None:
    """Writes inputs that `vlatool sample` cannot: broken or mixed episodes, images, base models."""
    from tests.builders.base_models import clip_base, vlm_base
    from tests.builders.lerobot import lerobot_dataset
    from tests.builders.spartan import TASK, session_folder, spartan_task

    cups = spartan_task(raw / "built-cups", 4, 12, changes={3: _without_camera})
    for number, success in enumerate((True, False)):
        folder = session_folder(cups) / f"episode_{number}/processed"
        np.savez(folder / "summary.npz", episode_success=np.array([[success]]))
    broken = spartan_task(raw / "built-broken", 4, 9, changes={1: _with_nan})
    torn = session_folder(broken) / "episode_2/processed/observations.npz"
    torn.write_bytes(torn.read_bytes()[:500])
    cameras = {"observation.images.scene_right_0": "video", "observation.images.odd": "image"}
    lerobot_dataset(raw / "built-lerobot", (9, 7, 8), cameras=cameras, version="v2.0")
    _write_images(raw / "built-images")
    clip_base(raw / "built-clip")
    for family in ("paligemma", "smolvlm", "qwen3_vl"):
        vlm_base(raw / f"built-{family}", family)
    settings = {
        "vit.yaml": VIT_MODEL,
        "actions.yaml": f"action_key_fields: [x, {ROT}]\naction_index_fields: [3, 9]\n"
        f'pose_groups: [{{name: p, position_key: "{XYZ}", rotation_key: "{ROT}"}}]\n',
        "poses.yaml": f'pose_groups: [{{name: p, position_key: "{XYZ}", rotation_key: "{ROT}"}}]\n',
        "libero.yaml": "pose_groups: [{name: hand, position_key: 'state[0:3]', rotation_key: "
        "'state[3:6]', rotation: axis_angle}, {name: to, position_key: 'actions[0:3]', "
        "rotation_key: 'actions[3:6]', rotation: euler_xyz, reference: hand}]\n",
        "language.yaml": f"language_dict: {{{WORLD_TASK}: {{original: [do it], other: [a, b]}}}}\n",
        "validation.json": f'{{"{WORLD_TASK}": [1], "{TASK}": [0]}}',
    }
    for name, text in settings.items():
        (raw / name).write_text(text)


def _without_camera(documents: dict[str, dict[str, Any]]) -> None:
    cameras = documents["metadata"]["camera_id_to_semantic_name"]
    removed = next(iter(cameras))
    documents["metadata"]["camera_id_to_semantic_name"] = {
        key: name for key, name in cameras.items() if key != removed
    }


def _with_nan(documents: dict[str, dict[str, Any]]) -> None:
    values = documents["observations"]["robot__actual__grippers__left::panda_hand"]
    values[2] = np.nan


def _write_images(root: Path) -> None:
    """Images of several modes, sizes and file formats in two folders."""
    from PIL import Image

    rows, columns = np.mgrid[0:40, 0:56]
    pixels = np.stack([rows * 5, columns * 4, rows + columns], axis=-1).astype(np.uint8)
    for folder in ("episode_a", "nested/episode_b"):
        (root / folder).mkdir(parents=True)
        for number, (mode, suffix) in enumerate(
            [("RGB", "png"), ("RGB", "jpg"), ("L", "png"), ("P", "gif"), ("RGBA", "webp")]
        ):
            image = Image.fromarray(pixels[number:, : 56 - number]).convert(mode)
            image.save(root / folder / f"image_{number}.{suffix}")


if __name__ == "__main__":
    make_inputs(Path(sys.argv[1]))
