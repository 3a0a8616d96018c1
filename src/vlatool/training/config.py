"""Configuration of a training run; keys have the names of the published LBM program.

Source: reference/training 1.6.
"""

from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from typing import Any, ClassVar, Literal, Self

from pydantic import SerializeAsAny, create_model, field_validator, model_validator

from vlatool.checkpoints import locations
from vlatool.checkpoints.layout import RunDir
from vlatool.config import base
from vlatool.config.base import Converted, Ignored, Names, Supported, option
from vlatool.config.coerce import parse_plain
from vlatool.errors import ConfigError, DataError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.loading.base import DataKind, DatasetInfo, LoadingConfig, data_kind
from vlatool.models import trained
from vlatool.models.base import ModelType, Part
from vlatool.models.published import WeightsOrigin, published_at, registered_type, run_folder
from vlatool.plugins import RUN_SECTIONS, TRAINING_NAMES, TRANSLATIONS, Registry
from vlatool.storage.tree import parse_size
from vlatool.storage.uri import pinned

# Samples of a validation whose number is not set.
_MOST_VALIDATED = 2048


class HParams(base.ConfigModel):
    """Options of the optimizer, its schedule and the batches."""

    NAMES: ClassVar[Names] = {
        "precision": Supported(
            ("amp_bfloat16", "amp_bf16", "float32", "fp32"),
            "float16 needs a loss scaler, and bfloat16 weights lose small updates",
        ),
        "loss_function": Supported(
            (None, "mse"), "each model type defines its own loss; leave it out"
        ),
        "z_loss_coefficient": Supported(
            (0.0,), "it applies only to a cross entropy over a vocabulary"
        ),
    }

    precision: Literal["amp_bfloat16", "amp_bf16", "float32", "fp32", "amp", "pure_bf16"] = option(
        "amp_bfloat16", "bfloat16 autocast with float32 weights, or float32."
    )
    global_batch_size: int = option(512, "Samples per optimizer step.", ge=1)
    per_gpu_batch_size: int | None = option(
        8,
        "Samples per device and micro-batch; null: global batch / number of devices.",
        ge=1,
        affects_output=False,
    )
    seed: int = option(42, "Seed of initial weights, data order and noise.", ge=0, lt=2**63)
    lr: float = option(1e-4, "Peak learning rate.", ge=0)
    lr_scheduler: Literal["cosine", "const", "warmup_constant_decay", "model"] = option(
        "cosine",
        "Learning rate schedule after warm-up; model: the whole schedule of the model type.",
    )
    warmup: float = option(
        0.05, "Warm-up in steps; a value below 1 is a fraction of all steps.", ge=0
    )
    decay: float = option(
        0.3,
        "Length of the final decay of warmup_constant_decay in steps; a value below 1 is a "
        "fraction of all steps.",
        ge=0,
    )
    lr_cooldown_end: float = option(0.0, "Learning rate at the end of the run.", ge=0)
    force_min_lr: float = option(0.0, "Minimum learning rate of the cosine schedule.", ge=0)
    optimizer: Literal["adamw", "adam"] = option(
        "adamw", "Optimizer; adam adds the weight decay to the gradients."
    )
    wd: float = option(0.01, "Weight decay of linear and convolution weights.", ge=0)
    decay_by_name: bool = option(
        False,
        "Apply weight decay as published: to all weights except biases and weights with norm in "
        "their name. TiTok and VQGAN always use their own published rule.",
    )
    beta1: float = option(0.9, "First beta of AdamW.", ge=0, lt=1)
    beta2: float = option(0.95, "Second beta of AdamW.", ge=0, lt=1)
    eps: float = option(1e-8, "Epsilon of AdamW.", gt=0)
    loss_function: Literal["cross_entropy", "mse"] | None = option(
        None, "Loss; null: the loss of the model type.", affects_output=False
    )
    z_loss_coefficient: float = option(
        0.0, "Weight of the z-loss that is added to a cross entropy.", ge=0
    )
    grad_clip_norm: float | None = option(None, "Maximum gradient norm; null: no clipping.", gt=0)
    grad_checkpointing: bool = option(
        False, "Recompute blocks in the backward pass to save memory.", affects_output=False
    )
    torchcompile: bool = option(False, "Compile the blocks of the model.", affects_output=False)
    world_size: int | None = base.derived_field(
        "distributed.world_size", "Number of processes.", affects_output=False
    )

    @model_validator(mode="before")
    @classmethod
    def _published_numbers(cls, data: Any) -> Any:
        """Parses `warmup` and `decay`, which published files write as text: `warmup: "0.0"`."""
        if not isinstance(data, dict):
            return data
        quoted = {key: data[key] for key in ("warmup", "decay") if isinstance(data.get(key), str)}
        return {**data, **{key: parse_plain(text) for key, text in quoted.items()}}

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        if self.lr_cooldown_end > self.lr:
            raise ValueError(f"lr_cooldown_end {self.lr_cooldown_end} is above lr {self.lr}")
        return self


