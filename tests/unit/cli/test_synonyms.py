"""Options that one guesses lead to the options of this one."""

import json
import re

import pytest

from vlatool.cli.app import run

# Command | option that it does not have | start of what the hint says.
WRONG = """
train | --nnodes | torchrun
train | --steps | did you mean --total-train-steps
train | --batch_size | did you mean --hparams.global_batch_size
train | --num_workers | did you mean --data.num_workers
train | --save_freq | did you mean --save-every-n-steps
train | --resume | the same command again resumes
train | --policy.path | did you mean --init-from
train | --policy.device | CUDA_VISIBLE_DEVICES
train | --dataset.repo_id | did you mean --data
train | --dataset.root | did you mean --data
train | --optimizer.lr | did you mean --hparams.lr
train | --optimizer.weight_decay | did you mean --hparams.wd
finetune | --policy.path | did you mean --init-from
train | --max_steps | did you mean --total-train-steps
train | --weight_decay | did you mean --hparams.wd
train | --run_name | did you mean --name
train -p future-vla-libero | --lora_rank | did you mean --model.lora.rank
download hf://datasets/a/b | --local-dir | did you mean --output
download hf://datasets/a/b | --max-workers | did you mean --workers
download hf://datasets/a/b | --token | set HF_TOKEN
download hf://datasets/a/b | --revision | write hf://datasets/OWNER/NAME@REVISION
train | --epochs | did you mean --num-epochs
train | --lr | did you mean --hparams.lr
train | --gpus | did you mean --nproc
train | --devices | did you mean --nproc
train | --workers | did you mean --data.num_workers
train | --cameras | did you mean --data.camera_names
train | --checkpoint | did you mean --init-from
train | --out-dir | did you mean --output
finetune | --checkpoint | did you mean --from
encode A | --data-path | did you mean --data
preprocess spartan raw | --cameras | did you mean --camera-names
preprocess spartan raw | --num-episodes | did you mean --max-episodes
preprocess spartan raw | --force | did you mean --overwrite
encode A | --checkpoint | did you mean --tokenizer
encode A | --gpus | did you mean --nproc
build-dataset A | --num-workers | did you mean --workers
launch slurm train | --ntasks-per-node | did you mean --slurm.tasks_per_node
launch sagemaker | --preset | vlatool launch sagemaker {train|finetune} --preset
launch slurm | --data | vlatool launch slurm {train} --data
# Spelling, where it is near, and nothing where nothing is
train | --ouput | did you mean --output
preprocess spartan raw | --overwite | did you mean --overwrite
train | --val-every | did you mean --val-every-n-steps
train | --frobnicate | `vlatool train --help`
serve run | --zebra | `vlatool serve --help`
"""
ROWS = [
    tuple(part.strip() for part in line.split("|", 2))
    for line in WRONG.strip().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(("command", "option", "start"), ROWS)
def test_a_wrong_option_leads_to_the_right_one(
    command: str, option: str, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.split()
    preset = ["--preset", "diffusion-policy-tiny", "-o", "run"]
    needs_preset = words[-1] in ("train", "finetune")
    assert run([*words, option, "1", *(preset if needs_preset else []), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    # A key of a section is named in the message, as it is written in a file.
    text = f"{error['message']}\n{error['hint']}".replace('"', "--").replace("_", "-")
    expected = start.replace("_", "-")
    assert re.search(rf"(^|\(|: ){re.escape(expected)}", text, re.MULTILINE), error
