"""Contract checks of a model type with short runs; see `check_model_type`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import SIGTERM
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from vlatool.checkpoints.checkpoint import part_weights
from vlatool.checkpoints.layout import Retention, RunDir, read_metrics
from vlatool.events import NULL, NullProgress
from vlatool.loading import base
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.models.base import ModelType
from vlatool.models.weights import load_weights
from vlatool.testing import model_rules
from vlatool.testing.policies import check_acting, check_recorded
from vlatool.training.checkpoints import save_checkpoint
from vlatool.training.config import TrainConfig
from vlatool.training.data import DataStreams, prefetch_to_device
from vlatool.training.forecast import estimated_activations
from vlatool.training.metrics import MetricsLogger
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
from vlatool.training.setup import Run, set_up
from vlatool.training.step import LossSums, sums_of
from vlatool.training.trainer import StopRequest, Trainer, exit_stopped
from vlatool.training.validation import ImageLogger, Validation
from vlatool.workflows.train import save_model_assets

_FEWER = 3
_MIN_DECREASE = 0.2  # fraction of the loss; with a broken gradient the loss stays about equal
_AVERAGED_STEPS = 10
_LEARNING = TrainPlan(60, model_rules.SAMPLES, model_rules.SAMPLES, 1, (60,), 0, (60,), (60,))
_WHOLE = TrainPlan(6, model_rules.SAMPLES, model_rules.SAMPLES // 2, 2, (6,), 0)
_KILLED_AT = 3
# Memory of networks whose shapes depend on values, such as one of a base model, is not estimated.
_VALUE_DEPENDENT = (
    "DynamicOutputShapeException",
    "DataDependentOutputException",
    "GuardOnDataDependentSymNode",
)

State = dict[str, Tensor]


@dataclass
class _Run(Run):
    """A run on made-up batches.

    Attributes:
        stops_at: Step at which the run is asked to stop; -1: never.
    """

    stops_at: int = -1

    def fit(self, batches: Iterator[base.MicroBatch], example: base.MicroBatch) -> None:
        """Trains to the end of the plan, or to the requested stop.

        Args:
            batches: Micro-batches from the step of the state on.
            example: Micro-batch that stands for the validation data.
        """
        device = self.runtime.device
        logger = MetricsLogger(self, NULL, NullProgress())

        def validation_batches() -> Iterator[base.MicroBatch]:
            return prefetch_to_device(iter([example]), device)

        def end(where: str, number: int | None) -> NoReturn:
            exit_stopped(number)

        trainer = Trainer(
            run=self,
            logger=logger,
            validate=Validation(
                self, logger, validation_batches, validation_batches, StopRequest(), end
            ),
            log_images=ImageLogger(self, NULL),
            save=lambda: save_checkpoint(self.folder, self.state, self.runtime, Retention()),
            stop_signal=lambda: SIGTERM if self.state.step == self.stops_at - 1 else None,
        )
        trainer.fit(prefetch_to_device(batches, device))

    def tensors(self) -> State:
        """Copies of all parameters, buffers and averages."""
        copies = {**self.weights(), **self.buffers()}
        for name, average in self.state.averages.items():
            for key, value in average.weights.items():
                copies[f"average of {name}.{key}"] = value.clone()
        return copies

    def weights(self) -> State:
        """Copies of all parameters."""
        copies: State = {}
        for name, module in self.state.modules.items():
            for key, value in module.named_parameters():
                copies[f"{name}.{key}"] = value.detach().clone()
        return copies

    def buffers(self) -> State:
        """Copies of all buffers, including those that checkpoints do not hold."""
        copies: State = {}
        for name, module in self.state.modules.items():
            for key, value in module.named_buffers():
                copies[f"{name}.{key}"] = value.detach().clone()
        return copies


@dataclass(frozen=True)
class ModelChecks:
    """Contract checks of a model type with short runs, each in its own folder.

    Attributes:
        config: The derived configuration, with the model type and the data kind to check.
        info: The dataset info.
        folder: Folder of the runs.
    """

    config: TrainConfig
    info: base.DatasetInfo
    folder: Path

    @property
    def model_type(self) -> ModelType:
        """The model type to check."""
        return self.config.model_type

    def check(self) -> None:
        """Runs all checks; those on which others depend come first."""
        self.check_parts()
        self.check_batches()
        self.check_forecast()
        self.check_losses()
        self.check_policy(self.check_learning())
        self.check_resume()
        self.check_empty_step()

    def check_parts(self) -> None:
        """Checks parts and optimizers; checkpoints and `load` must restore all weights."""
        model_rules.check_build(self.model_type, self.config.model)
        parts = self.model_type.build(self.config.model)
        objective = self.model_type.objective(self.config.model, self.config.data, self.info, parts)
        model_rules.check_specs(objective, parts)
        run = self._start("built")
        specs = run.objective.optimizers()
        for name, optimizer in run.state.optimizers.items():
            grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for part in specs[name].parts:
                for key, value in model_rules.trainable_parameters(run.state.parts[part]):
                    is_grouped = id(value) in grouped
                    assert is_grouped, f"the groups of optimizer {name!r} leave out {part}.{key}"

    def check_batches(self) -> None:
        """Checks that `example` and batcher make equal batches and can be pickled."""
        example = self._example_maker(model_rules.SAMPLES)()
        model_rules.check_batch("example", example, model_rules.SAMPLES)
        run = self._start("batches", _LEARNING)
        with run.streams.training(0) as batches:
            micro_batch = next(batches)
        assert not micro_batch.is_dummy, (
            f"none of the samples can be used: {micro_batch.drops[0].message}"
        )
        model_rules.check_batch("the batcher", micro_batch.batch, len(micro_batch.samples))
        model_rules.check_same_columns(example, micro_batch.batch)
        model_rules.check_pickles("example", self._example_maker(1))
        self._check_kind(run.folder.root, run.streams.order)

    def _check_kind(self, root: Path, order: SampleOrder) -> None:
        """Checks that reader and batcher can be pickled, and that loaded assets work."""
        kind = self.config.data_kind
        data = self.config.data
        reader = kind.reader(data, self.info)
        model_rules.check_pickles("the reader", reader)
        rngs = [np.random.default_rng(row) for row in range(_FEWER)]
        read = reader.read(order.refs(range(_FEWER)), rngs)
        samples = [sample for sample in read if not isinstance(sample, base.DroppedSample)]
        assert len(read) == _FEWER, f"`read` returns {len(read)} samples for {_FEWER} refs"
        batches: list[base.Batch] = []
        for assets in (kind.make_assets(data, self.info), kind.load_assets(data, root)):
            batcher = self.model_type.batcher(self.config.model, data, assets, root, training=False)
            model_rules.check_pickles("the batcher", batcher)
            batches.append(batcher(samples))
        model_rules.check_equal_batches(*batches)

    def check_forecast(self) -> None:
        """Checks what `train --dry-run` and `mfu` need: operations, and a step without content."""
        model_rules.check_flops(self.model_type.flops(self.config.model, self.config.data))
        batch = self._example_maker(_FEWER)()
        last = _LEARNING.total_steps - 1
        _, problem = estimated_activations(self.config, self.info, batch, _FEWER, last)
        kind = problem.partition(":")[0]
        assert kind in ("", *_VALUE_DEPENDENT), (
            f"a step on tensors without content fails, so `train --dry-run` cannot estimate its "
            f"memory: {problem}"
        )

    def check_losses(self) -> None:
        """Checks losses at the first step of each optimizer, and that they change no buffers."""
        run = self._start("losses", precision="amp_bfloat16")
        for step in model_rules.first_steps(run.objective):
            shapes = [self._check_step(run, step, size) for size in (model_rules.SAMPLES, _FEWER)]
            assert shapes[0] == shapes[1], (
                f"`Loss.sums` has other shapes in another micro-batch: {shapes}"
            )
        self._check_eval(run)

    def _check_step(self, run: _Run, step: int, size: int) -> dict[str, dict[str, tuple[int, ...]]]:
        """Checks the losses at a step; returns the shapes of the sums by optimizer."""
        objective = run.objective
        placed = run.placed
        micro_batch = self._device_batch(run, size)
        contexts = run.contexts
        before = run.buffers()
        contexts.seed_step(step)
        with torch.no_grad():
            batch = objective.prepare(micro_batch.batch, contexts.of(step, micro_batch, "prepare"))
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        specs = objective.optimizers()
        for name in objective.optimizers_at(step):
            spec = specs[name]
            rng_key = [*specs].index(name)
            sums = LossSums(run.runtime.device)
            run.state.optimizers[name].zero_grad(set_to_none=True)
            with placed.only_trains(spec.parts):
                with run.runtime.autocast():
                    loss = objective.loss(name, batch, contexts.of(step, micro_batch, rng_key))
                model_rules.check_loss(f"the loss of {name!r}", loss)
                loss.total.backward()
                for part in spec.parts:
                    model_rules.check_gradients(
                        f"the loss of {name!r}", part, run.state.parts[part]
                    )
            sums.add(loss, is_dummy=False)
            shapes[name] = {key: tuple(value.shape) for key, value in loss.sums.items()}
            message = (
                f"the loss of {name!r} changes the buffer {{}}; only update_buffers may do that"
            )
            model_rules.check_unchanged(before, run.buffers(), message)
            with torch.no_grad():
                not_ok = torch.zeros((), dtype=torch.bool, device=run.runtime.device)
                objective.update_buffers(name, sums_of(sums.reduced(run.runtime)), not_ok)
            message = (
                f"`update_buffers` of {name!r} changes the buffer {{}}, although `ok` is False"
            )
            model_rules.check_unchanged(before, run.buffers(), message)
        return shapes

    def _check_eval(self, run: _Run) -> None:
        """Checks `validate` and `images` in eval mode."""
        objective = run.objective
        micro_batch = self._device_batch(run, model_rules.SAMPLES)
        ctx = run.contexts.of(0, micro_batch, "images", training=False)
        run.placed.eval()
        with torch.no_grad():
            batch = objective.prepare(micro_batch.batch, ctx)
        with torch.no_grad(), run.runtime.autocast():
            model_rules.check_loss("validate", objective.validate(batch, ctx))
            model_rules.check_images(objective.images(batch, ctx))
        run.placed.train()

    def check_learning(self) -> _Run:
        """Checks that the loss falls on one repeated batch; returns the run, with a checkpoint."""
        run = self._start("learning", _LEARNING)
        example = self._example(model_rules.SAMPLES)
        run.fit(iter([example] * _LEARNING.total_steps), example)
        losses = [row["loss"] for row in read_metrics(run.folder.metrics) if "loss" in row]
        before = float(np.mean(losses[:_AVERAGED_STEPS]))
        after = float(np.mean(losses[-_AVERAGED_STEPS:]))
        assert after < before - _MIN_DECREASE * abs(before), (
            f"{_LEARNING.total_steps} steps on one batch change the loss from {before} to "
            f"{after}; the loss must fall"
        )
        return run

    def check_policy(self, trained: _Run) -> None:
        """Checks the policy with the weights of a checkpoint and the assets, as in evaluation."""
        config = self.config
        root = trained.folder.root
        checkpoint = trained.folder.checkpoint(_LEARNING.total_steps)
        assets = config.data_kind.load_assets(config.data, root)
        parts: dict[str, nn.Module] = {}
        for name, part in self.model_type.build(config.model).items():
            if part.saved:
                load_weights(part.module, checkpoint / part_weights(name))
                parts[name] = part.module.to(trained.runtime.device).eval()
        policy = self.model_type.policy(config.model, parts, assets, root)
        if policy is not None:
            check_acting(policy)
            location = getattr(config.data, config.data_kind.folders_keys[0])[0]
            options = base.PairOptions(policy.sees, policy.horizon)
            pairs = config.data_kind.pairs(config.data, assets, location, options)
            if pairs is not None:
                check_recorded(policy, pairs)

    def check_resume(self) -> None:
        """Checks that a stopped and resumed run ends with the same bits as an uninterrupted one."""
        precision = "amp_bfloat16"
        whole = self._start("whole", precision=precision)
        whole.fit(self._batches(0), self._example(_FEWER))
        plan = replace(_WHOLE, checkpoint_steps=(_KILLED_AT,))
        killed = self._start("killed", plan, precision=precision)
        killed.stops_at = _KILLED_AT
        killed.fit(self._batches(0), self._example(_FEWER))
        checkpoint = killed.folder.checkpoint(_KILLED_AT)
        resumed = self._start("killed", precision=precision, checkpoint=checkpoint)
        resumed.fit(self._batches(_KILLED_AT), self._example(_FEWER))
        message = "{} differs after a resume, because it depends on state that is not saved"
        model_rules.check_unchanged(whole.tensors(), resumed.tensors(), message)

    def check_empty_step(self) -> None:
        """Checks that a step without counted elements changes nothing."""
        run = self._start("empty")
        before = State()

        def batches() -> Iterator[base.MicroBatch]:
            for index, micro_batch in enumerate(self._batches(0)):
                if index < 2 * (_WHOLE.total_steps - 1):
                    yield micro_batch
                    continue
                if not before:
                    before.update(run.tensors())
                yield self._example(_WHOLE.micro_batch, is_dummy=True)

        run.fit(batches(), self._example(_FEWER))
        model_rules.check_unchanged(
            before, run.tensors(), "a step without counted elements changes {}"
        )

    def _start(
        self,
        name: str,
        plan: TrainPlan = _WHOLE,
        *,
        precision: str = "float32",
        checkpoint: Path | None = None,
    ) -> _Run:
        """A new run, or a run at a checkpoint; it shares nothing with other runs."""
        folder = RunDir(self.folder / name)
        folder.root.mkdir(parents=True, exist_ok=True)
        h = self.config.hparams.model_copy(update={"precision": precision})
        config = self.config.model_copy(update={"hparams": h, "log_every_n_steps": 1})
        runtime = Runtime(config)
        if checkpoint is None:
            config.data_kind.save_assets(config.data, self.info, folder.root)
            save_model_assets(config, folder.root)
        order = SampleOrder(self.info.datasets, OrderOptions.of(config.data, 0))
        streams = DataStreams(config, self.info, order, plan, runtime, folder.root)
        run = _Run(config, self.info, plan, runtime, folder, streams)
        set_up(run, checkpoint)
        return run

    def _example(self, size: int, first: int = 0, *, is_dummy: bool = False) -> base.MicroBatch:
        rows = () if is_dummy else tuple(range(first, first + size))
        names = tuple(f"example-{row}" for row in rows)
        return base.MicroBatch(
            self._example_maker(size)(),
            names,
            positions=rows,
            dropped=(0,) * len(self.config.data_kind.drop_reasons),
            is_dummy=is_dummy,
        )

    def _example_maker(self, size: int) -> partial[base.Batch]:
        """Function that makes an example batch, as in loader workers."""
        return partial(self.model_type.example, self.config.model, self.config.data, size)

    def _device_batch(self, run: _Run, size: int) -> base.MicroBatch:
        return next(prefetch_to_device(iter([self._example(size)]), run.runtime.device))

    def _batches(self, step: int) -> Iterator[base.MicroBatch]:
        """Example micro-batches from a step on."""
        size = _WHOLE.micro_batch
        for first in range(
            step * model_rules.SAMPLES, _WHOLE.total_steps * model_rules.SAMPLES, size
        ):
            yield self._example(size, first)