class EmaConfig(base.ConfigModel):
    """Exponential moving average of the weights."""

    enabled: bool = option(False, "Keep an average of the weights.")
    type: Literal["ema", "vanilla", "rising"] = option(
        "ema",
        "Decay: ema grows with the steps by inv_gamma and power, vanilla is fixed at "
        "alpha, rising is (1 + n) / (10 + n) with n = number of updates.",
    )
    alpha: float = option(0.999, "Decay if type is vanilla.", ge=0, lt=1)
    update_after_step: int = option(0, "Steps before averaging starts.", ge=0)
    inv_gamma: float = option(1.0, "Time scale if type is ema.", gt=0)
    power: float = option(0.75, "Exponent if type is ema.", gt=0)
    min_value: float = option(0.0, "Minimum decay.", ge=0, le=1)
    max_value: float = option(0.9999, "Maximum decay.", ge=0, le=1)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min_value > self.max_value:
            raise ValueError(f"min_value {self.min_value} is above max_value {self.max_value}")
        return self


class DistributedConfig(base.ConfigModel):
    """Processes and devices."""

    NAMES: ClassVar[Names] = {
        "ddp_static_graph": Ignored("not needed: every parameter is used in every step"),
        "dist_url": Supported(
            ("env://",), "torchrun, accelerate launch and --nproc set the rendezvous address"
        ),
        "fsdp_cpu_offload": Supported(
            (False,), "weights stay on their devices; shard over more devices"
        ),
    }

    world_size: int | None = base.derived_field(
        "number of started processes", "Number of processes."
    )
    dist_backend: Literal["auto", "nccl", "gloo"] = option(
        "auto", "Communication backend; auto: nccl with GPUs, else gloo."
    )
    fsdp: bool = option(False, "Shard weights and optimizer states over processes.")
    fsdp_reshard_after_forward: bool = option(
        False,
        "Free gathered weights after the forward pass, and gather them again for the backward "
        "pass.",
    )
    timeout: float = option(
        7200.0,
        "Seconds that a process waits for another one before the run ends; must be longer than "
        "rank 0 needs to write a checkpoint.",
        gt=0,
        le=2_592_000,
    )
    start_timeout: float = option(
        600.0,
        "Seconds that a process waits for the others when a run starts.",
        gt=0,
        le=2_592_000,
    )
    device_tflops: float | None = option(
        None, "Peak of a device in TFLOP/s, for the metric mfu; null: by the name of the GPU.", gt=0
    )
    fsdp_cpu_offload: bool = option(False, "Keep sharded weights on the host.")
    dist_url: str = option("env://", "Rendezvous address of the processes.")


