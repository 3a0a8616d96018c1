"""Options by meaning: words of other tools, and of people who guess, for keys of this program.

Words: the documentation of torchrun, accelerate, lerobot, ms-swift, hf, openpi, Slurm, SageMaker.
"""

from collections.abc import Container

# Words, with underscores and without dashes → keys, the best first; of those that a command does
# not have, nothing is said. A dotted word is another tool's; of others the last part is compared.
_KEYS = {
    "steps max_steps num_steps iterations max_iters max_train_steps": "total_train_steps max_steps",
    "epochs max_epochs num_train_epochs": "num_epochs",
    "samples": "total_train_samples max_samples limit",
    "batch_size train_batch_size": (
        "hparams.global_batch_size hparams.per_gpu_batch_size batch_size"
    ),
    "per_device_batch_size micro_batch_size gradient_accumulation_steps accumulate_grad_batches "
    "grad_accum": "hparams.per_gpu_batch_size hparams.global_batch_size",
    "lr learning_rate": "hparams.lr",
    "lr_scheduler lr_scheduler_type scheduler.type": "hparams.lr_scheduler",
    "warmup warmup_ratio num_warmup_steps warmup_steps": "hparams.warmup",
    "weight_decay wd": "hparams.wd",
    "adam_beta1 beta1": "hparams.beta1",
    "adam_beta2 beta2": "hparams.beta2",
    "max_grad_norm grad_clip grad_clip_norm gradient_clipping gradient_clip_val": (
        "hparams.grad_clip_norm"
    ),
    "optim optimizer optimizer.type": "hparams.optimizer",
    "mixed_precision precision dtype bf16 fp16 fp32 amp use_amp torch_dtype": (
        "hparams.precision precision"
    ),
    "compile torch_compile dynamo_backend": "hparams.torchcompile",
    "fsdp_activation_checkpointing activation_checkpointing grad_checkpointing": (
        "hparams.grad_checkpointing"
    ),
    "seed": "hparams.seed",
    "lora_rank lora_r use_lora lora": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "ema use_ema": "ema.enabled weights",
    "ema_decay ema_rate": "ema.alpha",
    "gpus num_gpus n_gpus ngpus devices num_processes multi_gpu nproc_per_node world_size procs": (
        "nproc slurm.gpus_per_node"
    ),
    "deepspeed use_deepspeed zero_stage fsdp use_fsdp fsdp_sharding_strategy": "distributed.fsdp",
    "fsdp_offload_params cpu_offload": "distributed.fsdp_cpu_offload",
    "workers num_workers dataloader_workers jobs num_proc dataset_num_proc threads max_workers "
    "n_jobs parallel": "data.num_workers workers num_workers",
    "dataset.repo_id dataset.root dataset.path dataset_path data_path data_dir train_data "
    "repo_id": "data source",
    "split_dataset_ratio val_dataset val_data eval_dataset": "data.val_dataset_manifest data",
    "save_freq save_interval save_every checkpoint_every": "save_every_n_steps",
    "log_freq log_interval log_every logging_steps": "log_every_n_steps",
    "eval_freq eval_interval eval_steps val_freq val_check_interval": (
        "val_every_n_steps eval_every_n_checkpoints"
    ),
    "save_total_limit keep_last max_checkpoints": "max_checkpoint_limit",
    "job_name run_name exp_name experiment_name": "name",
    "wandb.enable use_wandb": "wandb",
    "wandb.project wandb_project project": "wandb_project_name",
    "wandb.entity entity": "wandb_entity",
    "report_to logger": "tracker",
    "config_file config_name cfg": "config",
    "policy.path policy.pretrained_path policy.dir checkpoint ckpt ckpt_path pretrained "
    "pretrained_path base_model model_path load": "from init_from checkpoint tokenizer",
    "input input_dir input_path source src raw_dir": "sources source data",
    "out out_dir output_dir save_dir logdir log_dir dest local_dir dir report_dir": "output",
    "force force_download clobber": "overwrite force",
    "overwrite": "force",
    "dryrun": "dry_run",
    # Data
    "cameras camera camera_name image_keys": "data.camera_names camera_names cameras",
    "horizon chunk_size action_horizon action_chunk pred_horizon": (
        "data.lowdim_future_timesteps future_lowdim_steps execute_steps max_steps"
    ),
    "n_obs_steps obs_horizon history past_steps": "data.lowdim_past_timesteps past_lowdim_steps",
    "image_size img_size resize size resolution": "resize_images_size",
    "fps": "target.fps",
    "quality": "jpeg_quality",
    "shard_size maxcount": "samples_per_shard",
    "limit max_samples num_episodes n_episodes": "max_episodes limit episodes",
    "episodes": "limit exclude max_episodes",
    "skip exclude ignore": "exclude leave_out",
    "fast_tokenizer action_tokenizer": "fast",
    "codes": "tokens",
    "ray": "engine ray_address",
    "html report open": "html",
    # Evaluation and serving
    "eval.n_episodes n_eval_episodes num_trials num_trials_per_task num_rollouts": "episodes",
    "eval.batch_size": "batch_size eval.batch_size",
    "env.type env.task env_id": "env eval.env",
    "num_envs n_envs": "env_processes batch_size",
    "n_action_steps replan_steps action_steps open_loop_horizon": "execute_steps",
    "num_inference_steps ddim_steps denoising_steps": "inference_steps",
    "task_suite task_suite_name": "suite",
    "save_video save_videos video record": "videos",
    "prompt task_description": "instruction",
    "api_key token_file": "key_file",
    "ssl_certfile ssl_cert cert": "certificate",
    "ssl_keyfile ssl_key": "private_key",
    "bind address": "host",
    "timeout": "request_timeout_s",
    # Clusters
    "gres gpus_per_node gpus_per_task": "slurm.gpus_per_node",
    "ntasks_per_node": "slurm.tasks_per_node",
    "cpus": "slurm.cpus_per_task",
    "queue": "slurm.partition",
    "qos mem constraint exclude_nodes mail_user": "slurm.options",
    "role role_arn": "sagemaker.arn",
    "num_nodes instances num_machines nnodes": "sagemaker.instance_count slurm.nodes",
    "image_uri image": "sagemaker.image ray.image",
    "use_spot_instances spot_instances": "sagemaker.spot",
}
_MACHINES = (
    "torchrun starts a run on several machines (torchrun --nnodes 2 ... -m vlatool train ...), and "
    "so do `vlatool launch slurm` and `launch sagemaker`"
)
_REPOSITORY = "write hf://datasets/OWNER/NAME@REVISION, or hf://models/OWNER/NAME for a model"
_NOTES = {
    "nnodes num_machines num_nodes node_rank machine_rank master_addr master_port rdzv_endpoint "
    "rdzv_backend rdzv_id main_process_ip main_process_port standalone": _MACHINES,
    "resume resume_from resume_training max_restarts continue": (
        "the same command again resumes; --overwrite starts anew"
    ),
    "device gpu_ids gpu cuda cpu": "CUDA_VISIBLE_DEVICES=0,1 chooses the GPUs; empty: none is used",
    "policy.type model_type arch": "`vlatool presets` lists the presets: --preset NAME",
    "push_to_hub hub_model_id": "`vlatool upload` puts a run on a hub",
    "dataset.episodes": "`vlatool preprocess --episodes` chooses the episodes of the training data",
    "lora_rank lora_alpha lora use_lora lora_r target_modules": (
        "adapters are for future_vla models: --model.lora.rank, --model.lora.alpha"
    ),
    "attn_impl attn_implementation flash_attn": "PyTorch chooses the implementation of attention",
    "token hf_token use_auth_token": "set HF_TOKEN, or log in with `hf auth login`",
    "revision repo_type": _REPOSITORY,
    "private": "a new repository is private without --public",
}
_BY_WORD = {
    table: {word: row for words, row in rows.items() for word in words.split()}
    for table, rows in (("keys", _KEYS), ("notes", _NOTES))
}


def meant_keys(word: str, known: Container[str]) -> tuple[str, ...]:
    """Keys among the known ones that a word of another tool stands for, the best first."""
    row = _lookup(word, "keys")
    return tuple(key for key in row.split() if key in known and key != word)


def note_on(word: str) -> str:
    """Sentence on a word that stands for no key; empty if there is none."""
    return _lookup(word, "notes")


def _lookup(word: str, table: str) -> str:
    rows = _BY_WORD[table]
    word = word.lower().replace("-", "_")
    return rows.get(word) or rows.get(word.rpartition(".")[2], "")
