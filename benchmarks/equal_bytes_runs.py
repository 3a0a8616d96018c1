"""What `equal_bytes.py` runs: made data, then every option that shapes bytes at least once.

`-o out/NAME --workers 1` stand behind a preprocess command that does not say otherwise,
and `--json -q` behind every one that is not named `...-text`.
"""

from pathlib import Path
from typing import Any

import numpy as np

BUCKET = "equal-bytes"
HAND = "right::panda"
XYZ = f"robot__actual__poses__{HAND}__xyz"
OTHER_XYZ = "robot__desired__poses__left::panda__xyz"
ROT = f"robot__actual__poses__{HAND}__rot_6d"
WORLD_TASK = "WorldPutBlockInBin"

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
}
SPARTAN = "preprocess spartan raw/spartan"
SHORT = "--past-lowdim-steps 1 --future-lowdim-steps 3 --max-padding-right 3 --samples-per-shard 8"
RUNS = {
    "spartan": SPARTAN,
    "spartan-two-workers": f"{SPARTAN} --workers 2",
    "spartan-ray": f"{SPARTAN} --engine ray --ray-num-cpus 2",
    "spartan-from-s3": f"preprocess spartan s3://{BUCKET}/raw/spartan",
    "spartan-to-s3": f"{SPARTAN} {SHORT} -o s3://{BUCKET}/out/data --workers 2",
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
    "broken-tolerated": f"preprocess spartan raw/built-broken {SHORT} --max-failures 5 -o out/tol",
    "lerobot": "preprocess lerobot raw/lerobot",
    "lerobot-ray": "preprocess lerobot raw/lerobot --engine ray --ray-num-cpus 1",
    "lerobot-options": f"preprocess lerobot raw/lerobot-4 {SHORT} --resize-images-size 48,48 "
    "--stride 2 --filter-still-samples --episodes 1: --camera-rotations "
    "'{observation.images.scene_right_0: 1}' --padding-strategy reflect --image-indices 0,2",
    "lerobot-images": f"preprocess lerobot raw/built-lerobot {SHORT} --workers 2 --task-join ' / ' "
    "--observation-keys observation.gripper,observation.state --task-column task_index",
    "lerobot-two-sources": f"preprocess lerobot raw/lerobot raw/lerobot-b {SHORT} "
    "--skip-episodes-missing-cameras",
    "lerobot-mixed-sources": f"preprocess lerobot raw/lerobot raw/built-lerobot {SHORT}",
    "libero": "preprocess lerobot raw/libero",
    "libero-poses": f"preprocess lerobot raw/libero {SHORT} --config raw/libero.yaml --seed 3 "
    "--observation-keys state --action-keys actions --max-episodes 2",
    "dry-run-spartan": f"{SPARTAN} --dry-run",
    "dry-run-lerobot": "preprocess lerobot raw/lerobot --dry-run",
    "no-source": "preprocess spartan raw/nothing",
    "bad-options": f"{SPARTAN} --stride 0 --jpeg-quality 500",
    "inspect-page": "inspect raw/spartan --episodes 0:2 --html out/page.html",
    "inspect-text": "inspect raw/lerobot",
    "dry-run-text": f"{SPARTAN} {SHORT} --dry-run",
    "verify-source": "verify raw/built-broken --full",
}
AFTER = {
    "again": f"{SPARTAN} -o out/spartan",
    "refused": f"{SPARTAN} {SHORT} -o out/spartan-two-workers",
    "overwritten": f"{SPARTAN} {SHORT} --seed 9 -o out/spartan-no-crop --overwrite",
    "verify-output": "verify out/spartan-turned-depth --full",
    "inspect-output": "inspect out/lerobot",
    "stats-merge": "stats merge out/spartan out/spartan-windows-zero -o out/merged.json",
    "stats-merge-weights": "stats merge out/lerobot out/lerobot-two-sources --weights 1,3 "
    "-o out/weighted.json",
    "stats-merge-compact": "stats merge out/cups out/preset-world --compact -o out/compact.json",
    "stats-merge-refused": "stats merge out/libero out/lerobot",
    "stats-merge-printed": "stats merge out/lerobot out/lerobot-ray",
}


def make_inputs(raw: Path) -> None:
    """What `vlatool sample` does not make: broken, odd and mixed episodes, and settings."""
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
    settings = {
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
    gone = next(iter(cameras))
    documents["metadata"]["camera_id_to_semantic_name"] = {
        key: name for key, name in cameras.items() if key != gone
    }


def _with_nan(documents: dict[str, dict[str, Any]]) -> None:
    values = documents["observations"]["robot__actual__grippers__left::panda_hand"]
    values[2] = np.nan