class TrainConfig(base.ConfigModel):
    """A training run."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("total_train_samples", "num_epochs", "total_train_steps"),
    )
    preset_sections: ClassVar[Mapping[str, str]] = {
        "models": "model",
        "models/denoisers": "model.transformer",
        "data": "data",
        "hparams": "hparams",
        "rollouts": "eval",
    }
    translations: ClassVar[Registry[Any] | None] = TRANSLATIONS
    newer: ClassVar[Mapping[str, Any]] = {"lora": trained.LoraOptions()}
    NAMES: ClassVar[Names] = {
        "data": "data.folders",
        "from": "init_from",
        "model": "init_from",
        "output": Converted(run_folder),
        "output_dir": Converted(run_folder),
        "db_logging": Ignored(
            "there is no database; .vlatool/run.json records the run", is_switch=True
        ),
        "log_level": Ignored("-v and --log-file show the log"),
        "remote_sync_fixed_path": Ignored("there is one copy, below remote_sync"),
        **TRAINING_NAMES.get("ms-swift"),
    }

    name: str | None = base.derived_field(
        "preset or model type, and data", "Name of the run folder.", affects_output=False
    )
    resolve_configs: bool = option(False, "Print the configuration and exit.", affects_output=False)
    resolve_configs_path: str | None = option(
        None, "Write resolved_config.yaml to this folder and exit.", affects_output=False
    )
    save_path: str = base.nullable_field(
        "runs", "Folder in which run folders are created.", affects_output=False
    )
    init_from: str | None = option(
        None, "Initial weights: a run, a checkpoint, a published file or folder; null: none."
    )
    init_except: list[str] = option(
        [],
        "Networks that start with random weights, although init_from has them, such as "
        "action_encode and output_layer if your actions differ.",
    )
    init_weights_only: bool = option(
        True,
        "Take only the weights of init_from; false: continue its training, with averages, "
        "optimizer, step and position.",
    )
    total_train_samples: int | None = option(None, "Train on this many samples.", ge=1)
    num_epochs: int | None = option(None, "Train for this many passes over the data.", ge=1)
    total_train_steps: int | None = option(None, "Train for this many optimizer steps.", ge=1)
    num_checkpoints: int = option(
        5, "Number of checkpoints, evenly spaced over the run.", ge=1, affects_output=False
    )
    save_every_n_steps: int | None = option(
        None, "Save every N steps instead of num_checkpoints.", ge=1, affects_output=False
    )
    save_every_minutes: float | None = option(
        5.0,
        "Also save after N minutes without a checkpoint, or after 50 times the duration of the "
        "last save if that is longer; null: never. Such a checkpoint is for resuming: the next "
        "one replaces it.",
        gt=0,
        affects_output=False,
    )
    max_checkpoint_limit: int | None = option(
        None, "Keep the latest N checkpoints; null: all.", ge=1, affects_output=False
    )
    keep_every_n_steps: int | None = option(
        None,
        "Keep checkpoints at multiples of N steps, besides the latest.",
        ge=1,
        affects_output=False,
    )
    log_every_n_steps: int = option(20, "Log metrics every N steps.", ge=1, affects_output=False)
    images_every_n_steps: int | None = option(
        None, "Log images every N steps; null: at every checkpoint.", ge=1, affects_output=False
    )
    total_val_samples: int | None = option(
        None,
        "Samples per validation; null: all with val_every_n_steps, else at most 2,048.",
        ge=1,
        affects_output=False,
    )
    val_every_n_checkpoints: int = option(
        1, "Validate at every N-th checkpoint.", ge=1, affects_output=False
    )
    val_every_n_steps: int | None = option(
        None, "Validate every N steps instead of at checkpoints.", ge=1, affects_output=False
    )
    num_val_chunks: int = option(
        32,
        "Action chunks sampled per validation, to measure errors in physical units; 0: none.",
        ge=0,
        affects_output=False,
    )
    eval_every_n_checkpoints: int = option(
        1, "Roll out every N-th checkpoint, if the section eval is set.", ge=1, affects_output=False
    )
    tracker: list[Literal["tensorboard", "wandb"]] = option(
        [],
        "Programs that also show metrics and images: tensorboard (files in the run), wandb "
        "(Weights & Biases).",
        affects_output=False,
    )
    wandb: bool = option(False, "The same as wandb in tracker.", affects_output=False)
    wandb_project_name: str | None = option(
        None, "Project of W&B; null: WANDB_PROJECT, else vlatool.", affects_output=False
    )
    wandb_entity: str | None = option(
        None, "Team or user of W&B; null: WANDB_ENTITY, else your default.", affects_output=False
    )
    wandb_tags: list[str] = option([], "Tags of the run in W&B.", affects_output=False)
    remote_sync: str | None = option(
        None,
        "Location that gets a copy of the run folder in the background, such as s3://bucket/runs; "
        "null: none.",
        affects_output=False,
    )
    overwrite: bool = base.execution_field(
        default=False,
        description="Replace a run that is complete, or was made with other options.",
    )
    dry_run: bool = base.execution_field(
        default=False, description="Print the plan and write nothing."
    )
    device_memory: str | None = base.execution_field(
        default=None,
        description="Memory of a device for --dry-run, such as 80GB; null: as this machine has.",
    )
    rate: float | None = base.execution_field(
        default=None,
        description="Samples per second on all devices; --dry-run then shows hours.",
        gt=0,
    )
    measure: bool = base.execution_field(
        default=False, description="With --dry-run, measure the rate in a few steps on this device."
    )
    data: SerializeAsAny[LoadingConfig] = option(LoadingConfig(), "Training data.")
    model: SerializeAsAny[base.ConfigModel] = base.required_field(
        base.ConfigModel(), "Model to train."
    )
    hparams: HParams = option(HParams(), "Optimization.")
    distributed: DistributedConfig = option(DistributedConfig(), "Processes.", affects_output=False)
    ema: EmaConfig = option(EmaConfig(), "Options of the averaged weights.")
    lora: trained.LoraOptions = option(trained.LoraOptions(), "Adapters of low rank.")
    eval: SerializeAsAny[base.ConfigModel] | None = option(
        None,
        "Rollouts of checkpoints while the run trains; they choose the best checkpoint.",
        affects_output=False,
    )

    @field_validator("device_memory")
    @classmethod
    def _check_size(cls, text: str | None) -> str | None:
        if text is not None:
            parse_size(text)
        return text

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        h = self.hparams
        if h.per_gpu_batch_size is not None and h.global_batch_size % h.per_gpu_batch_size:
            raise ValueError(
                f"hparams.global_batch_size {h.global_batch_size} is not a multiple of "
                f"hparams.per_gpu_batch_size {h.per_gpu_batch_size}"
            )
        return self

    def derive_static(self) -> tuple[Self, Mapping[str, str]]:
        """Derives keys that do not depend on the data: seed, world size, keys of sections. Returns
        the config, and the rule of each derived key.
        """
        data, data_rules = self.data.derive_static()
        rules = {f"data.{key}": rule for key, rule in data_rules.items()}
        hparams = self.hparams
        if self.data.seed is None:
            data = data.model_copy(update={"seed": hparams.seed})
            rules |= base.derivation_rules(data, ["seed"], "data.")
        if hparams.world_size is None and self.distributed.world_size is not None:
            hparams = hparams.model_copy(update={"world_size": self.distributed.world_size})
            rules |= base.derivation_rules(hparams, ["world_size"], "hparams.")
        init, init_rules = self._published_init()
        update = {"data": data, "hparams": hparams, **init}
        own = getattr(self.model, "lora", None)
        if own is not None and self.lora.rank:  # a model type with adapters of its own
            keys = {"rank": self.lora.rank, "alpha": self.lora.alpha or own.alpha}
            model = update.get("model", self.model)
            update["model"] = model.model_copy(update={"lora": own.model_copy(update=keys)})
            update["lora"] = self.lora.model_copy(update={"rank": 0, "alpha": None})
        return self.model_copy(update=update), rules | init_rules

    def _published_init(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Keys that the published keys for initial weights set, and their rules."""
        if not getattr(self.model, "type", None):
            return {}, {}
        keys, reset = self.model_type.layout.keys_of_run(dict(self.model))
        if not keys:
            return {}, {}
        if self.init_from not in (None, keys["init_from"]):
            raise ConfigError(
                f"init_from is {self.init_from!r}, and keys of the model name "
                f"{keys['init_from']!r}",
                hint="give the initial weights only as init_from",
                code="config.contradiction",
            )
        model = self.model.model_copy(update=dict(reset))
        return {**keys, "model": model}, dict.fromkeys(keys, ", ".join(reset))

    def violations(self) -> Iterator[base.Violation]:
        """Contradictions between sections, and the ones that the model type reports."""
        if self.data.seed not in (None, self.hparams.seed):
            message = (
                f"data.seed={self.data.seed} is ignored: hparams.seed={self.hparams.seed} is used"
            )
            yield base.Violation(("data.seed",), message)
        if not self.init_weights_only and (self.init_from is None or self.init_except):
            message = "init_weights_only is false, which needs init_from, and no init_except"
            yield base.Violation(("init_weights_only",), message)
        for key in ("device_memory", "rate", "measure"):
            if getattr(self, key) and not self.dry_run:
                yield base.Violation((key,), f"{key} has an effect only with dry_run")
        if self.rate is not None and self.measure:
            yield base.Violation(("rate", "measure"), "rate is set, but measure would measure it")
        if getattr(self.model, "lora", None) is not None:
            for key in ("targets", "dropout"):
                if getattr(self.lora, key):
                    message = f"lora.{key} has no effect: model.lora adapts the language model"
                    yield base.Violation((f"lora.{key}",), message, "error")
        yield from self._rollout_violations()
        if getattr(self.model, "type", None):
            yield from self.model_type.violations(self.model, self.data)

    def _rollout_violations(self) -> Iterator[base.Violation]:
        if not getattr(self.model, "type", None):
            return
        if type(self.model_type).policy is not ModelType.policy:
            return
        message = f"the model type {self.model_type.name!r} is not a policy, so it has no rollouts"
        for key in ("eval", "eval_every_n_checkpoints"):
            if getattr(self, key) != TrainConfig.model_fields[key].default:
                yield base.Violation((key, "model.type"), f"{key} is set, but {message}", "error")

    @classmethod
    def specialize(cls, tree: Mapping[str, Any]) -> type[Self]:
        """Subclass with the config classes of the chosen types for `model` and `data`.

        The section `eval` has the class that evaluation defines.
        """
        options: Any = RUN_SECTIONS.get("eval")
        description = str(cls.model_fields["eval"].description)
        section: Any = (options | None, option(None, description))
        special: Any = create_model(
            cls.__name__, __base__=trained.with_types(cls, tree), eval=section
        )
        return special

    @classmethod
    def implied(cls, tree: Mapping[str, Any], names: Set[str]) -> Mapping[str, Any]:
        """What the model type and its initial weights imply."""
        init = tree.get("init_from")
        section = tree.get("model")
        keys = dict(section) if isinstance(section, Mapping) else {}
        values: dict[str, Any] = {}
        if init and not keys.get("type"):
            published = published_at(locations.with_run_above(pinned(str(init))))
            if published is not None and published[0].layout.implies_type:
                keys["type"] = published[0].name
                values["model"] = {"type": keys["type"]}
        with suppress(UsageError):  # an unknown type is reported with its key later
            if keys.get("type"):
                values |= registered_type(str(keys["type"])).run_defaults(keys, init)
        return values

    @property
    def model_type(self) -> ModelType:
        return trained.model_type_of(self.model)

    @property
    def data_kind(self) -> DataKind:
        """The data kind that `data.type` names; by default the first kind of the model type."""
        return data_kind(self.data.type, self.model_type.kinds)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers, each once."""
        return tuple(dict.fromkeys([*self.tracker, *(["wandb"] if self.wandb else [])]))

    @property
    def validates(self) -> bool:
        return self.total_val_samples is not None or self.val_every_n_steps is not None

    def build(self) -> Mapping[str, Part]:
        """The parts of the model with random weights, and with adapters if there are any."""
        parts = self.model_type.build(self.model)
        return trained.with_adapters(self.model_type, parts, self.lora)

    def check_model(self) -> None:
        """Raises UsageError if no model is configured."""
        if not getattr(self.model, "type", None):
            raise UsageError(
                "you have not chosen a model",
                hint="use a preset: --preset policy-tiny for a policy, --preset vqgan-tiny "
                "for a tokenizer; `vlatool presets` lists all",
                code="usage.missing_key",
            )

    def check_given(self) -> None:
        """Raises UsageError if no model or no training data are configured."""
        self.check_model()
        key = self.data_kind.folders_keys[0]
        if not getattr(self.data, key):
            raise UsageError(
                f"you have not given training data: data.{key} is empty",
                hint="add --data DIR: training data, or recordings for a policy",
                code="usage.missing_key",
            )

    def derive_from_data(self) -> tuple["TrainConfig", dict[str, str]]:
        """Derives keys from the data. Returns the config, and the rule of each derived key."""
        self.check_model()
        self.check_init()
        config = self.with_init_base_config()
        return config.derive(config.load_info())

    def load_info(self, reporter: Reporter = NULL, run: RunDir | None = None) -> DatasetInfo:
        """Reads the metadata of the data, and the statistics that normalize them. `run`: the run to
        resume, whose own statistics are used; None for a new run.
        """
        kind = self.data_kind
        data = kind.with_windows(self.data, self.model_type.windows(self.model))
        info = kind.load_info(data, reporter)
        if not kind.has_statistics:
            return info
        if run is not None:
            with suppress(DataError):  # damaged statistics are written again
                return kind.with_init_statistics(self.data, info, run.root)
        folder = None
        if self.init_from is not None:
            origin = WeightsOrigin.find(self.init_from)
            folder = origin.file.parent if origin.run is None else origin.run.root
        return kind.with_init_statistics(self.data, info, folder, NULL if run else reporter)

    def check_init(self) -> None:
        """Checks that the weights to start from exist."""
        self.model_type.check_init(self.model, self.init_from)
        if self.init_from is None and self.model_type.needs_init and not self.dry_run:
            raise UsageError(
                f"a {self.model_type.name} model cannot train without initial weights, only plan "
                "a run",
                hint="add --init-from, or --dry-run to plan the run",
                code="usage.missing_key",
                details={"key": "init_from"},
            )
        if self.init_from is not None:
            WeightsOrigin.find(self.init_from)
            self.init_progress()

    def init_progress(self) -> WeightsOrigin | None:
        """The checkpoint of a run whose training continues; None if only weights are used."""
        if self.init_from is None or self.init_weights_only:
            return None
        origin = WeightsOrigin.find(self.init_from)
        if origin.run is None:
            return None
        origin.check_progress(averaged=self.ema.enabled)
        return origin

    def with_init_base_config(self) -> Self:
        """The config, with the values that the run of the initial weights took from base models."""
        before = None if self.init_from is None else trained.section_of(self.init_from)
        if before is None:
            return self
        model = self.model_type.restore_base_config(self.model, before[0])
        return self.model_copy(update={"model": model})

    def derive(self, info: DatasetInfo) -> tuple["TrainConfig", dict[str, str]]:
        """Like `derive_from_data`, with metadata that were read before."""
        data, data_rules = self.data_kind.derive(self.data, info)
        model, model_rules = self.model_type.derive(self.model, data, info)
        rules = {f"data.{key}": rule for key, rule in data_rules.items()}
        rules |= {f"model.{key}": rule for key, rule in model_rules.items()}
        update: dict[str, Any] = {"data": data, "model": model}
        if not self.validates and self.data_kind.validation(data) is not None:
            update["total_val_samples"] = _MOST_VALIDATED
            rules["total_val_samples"] = "there are validation data"
        return self.model_copy(update=update), rules
