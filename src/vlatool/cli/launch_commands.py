"""Rows of the table for commands that start others on SageMaker, Slurm or a Ray cluster."""

from vlatool.cli.command import TRAINING_PRESETS, Command

_SAGEMAKER_OPTIONS = (
    *("data", "remote_sync", "preset", "config", "sagemaker.user", "sagemaker.instance_type"),
    *("sagemaker.instance_count", "sagemaker.image", "sagemaker.arn", "sagemaker.spot", "dry_run"),
)
_SAGEMAKER_DETAILS = (
    "Takes the options of `vlatool train`, and --sagemaker.KEY VALUE. Data, weights and the copy "
    "of the run are in buckets."
)
_SAGEMAKER_EXAMPLE = (
    "vlatool launch sagemaker train -p diffusion-policy-bellpepper --data s3://lab/data "
    "--remote-sync s3://lab/runs --sagemaker.user ada.l --sagemaker.instance_type p5"
)

LAUNCH: dict[str, Command] = {
    "launch sagemaker train": Command(
        "Train a model in a SageMaker job.",
        "vlatool.workflows.launch_sagemaker:launch_sagemaker_train",
        "vlatool.workflows.launch_sagemaker:LaunchSageMakerConfig",
        examples=(_SAGEMAKER_EXAMPLE, f"{_SAGEMAKER_EXAMPLE} --dry-run --json | jq .request"),
        details=_SAGEMAKER_DETAILS,
        options=_SAGEMAKER_OPTIONS,
        form="vlatool.cli.launch:launch_train_form",
        presets=TRAINING_PRESETS,
    ),
    "launch sagemaker finetune": Command(
        "Train a model in a SageMaker job, from the weights of a checkpoint.",
        "vlatool.workflows.launch_sagemaker:launch_sagemaker_finetune",
        "vlatool.workflows.launch_sagemaker:LaunchSageMakerConfig",
        examples=tuple(
            _SAGEMAKER_EXAMPLE.replace("train", f"finetune --from {weights}")
            for weights in ("s3://lab/runs/first", "s3://lab/checkpoint_3.pt")
        ),
        details=_SAGEMAKER_DETAILS,
        options=("from", *(name for name in _SAGEMAKER_OPTIONS if name != "sagemaker.spot")),
        form="vlatool.cli.launch:launch_finetune_form",
        presets=TRAINING_PRESETS,
    ),
    "launch slurm train": Command(
        "Write the script of a training run for Slurm; with --submit, submit it.",
        "vlatool.workflows.launch_slurm:launch_slurm_train",
        "vlatool.workflows.launch_slurm:SlurmTrainConfig",
        examples=(
            (
                "vlatool launch slurm train --preset diffusion-policy-tiny --data data "
                "-o runs/first --slurm.gpus-per-node 1"
            ),
            (
                "vlatool launch slurm train -p diffusion-policy-bellpepper --data s3://lab/data "
                "-o runs/pepper --slurm.nodes 2 --slurm.gpus-per-node 8 --submit"
            ),
        ),
        details="Takes the options of `vlatool train`. The files go to the folder `launch` beside "
        "the run.",
        options=(
            *("data", "output", "preset", "config", "slurm.nodes", "slurm.gpus_per_node"),
            *("slurm.cpus_per_task", "slurm.partition", "slurm.time", "slurm.setup"),
            *("slurm.options", "submit", "overwrite", "dry_run"),
        ),
        form="vlatool.cli.launch:launch_train_form",
        presets=TRAINING_PRESETS,
    ),
    "launch ray preprocess": Command(
        "Preprocess on a Ray cluster, or write the file of a new one.",
        "vlatool.workflows.launch_ray:launch_ray_preprocess",
        "vlatool.workflows.launch_ray:RayPreprocessConfig",
        {"format": "[FORMAT]", "sources": "SOURCE..."},
        (
            "vlatool launch ray preprocess spartan s3://lab/raw -o s3://lab/data",
            "vlatool launch ray preprocess spartan raw -o data --ray-address auto",
        ),
        details="Takes the options of `vlatool preprocess`. Without --ray-address, writes the file "
        "for `ray up` and prints the commands that run on the new cluster.",
        form="vlatool.cli.preprocess:preprocess_form",
        presets=("preprocess",),
        options=(
            *("output", "preset", "config", "sink", "ray_address", "ray.cluster", "ray.image"),
            *("ray.key_pair", "ray.subnet", "ray.security_group", "ray.account"),
            *("ray.head_profile", "ray.worker_profile", "on_error", "overwrite", "dry_run"),
        ),
    ),
}
