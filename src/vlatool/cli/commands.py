"""The table of all commands. It imports none of them, so that `vlatool --help` is fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# Folders of presets for the commands with a training configuration.
TRAINING_PRESETS = ("runs", "models", "models/denoisers", "data", "hparams", "rollouts")


@dataclass(frozen=True)
class Command:
    """A command: its configuration, its workflow, and the texts of its help."""

    summary: str  # one sentence for the help
    # `module:function(Class)`: function of `(config, *, reporter)`, which returns the result, and
    # its configuration, which may be `module:Class` of another module. Without a class, the
    # function takes no arguments.
    call: str
    # Keys that are arguments, with their names in the usage line; a name that ends with `...`
    # stands for several values.
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    examples: tuple[str, ...] = ()  # what follows the words of the command in lines for the help
    details: str = ""  # second paragraph of the help
    # `module:function` that returns the `Form` of a command that differs from the others.
    form: str = ""
    has_ranks: bool = False  # the command has `--nproc`
    has_rows: bool = False  # the result is a list, and the command has `--jsonl`
    presets: tuple[str, ...] = ()  # folders of presets for this command
    # Options that `--help` lists, in this order, with underscores; those that a format or a sink
    # does not have are left out. Empty: all.
    options: str = ""
    # Keys to `module:function` of known values among others, for completion.
    suggestions: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def workflow(self) -> str:
        """`module:function`."""
        return self.call.partition("(")[0]

    @property
    def schema(self) -> str:
        """`module:Class` of the configuration; empty for a command without one."""
        name = self.call.partition("(")[2].rstrip(")")
        return f"{self.call.partition(':')[0]}:{name}" if name and ":" not in name else name


_SAGEMAKER_OPTIONS = (
    "data remote_sync preset config sagemaker.user sagemaker.instance_type "
    "sagemaker.instance_count sagemaker.image sagemaker.arn sagemaker.spot "
    "dry_run"
)
_SAGEMAKER_DETAILS = (
    "Takes the options of `vlatool train`, and --sagemaker.KEY VALUE. Data, weights and the copy "
    "of the run must be in buckets."
)
_SAGEMAKER_EXAMPLE = (
    "-p diffusion-policy-bellpepper --data s3://lab/data --remote-sync s3://lab/runs "
    "--sagemaker.user ada.l --sagemaker.instance_type p5"
)

_JOB = "ada-l-vlatool-2026-11-24-09-30-00-1f2e3d4c"

_LAUNCH: dict[str, Command] = {
    "launch sagemaker train": Command(
        "Train a model on Amazon SageMaker.",
        "vlatool.workflows.launch_training:launch_sagemaker_train(LaunchSageMakerConfig)",
        examples=(_SAGEMAKER_EXAMPLE, f"{_SAGEMAKER_EXAMPLE} --dry-run --json | jq .request"),
        details=_SAGEMAKER_DETAILS,
        options=_SAGEMAKER_OPTIONS,
        form="vlatool.cli.training_options:launch_form",
        presets=TRAINING_PRESETS,
    ),
    "launch sagemaker finetune": Command(
        "Train on Amazon SageMaker from the weights of a checkpoint.",
        "vlatool.workflows.launch_training:launch_sagemaker_finetune(LaunchSageMakerConfig)",
        examples=tuple(
            f"--from {weights} {_SAGEMAKER_EXAMPLE}"
            for weights in ("s3://lab/runs/first", "s3://lab/checkpoint_3.pt")
        ),
        details=_SAGEMAKER_DETAILS,
        options="from " + _SAGEMAKER_OPTIONS.replace(" sagemaker.spot", ""),
        form="vlatool.cli.training_options:launch_form",
        presets=TRAINING_PRESETS,
    ),
    "launch status": Command(
        "Show the state of a SageMaker job.",
        "vlatool.workflows.launch_training:launch_status(LaunchStatusConfig)",
        {"job": "JOB"},
        (_JOB, f"{_JOB} --json | jq -r .status"),
    ),
    "launch stop": Command(
        "Stop a SageMaker job; repeat the launch command to continue its run.",
        "vlatool.workflows.launch_training:launch_stop(LaunchStopConfig)",
        {"job": "JOB"},
        (_JOB, f"{_JOB} --dry-run"),
    ),
    "launch slurm train": Command(
        "Write a Slurm script for a training run; with --submit, submit it.",
        "vlatool.workflows.launch_training:launch_slurm_train(SlurmTrainConfig)",
        examples=(
            "--preset policy-tiny --data data -o runs/first --slurm.gpus-per-node 1",
            (
                "-p diffusion-policy-bellpepper --data s3://lab/data -o runs/pepper "
                "--slurm.nodes 2 --slurm.gpus-per-node 8 --submit"
            ),
        ),
        details="Takes the options of `vlatool train`. Script and logs go to the folder "
        "`launch` beside the run.",
        options=(
            "data output preset config slurm.nodes slurm.gpus_per_node "
            "slurm.cpus_per_task slurm.partition slurm.time slurm.setup "
            "slurm.options submit overwrite dry_run"
        ),
        form="vlatool.cli.training_options:launch_form",
        presets=TRAINING_PRESETS,
    ),
}


_TRAINING_OPTIONS = (
    "data output preset config total_train_steps num_epochs hparams.lr "
    "hparams.global_batch_size hparams.per_gpu_batch_size data.camera_names "
    "data.num_workers nproc num_checkpoints overwrite dry_run"
)
_NEEDS_PRESET = "Name the model with a preset or a file: --preset NAME or --config FILE."

_COMMANDS: dict[str, Command] = {
    "demo": Command(
        "Run the whole pipeline on built-in data: minutes on a CPU.",
        "vlatool.workflows.demo:demo(DemoConfig)",
        examples=("", "--output demo-2 --seed 2 --json > demo-2.json"),
        details="Writes raw episodes, turns them into training data, trains a policy, evaluates "
        "it, and writes a report. Prints the command of each step.",
    ),
    "sample": Command(
        "Write raw episodes of a simulated world.",
        "vlatool.workflows.sample:sample(SampleConfig)",
        {"layout": "LAYOUT", "output": "OUTPUT"},
        (
            "spartan raw --episodes 20 --seed 1",
            "lerobot raw-lerobot --episodes 5 --cameras 2 --size small",
            "lerobot raw --world metaworld --task reach-v3 --size large",
        ),
    ),
    "download": Command(
        "Download files from a hub, a bucket or a web server.",
        "vlatool.workflows.download:download(DownloadConfig)",
        {"source": "[LOCATION]"},
        (
            "hf://datasets/physical-intelligence/libero --output libero",
            "--task PutKiwiOnSaucer --output lbm",
        ),
        suggestions={"task": "vlatool.datasets.task_table:task_names"},
    ),
    "preprocess": Command(
        "Turn your recordings into training data.",
        "vlatool.workflows.preprocess:preprocess(PreprocessConfig)",
        {"format": "[FORMAT]", "sources": "SOURCE..."},
        (
            "spartan raw --preset lbm-1past-14future --output data",
            "lerobot gr1 -o out/gr1 --episodes 0:4 --resize-images-size 96,96",
        ),
        form="vlatool.cli.preprocess:preprocess_form",
        presets=("preprocess",),
        options=(
            "output preset sink episodes max_episodes camera_names "
            "action_fields resize_images_size workers on_error overwrite "
            "dry_run"
        ),
    ),
    "curate": Command(
        "Measure episodes, and choose which ones to train on.",
        "vlatool.workflows.curate:curate(CurateConfig)",
        {"format": "[FORMAT]", "sources": "SOURCE..."},
        (
            "spartan raw --output curation",
            "spartan raw --output curation --preset curation-default --rules.idle_share.worst 0.1",
        ),
        form="vlatool.cli.preprocess:preprocess_form",
        presets=("curation",),
        options="output preset config keep episodes workers overwrite",
    ),
    "split": Command(
        "Split image shards into lists for training and validation.",
        "vlatool.workflows.split:split(SplitConfig)",
        {"shards": "SHARDS"},
        (
            "shards --val-ratio 0.01",
            "shards --train-output lists/train.txt --val-output lists/val.txt",
        ),
    ),
    "tokenizer train": Command(
        "Train a visual tokenizer; the same as `vlatool train`.",
        "vlatool.workflows.train:train(vlatool.training.config:TrainConfig)",
        examples=(
            "--preset vqgan-tiny --data shards --output runs/vqgan",
            "--preset titok-tiny-stage1 --data shards --model.teacher runs/vqgan -o runs/stage1",
            "config=titok_l32_stage1.yaml experiment.output_dir=runs/l32",
        ),
        details=f"{_NEEDS_PRESET} A TiTok tokenizer also needs --model.teacher, the run of a "
        "VQGAN, and in stage 2 --init-from, the run of stage 1.",
        form="vlatool.cli.training_options:train_form",
        has_ranks=True,
        presets=tuple(folder for folder in TRAINING_PRESETS if folder != "rollouts"),
        options=_TRAINING_OPTIONS.replace("data.camera_names", "init_from"),
    ),
    "tokenizer eval": Command(
        "Measure how well a visual tokenizer reconstructs images, beside simple baselines.",
        "vlatool.workflows.tokenizer_eval:tokenizer_eval(TokenizerEvalConfig)",
        {"checkpoint": "CHECKPOINT", "data": "DATA"},
        (
            "runs/stage2 shards-held",
            "runs/stage2 shards --split val --perceptual-weights weights --json",
        ),
        has_ranks=True,
    ),
    "tokenizer export": Command(
        "Export a trained visual tokenizer as the two published files.",
        "vlatool.workflows.export:tokenizer_export(TokenizerExportConfig)",
        {"checkpoint": "CHECKPOINT"},
        (
            "runs/stage2 --output tokenizer",
            "runs/stage2/checkpoints/step_00000300 -o tokenizer --json",
        ),
    ),
    "tokenizer fit-fast": Command(
        "Fit a FAST action tokenizer on the action chunks of training data.",
        "vlatool.workflows.fit_fast:fit_fast(FitFastConfig)",
        {"sources": "DATA..."},
        (
            "A --output fast --profile libero --vocab-size 2048",
            "data-a data-b --output fast --vocab-size 2048 --limit 50000",
        ),
    ),
    "encode": Command(
        "Encode images to the codes of a visual tokenizer.",
        "vlatool.workflows.encode:encode(vlatool.tokens.config:EncodeConfig)",
        {"data": "DATA"},
        (
            "libero --tokenizer runs/titok-stage2",
            "libero --tokenizer runs/titok-stage2 --layout packed --nproc 8",
        ),
        options=(
            "tokenizer output layout precision batch_size num_workers nproc "
            "format exclude on_error overwrite dry_run"
        ),
    ),
    "decode": Command(
        "Decode the codes of a visual tokenizer to images.",
        "vlatool.workflows.encode:decode(vlatool.tokens.config:DecodeConfig)",
        {"codes": "CODES"},
        (
            "libero/TiToken --tokenizer runs/titok-stage2 --output drawn",
            "libero/tokens/episode_000000.npz --tokenizer runs/titok-stage2 -o drawn",
        ),
    ),
    "build-dataset": Command(
        "Build samples for a language model from windows and codes.",
        "vlatool.workflows.build_dataset:build_dataset(BuildDatasetConfig)",
        {"data": "DATA"},
        ("A --fast fast --absolute", "A --fast fast --kinds vla --packed -o packed"),
        options=(
            "fast output tokens kinds limit packed absolute workers on_error overwrite dry_run"
        ),
    ),
    "export": Command(
        "Export codes, packed samples or a model in another layout.",
        "vlatool.workflows.export:export(ExportConfig)",
        {"source": "SOURCE"},
        (
            "libero/tokens --output libero/TiToken",
            "libero-packed --output libero-samples --absolute",
            "runs/pick --output published",
        ),
        details="Packed samples are samples stored as arrays.",
        options="output layout absolute workers on_error overwrite dry_run",
    ),
    "repair": Command(
        "Recover recordings that were cut off or damaged.",
        "vlatool.workflows.repair:repair(RepairConfig)",
        {"source": "SOURCE"},
        ("lerobot-set --output healthy", "lerobot-set --output healthy --dry-run"),
        details="Saves what is whole in Parquet without a footer. For mp4, MCAP, HDF5 and ROS 1 "
        "bags that were cut off, names the tool that helps.",
        options="output workers on_error overwrite dry_run",
    ),
    "compare": Command(
        "Compare the content of two data sets in any two layouts.",
        "vlatool.workflows.compare:compare_data(CompareDataConfig)",
        {"a": "A", "b": "B"},
        ("demos.hdf5 lerobot-set", "before after --images null --tolerance 0 --json"),
        details="Exits with 4 if they differ. `vlatool eval compare` compares two policies.",
    ),
    "compose": Command(
        "Write the initial weights of a future_vla model.",
        "vlatool.workflows.compose:compose(ComposeConfig)",
        examples=(
            (
                "--qwen Qwen/Qwen3-VL-4B-Instruct --dino facebook/dinov3-vitb16-pretrain-lvd1689m "
                "-o composed"
            ),
            "--tiny --output tiny",
        ),
        details="Joins Qwen3-VL and DINOv3 with new convolutions in the published layout, in "
        "bfloat16.",
    ),
    "train": Command(
        "Train a model.",
        "vlatool.workflows.train:train(vlatool.training.config:TrainConfig)",
        examples=(
            "--preset policy-tiny --data data --output runs/first",
            "-p policy-tiny --data data --num-epochs 3 --nproc 2",
        ),
        details=f"{_NEEDS_PRESET} `vlatool presets` lists the presets.",
        options=_TRAINING_OPTIONS,
        form="vlatool.cli.training_options:train_form",
        has_ranks=True,
        presets=TRAINING_PRESETS,
    ),
    "finetune": Command(
        "Train a model, starting from the weights of a checkpoint.",
        "vlatool.workflows.train:finetune(vlatool.training.config:TrainConfig)",
        examples=(
            "--from runs/first --preset policy-tiny --data new -o runs/new",
            "--from s3://lab/checkpoint_3.pt -p diffusion-policy-bellpepper --data d",
        ),
        details=f"{_NEEDS_PRESET} A run has its configuration in RUN/config.yaml.",
        options=f"from {_TRAINING_OPTIONS}",
        form="vlatool.cli.training_options:train_form",
        has_ranks=True,
        presets=TRAINING_PRESETS,
    ),
    **_LAUNCH,
    "resolve-config": Command(
        "Print the exact configuration that a run would use.",
        "vlatool.workflows.resolve_config:resolve_config(vlatool.training.config:TrainConfig)",
        examples=(
            "--preset policy-tiny --explain",
            "-c job.yaml --hparams.lr 3e-4 --output resolved.yaml",
        ),
        options="preset config set_ data from output explain derive schema",
        form="vlatool.cli.training_options:resolve_form",
        presets=TRAINING_PRESETS,
    ),
    "eval open-loop": Command(
        "Compare predicted with recorded actions, beside simple baselines.",
        "vlatool.workflows.open_loop:open_loop(vlatool.evaluation.config:OpenLoopConfig)",
        {"checkpoint": "CHECKPOINT", "data": "DATA"},
        ("runs/bin data-held", "runs/bin data-held --output errors --json > errors.json"),
        options=(
            "output weights inference_steps max_samples batch_size seed "
            "tokenizer future_samples allow"
        ),
    ),
    "eval rollout": Command(
        "Run a policy in a Gymnasium environment and count its successes.",
        "vlatool.workflows.rollout:rollout(vlatool.evaluation.config:RolloutConfig)",
        {"checkpoint": "CHECKPOINT"},
        (
            "runs/bin --env vlatool/PickPlace-v0 --episodes 50",
            "runs/bin --env vlatool/PickPlace-v0 --seed 7 -o rollouts --json",
        ),
        presets=("rollouts",),
        suggestions={"env": "vlatool.evaluation.environments:environment_ids"},
        options=(
            "env output preset config episodes seed execute_steps max_steps "
            "inference_steps batch_size weights instruction suite videos "
            "env_processes"
        ),
    ),
    "eval compare": Command(
        "Compare the success of two policies over the same starts (data: `vlatool compare`).",
        "vlatool.workflows.eval_compare:compare(vlatool.evaluation.config:CompareConfig)",
        {"a": "A", "b": "B"},
        ("runs/bin/eval/rollout-a runs/bin/eval/rollout-b", "rollouts-a rollouts-b --json"),
    ),
    "predict": Command(
        "Show what a policy predicts at one frame of recorded data.",
        "vlatool.workflows.predict:predict(PredictConfig)",
        {"checkpoint": "CHECKPOINT", "source": "SOURCE"},
        (
            "runs/bin raw --episode 3 --frame 20",
            "runs/bin data-held --frame 5 --output look --json",
        ),
        options=(
            "episode frame output instruction weights inference_steps seed "
            "tokenizer format temperature samples allow"
        ),
    ),
    "serve": Command(
        "Serve a policy to robots and simulators over the network.",
        "vlatool.workflows.serve:serve(vlatool.serving.config:ServeConfig)",
        {"checkpoint": "CHECKPOINT"},
        ("runs/bin", "runs/bin --host 0.0.0.0 --key-file key.txt --map robot.yaml"),
        details="Connect with `vlatool.connect(URL)`, or with the client of openpi. GET "
        "/healthz and /metrics answer on the same port.",
        options=(
            "host port map execute_steps weights inference_steps batch_size "
            "max_clients request_timeout_s key_file certificate private_key"
        ),
    ),
    "stats merge": Command(
        "Merge the statistics of several data sets.",
        "vlatool.workflows.stats:stats_merge(StatsMergeConfig)",
        {"sources": "DATA..."},
        ("data-a data-b --output merged.json", "data-a data-b --weights 1,3 > merged.json"),
    ),
    "stats compute": Command(
        "Compute statistics for shards that have none.",
        "vlatool.workflows.stats:stats_compute(StatsComputeConfig)",
        {"data": "DATA"},
        ("published/shards", "published/shards --output stats/published.json --workers 8"),
    ),
    "inspect": Command(
        "Show what recordings, training data or a run contain.",
        "vlatool.workflows.verify:inspect(InspectConfig)",
        {"location": "LOCATION", "others": "[OTHERS...]"},
        ("raw --html raw.html", "runs/bin --json | jq .kind", "raw other_raw shards"),
    ),
    "runs": Command(
        "List training runs, or compare two of them.",
        "vlatool.workflows.runs:runs(RunsConfig)",
        {"location": "[DIR]", "other": "[RUN]"},
        ("", "runs/first runs/second", "s3://lab/runs --compare first,second --json"),
        has_rows=True,
    ),
    "verify": Command(
        "Check recordings, data or a run, and list all problems.",
        "vlatool.workflows.verify:verify(VerifyConfig)",
        {"location": "LOCATION"},
        ("my_dataset", "raw --full --json | jq .codes"),
        has_rows=True,
    ),
    "upload": Command(
        "Upload data, a run or a tokenizer to a hub, with a card.",
        "vlatool.workflows.upload:upload(UploadConfig)",
        {"folder": "FOLDER", "location": "LOCATION"},
        (
            "gr1-v3 hf://datasets/lab/gr1-pick --license cc-by-4.0",
            "runs/pick hf://models/lab/pick --public --dry-run",
        ),
        details="Uploads only what `vlatool verify` finds whole; repeat the command to continue.",
    ),
    "presets": Command(
        "List the presets, or show one of them.",
        "vlatool.workflows.presets:presets(PresetsConfig)",
        examples=("", "--all", "--all --jsonl | head -3"),
        details="Lists the presets to start with. The second column says what a preset fills: "
        "runs are complete training configurations, models, data and hparams parts of "
        "one, preprocess is for `preprocess`, rollouts for `eval rollout`, and for "
        "the section `eval` of `train`. `vlatool presets show NAME` prints one.",
        has_rows=True,
    ),
    "presets show": Command(
        "Print a preset as a file for --config.",
        "vlatool.workflows.resolve_config:presets_show(PresetsShowConfig)",
        {"name": "NAME"},
        suggestions={"name": "vlatool.config.presets:preset_names"},
        examples=("world-pick", "titok-tiny-stage1 > stage1.yaml"),
    ),
    "plugins": Command(
        "List formats, sinks and model types, also from plugins.",
        "vlatool.workflows.catalog:plugins()",
        examples=("", "--json"),
        has_rows=True,
    ),
    "doctor": Command(
        "Check the installation, the hardware and the network.",
        "vlatool.workflows.doctor:doctor(DoctorConfig)",
        {"locations": "[LOCATION...]"},
        examples=("", "s3://lab/raw hf://owner/name --json"),
    ),
    "version": Command(
        "Print the versions of vlatool and Python.",
        "vlatool.workflows.catalog:version()",
        examples=("", "--json"),
    ),
}

# Words of a command to the command, in the order of the help; examples are whole lines.
COMMANDS = {
    words: replace(row, examples=tuple(f"vlatool {words} {end}".rstrip() for end in row.examples))
    for words, row in _COMMANDS.items()
}

# Words that stand before others, with their summary.
GROUPS: dict[str, str] = {
    "tokenizer": "Train, evaluate, export visual tokenizers; fit FAST.",
    "eval": "Evaluate a policy on recorded data or in an environment.",
    "stats": "Merge statistics of data sets, or compute missing ones.",
    "launch": "Train on SageMaker or Slurm.",
    "launch sagemaker": "Start training on Amazon SageMaker.",
    "launch slurm": "Start training on a cluster with Slurm.",
}
