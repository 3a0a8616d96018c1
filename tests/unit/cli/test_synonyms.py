"""Options of other tools, and what one guesses, lead to the options of this one."""

import json
import re

import pytest

from vlatool.cli.app import run

# Command | option that it does not have | start of what the hint says. The options of a tool are
# those of its own documentation or `--help`, collected before the table of synonyms was written.
WRONG = """
# torchrun --help
train | --nproc-per-node | did you mean --nproc
train | --nnodes | torchrun
train | --node-rank | torchrun
train | --rdzv-endpoint | torchrun
train | --rdzv-backend | torchrun
train | --master-addr | torchrun
train | --master-port | torchrun
train | --max-restarts | the same command again resumes
# accelerate launch --help
train | --num_processes | did you mean --nproc
train | --num_machines | torchrun
train | --machine_rank | torchrun
train | --main_process_port | torchrun
train | --mixed_precision | did you mean --hparams.precision
train | --gpu_ids | CUDA_VISIBLE_DEVICES
train | --config_file | did you mean --config
train | --use_deepspeed | did you mean --distributed.fsdp
train | --zero_stage | did you mean --distributed.fsdp
train | --use_fsdp | did you mean --distributed.fsdp
train | --fsdp_offload_params | did you mean --distributed.fsdp_cpu_offload
train | --fsdp_activation_checkpointing | did you mean --hparams.grad_checkpointing
train | --gradient_clipping | did you mean --hparams.grad_clip_norm
train | --dynamo_backend | did you mean --hparams.torchcompile
train | --multi_gpu | did you mean --nproc
# lerobot-train, lerobot-eval: documentation of their options
train | --steps | did you mean --total-train-steps
train | --batch_size | did you mean --hparams.global_batch_size
train | --num_workers | did you mean --data.num_workers
train | --save_freq | did you mean --save-every-n-steps
train | --log_freq | did you mean --log-every-n-steps
train | --eval_freq | did you mean --val-every-n-steps
train | --job_name | did you mean --name
train | --resume | the same command again resumes
train | --wandb.enable | did you mean --wandb
train | --wandb.project | did you mean --wandb-project-name
train | --policy.path | did you mean --init-from
train | --policy.pretrained_path | did you mean --init-from
train | --policy.type | `vlatool presets`
train | --policy.device | CUDA_VISIBLE_DEVICES
train | --policy.use_amp | did you mean --hparams.precision
train | --policy.push_to_hub | `vlatool upload`
train | --dataset.repo_id | did you mean --data
train | --dataset.root | did you mean --data
train | --dataset.episodes | `vlatool preprocess --episodes`
train | --optimizer.lr | did you mean --hparams.lr
train | --optimizer.weight_decay | did you mean --hparams.wd
train | --optimizer.grad_clip_norm | did you mean --hparams.grad_clip_norm
train | --scheduler.num_warmup_steps | did you mean --hparams.warmup
finetune | --policy.path | did you mean --init-from
eval rollout | --eval.n_episodes | did you mean --episodes
eval rollout | --eval.batch_size | did you mean --batch-size
eval rollout | --env.type | did you mean --env
eval rollout | --n_action_steps | did you mean --execute-steps
# swift sft: documentation of its parameters
train | --deepspeed | did you mean --distributed.fsdp
train | --max_steps | did you mean --total-train-steps
train | --eval_steps | did you mean --val-every-n-steps
train | --save_total_limit | did you mean --max-checkpoint-limit
train | --lr_scheduler_type | did you mean --hparams.lr_scheduler
train | --warmup_ratio | did you mean --hparams.warmup
train | --weight_decay | did you mean --hparams.wd
train | --adam_beta1 | did you mean --hparams.beta1
train | --max_grad_norm | did you mean --hparams.grad_clip_norm
train | --report_to | did you mean --tracker
train | --run_name | did you mean --name
train | --lora_rank | adapters are for future_vla models
train -p future-vla-libero | --lora_rank | did you mean --model.lora.rank
train | --attn_impl | PyTorch chooses the implementation
train | --gradient_accumulation_steps | did you mean --hparams.per_gpu_batch_size
train | --bf16 | did you mean --hparams.precision
train | --optim | did you mean --hparams.optimizer
train | --split_dataset_ratio | did you mean --data.val_dataset_manifest
# hf download, hf upload: --help
download hf://datasets/a/b | --local-dir | did you mean --output
download hf://datasets/a/b | --exclude | did you mean --leave-out
download hf://datasets/a/b | --max-workers | did you mean --workers
download hf://datasets/a/b | --force-download | did you mean --force
download hf://datasets/a/b | --token | set HF_TOKEN
download hf://datasets/a/b | --revision | write hf://datasets/OWNER/NAME@REVISION
download hf://datasets/a/b | --repo-type | write hf://datasets/OWNER/NAME@REVISION
upload a hf://models/a/b | --private | a new repository is private without --public
upload a hf://models/a/b | --repo-type | write hf://datasets/OWNER/NAME@REVISION
# What one guesses
train | --epochs | did you mean --num-epochs
train | --lr | did you mean --hparams.lr
train | --gpus | did you mean --nproc
train | --devices | did you mean --nproc
train | --workers | did you mean --data.num_workers
train | --cameras | did you mean --data.camera_names
train | --horizon | did you mean --data.lowdim_future_timesteps
train | --seed | did you mean --hparams.seed
train | --checkpoint | did you mean --init-from
train | --compile | did you mean --hparams.torchcompile
train | --ema-decay | did you mean --ema.alpha
train | --out-dir | did you mean --output
finetune | --checkpoint | did you mean --from
download hf://datasets/a/b | --overwrite | did you mean --force
encode A | --data-path | did you mean --data
preprocess spartan raw | --num-proc | did you mean --workers
preprocess spartan raw | --image-size | did you mean --resize-images-size
preprocess spartan raw | --horizon | did you mean --future-lowdim-steps
preprocess spartan raw | --fps | did you mean --target.fps
preprocess spartan raw | --cameras | did you mean --camera-names
preprocess spartan raw | --num-episodes | did you mean --max-episodes
preprocess spartan raw | --force | did you mean --overwrite
encode A | --episodes | did you mean --exclude
encode A | --checkpoint | did you mean --tokenizer
encode A | --gpus | did you mean --nproc
build-dataset A | --episodes | did you mean --limit
build-dataset A | --num-workers | did you mean --workers
eval rollout | --num-envs | did you mean --env-processes
eval rollout | --replan-steps | did you mean --execute-steps
eval rollout | --task-suite-name | did you mean --suite
eval rollout | --save-video | did you mean --videos
serve run | --policy.dir | did you mean --checkpoint
serve run | --api-key | did you mean --key-file
serve run | --ssl-certfile | did you mean --certificate
inspect raw | --report | did you mean --html
launch slurm train | --gres | did you mean --slurm.gpus_per_node
launch slurm train | --ntasks-per-node | did you mean --slurm.tasks_per_node
launch slurm train | --qos | did you mean --slurm.options
launch sagemaker train | --role | did you mean --sagemaker.arn
launch sagemaker train | --num-nodes | did you mean --sagemaker.instance_count
launch sagemaker | --preset | vlatool launch sagemaker {train|finetune} --preset
launch slurm | --data | vlatool launch slurm {train} --data
# Spelling, where it is near, and nothing where nothing is
train | --ouput | did you mean --output
preprocess spartan raw | --overwite | did you mean --overwrite
train | --val-every | did you mean --val-every-n-checkpoints
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
