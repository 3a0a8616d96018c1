"""Runs of a model type in the real trainer, of which `testing.check_model_type` is made.

Legend of shapes: B samples of a batch, N pictures, P steps that are observed, T steps, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import SIGTERM

import numpy as np
import torch
from torch import Tensor, nn

from vlatool.artifacts.checkpoint import part_weights
from vlatool.artifacts.run_dir import Retention, RunDir, read_metrics
from vlatool.evaluation.trained_policy import TrainedPolicy
from vlatool.events import NULL, NullProgress
from vlatool.loading.base import Batch, DatasetInfo, DroppedSample, MicroBatch
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.info import RoboticsInfo
from vlatool.model_acting import check_acting
from vlatool.model_promises import (
    SAMPLES,
    check_batch,
    check_build,
    check_equal_batches,
    check_images,
    check_loss,
    check_pickles,
    check_reached,
    check_same_columns,
    check_specs,
    check_unchanged,
    first_steps,
    learning,
)
from vlatool.models.base import ModelType
from vlatool.models.weights import load_weights
from vlatool.training.checkpoints import save_checkpoint
from vlatool.training.config import TrainConfig
from vlatool.training.data import DataStreams
from vlatool.training.images import ImageLogger
from vlatool.training.metrics import MetricsFile
from vlatool.training.plan import TrainPlan
from vlatool.training.reduction import LossSums
from vlatool.training.report import MetricsLogger
from vlatool.training.runtime import Runtime
from vlatool.training.setup import TrainSetup, set_up
from vlatool.training.step import StepContexts
from vlatool.training.trainer import Trainer
from vlatool.training.transfer import prefetch_to_device
from vlatool.training.validation import Validation

_FEWER = 3
_FALL = 0.2  # of the loss; a broken gradient leaves it about where it was
_SHOWN = 10
_LEARNING = TrainPlan(60, SAMPLES, SAMPLES, 1, (60,), 0, (60,), (60,))
_WHOLE = TrainPlan(6, SAMPLES, SAMPLES // 2, 2, (6,), 0)
_KILLED_AT = 3

State = dict[str, Tensor]


@dataclass
class _Run:
    """A run that has begun.

    Attributes:
        config: Its configuration.
        dir: Its folder.
        plan: What it will do.
        runtime: This process.
        begun: Its parts and objective.
        stops_at: Is asked to stop before this step is over.
    """

    config: TrainConfig
    dir: RunDir
    plan: TrainPlan
    runtime: Runtime
    begun: TrainSetup
    stops_at: int = -1

    @property
    def contexts(self) -> StepContexts:
        """What the objective may know of a moment."""
        return StepContexts(self.runtime, self.begun.placed, self.config.hparams.seed, self.plan)

    def fit(self, batches: Iterator[MicroBatch], one: MicroBatch) -> None:
        """Trains to the end of the plan, or to the stop.

        Args:
            batches: From its step on.
            one: Is measured as held-out data are.
        """
        begun, runtime, plan, contexts = self.begun, self.runtime, self.plan, self.contexts
        metrics = MetricsFile(self.dir.metrics, NULL)
        reports = MetricsLogger(metrics, NULL, NullProgress(), runtime, 1, plan.total_steps)
        trainer = Trainer(
            plan=plan,
            h=self.config.hparams,
            runtime=runtime,
            placed=begun.placed,
            contexts=contexts,
            reports=reports,
            validate=Validation(
                lambda: prefetch_to_device(iter([one]), runtime.device),
                begun.objective,
                runtime,
                contexts,
                reports,
            ),
            show=ImageLogger(self.dir, begun.objective, runtime, contexts),
            save=lambda state: save_checkpoint(self.dir, state, runtime, Retention()),
            stop_asked=lambda: SIGTERM if begun.state.step == self.stops_at - 1 else None,
        )
        trainer.fit(begun.state, prefetch_to_device(batches, runtime.device), begun.objective)

    def state(self) -> State:
        """Copies of all weights, buffers and averages."""
        found = {**self.weights(), **self.buffers()}
        for name, average in self.begun.state.averages.items():
            found |= {f"average of {name}.{key}": v.clone() for key, v in average.weights.items()}
        return found

    def weights(self) -> State:
        """Copies of all parameters."""
        return {
            f"{name}.{key}": value.detach().clone()
            for name, module in self.begun.state.modules.items()
            for key, value in module.named_parameters()
        }

    def buffers(self) -> State:
        """Copies of all buffers, those that no checkpoint holds included."""
        return {
            f"{name}.{key}": value.detach().clone()
            for name, module in self.begun.state.modules.items()
            for key, value in module.named_buffers()
        }


@dataclass(frozen=True)
class ModelChecks:
    """Runs of a model type, each in a folder of its own.

    Attributes:
        config: Of the runs, derived; its model type and kind of data are tried.
        facts: Of its data.
        folder: Where the runs lie.
    """

    config: TrainConfig
    info: DatasetInfo
    folder: Path

    @property
    def model_type(self) -> ModelType:
        """What is tried."""
        return self.config.model_type

    def check(self) -> None:
        """Checks all promises, those first on which others rest."""
        self.check_parts()
        self.check_batches()
        self.check_losses()
        self.check_policy(self.check_learning())
        self.check_resume()
        self.check_empty_step()

    def check_parts(self) -> None:
        """Parts and optimizers fit together; checkpoints and `load` are all that is needed."""
        check_build(self.model_type, self.config.model)
        parts = self.model_type.build(self.config.model)
        objective = self.model_type.objective(self.config.model, self.config.data, self.info, parts)
        check_specs(objective, parts)
        begun = self._begun("built").begun
        specs = begun.objective.optimizers()
        for name, optimizer in begun.state.optimizers.items():
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for part in specs[name].parts:
                for key, value in learning(begun.state.parts[part]):
                    grouped = id(value) in held
                    assert grouped, f"the groups of optimizer {name!r} leave out {part}.{key}"

    def check_batches(self) -> None:
        """Example and batcher make alike batches, and travel to loader processes."""
        example = self._maker(SAMPLES)()
        check_batch("example", example, SAMPLES)
        run = self._begun("batches")
        order = SampleOrder(self.info.datasets, OrderOptions.of(self.config.data, 0))
        feed = DataStreams(self.config, self.info, order, _LEARNING, run.runtime, run.dir.root)
        with feed.training(0) as batches:
            one = next(batches)
        assert not one.is_dummy, f"no sample could be used: {one.first_drop}"
        check_batch("the batcher", one.batch, len(one.samples))
        check_same_columns(example, one.batch)
        check_pickles("example", self._maker(1))
        self._check_kind(run.dir.root, order)

    def _check_kind(self, root: Path, order: SampleOrder) -> None:
        """Reader and batcher travel; what was kept makes the same batches."""
        kind, data = self.config.data_kind, self.config.data
        reader = kind.reader(data, self.info)
        check_pickles("the reader", reader)
        rngs = [np.random.default_rng(row) for row in range(_FEWER)]
        read = reader.read(order.refs(range(_FEWER)), rngs)
        samples = [one for one in read if not isinstance(one, DroppedSample)]
        assert len(read) == _FEWER, f"read gives {len(read)} samples for {_FEWER} places"
        batches: list[Batch] = []
        for given in (kind.make_assets(data, self.info), kind.load_assets(data, root)):
            batcher = self.model_type.batcher(self.config.model, data, given, root, training=False)
            check_pickles("the batcher", batcher)
            batches.append(batcher(samples))
        check_equal_batches(*batches)

    def check_losses(self) -> None:
        """Losses are sound where each optimizer begins; nothing but `settle` changes a buffer."""
        run = self._begun("losses", precision="amp_bfloat16")
        for step in first_steps(run.begun.objective):
            shapes = [self._probe(run, step, size) for size in (SAMPLES, _FEWER)]
            assert shapes[0] == shapes[1], (
                f"the sums of a loss differ from micro-batch to micro-batch: {shapes}"
            )
        self._check_looks(run)

    def _probe(self, run: _Run, step: int, size: int) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes of the sums of each optimizer that moves at a step."""
        objective, placed = run.begun.objective, run.begun.placed
        one, contexts, before = self._one(run, size), run.contexts, run.buffers()
        contexts.begin(step)
        with torch.no_grad():
            batch = objective.prepare(one.batch, contexts.of(step, one, "prepare"))
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        specs = objective.optimizers()
        for name in objective.optimizers_at(step):
            spec, turn, sums = specs[name], [*specs].index(name), LossSums(run.runtime.device)
            run.begun.state.optimizers[name].zero_grad(set_to_none=True)
            with placed.only_trains(spec.parts):
                with run.runtime.autocast():
                    loss = objective.loss(name, batch, contexts.of(step, one, turn))
                check_loss(f"the loss of {name!r}", loss)
                loss.total.backward()
                for part in spec.parts:
                    check_reached(f"the loss of {name!r}", part, run.begun.state.parts[part])
            sums.add(loss, is_dummy=False)
            found[name] = {key: tuple(value.shape) for key, value in loss.sums.items()}
            why = f"the loss of {name!r} changes the buffer {{}}; settle alone may"
            check_unchanged(before, run.buffers(), why)
            with torch.no_grad():
                no = torch.zeros((), dtype=torch.bool, device=run.runtime.device)
                objective.update_buffers(name, sums.reduced(run.runtime, []).sums, no)
            why = f"settle of {name!r} changes the buffer {{}} where ok is false"
            check_unchanged(before, run.buffers(), why)
        return found

    def _check_looks(self, run: _Run) -> None:
        """What is measured and shown in eval mode is what it should be."""
        objective, one = run.begun.objective, self._one(run, SAMPLES)
        ctx = run.contexts.of(0, one, "images", training=False)
        run.begun.placed.eval()
        with torch.no_grad():
            batch = objective.prepare(one.batch, ctx)
        with torch.no_grad(), run.runtime.autocast():
            check_loss("validate", objective.validate(batch, ctx))
            check_images(objective.images(batch, ctx))
        run.begun.placed.train()

    def check_learning(self) -> _Run:
        """The loss falls on one repeated batch; the run, which ends with a checkpoint."""
        run = self._begun("learning", _LEARNING)
        one = self._example(SAMPLES)
        run.fit(iter([one] * _LEARNING.total_steps), one)
        losses = [row["loss"] for row in read_metrics(run.dir.metrics) if "loss" in row]
        before, after = (float(np.mean(part)) for part in (losses[:_SHOWN], losses[-_SHOWN:]))
        assert after < before - _FALL * abs(before), (
            f"{_LEARNING.total_steps} steps on one batch take the loss from {before} to {after}"
        )
        return run

    def check_policy(self, trained: _Run) -> None:
        """What acts does so from a checkpoint and what was kept beside it, as evaluation does."""
        config, root = self.config, trained.dir.root
        at = trained.dir.checkpoint(_LEARNING.total_steps)
        kept = config.data_kind.load_assets(config.data, root)
        parts: dict[str, nn.Module] = {}
        for name, part in self.model_type.build(config.model).items():
            if part.saved:
                load_weights(part.module, at / part_weights(name))
                parts[name] = part.module.to(trained.runtime.device).eval()
        policy = self.model_type.policy(config.model, parts, kept, root)
        if policy is not None and isinstance(self.info, RoboticsInfo):
            check_acting(TrainedPolicy(policy, trained.dir, at, "raw", config, kept), self.info)

    def check_resume(self) -> None:
        """A run that was killed and goes on ends as one that was not, bit for bit."""
        precision = "amp_bfloat16"
        whole = self._begun("whole", precision=precision)
        whole.fit(self._batches(0), self._example(_FEWER))
        plan = replace(_WHOLE, checkpoint_steps=(_KILLED_AT,))
        killed = self._begun("killed", plan, precision=precision)
        killed.stops_at = _KILLED_AT
        killed.fit(self._batches(0), self._example(_FEWER))
        at = killed.dir.checkpoint(_KILLED_AT)
        resumed = self._begun("killed", precision=precision, checkpoint=at)
        resumed.fit(self._batches(_KILLED_AT), self._example(_FEWER))
        why = "{} is another after a resume: something that it rests on is not saved"
        check_unchanged(whole.state(), resumed.state(), why)

    def check_empty_step(self) -> None:
        """A step in which nothing is counted changes nothing."""
        run, before = self._begun("empty"), State()

        def batches() -> Iterator[MicroBatch]:
            for number, one in enumerate(self._batches(0)):
                if number < 2 * (_WHOLE.total_steps - 1):
                    yield one
                    continue
                if not before:
                    before.update(run.state())
                yield self._example(_WHOLE.micro_batch, is_dummy=True)

        run.fit(batches(), self._example(_FEWER))
        check_unchanged(before, run.state(), "a step that counts nothing changes {}")

    def _begun(
        self,
        name: str,
        plan: TrainPlan = _WHOLE,
        *,
        precision: str = "float32",
        checkpoint: Path | None = None,
    ) -> _Run:
        """A run at its beginning, or at a checkpoint; nothing is shared with another one."""
        run = RunDir(self.folder / name)
        run.root.mkdir(parents=True, exist_ok=True)
        h = self.config.hparams.model_copy(update={"precision": precision})
        config = self.config.model_copy(update={"hparams": h})
        runtime = Runtime(config)
        if checkpoint is None:
            config.data_kind.save_assets(config.data, self.info, run.root)
            self.model_type.save_assets(config.model, run.root)
        return _Run(config, run, plan, runtime, set_up(config, self.info, runtime, checkpoint))

    def _example(self, size: int, first: int = 0, *, is_dummy: bool = False) -> MicroBatch:
        rows = () if is_dummy else tuple(range(first, first + size))
        names = tuple(f"example-{row}" for row in rows)
        return MicroBatch(self._maker(size)(), names, positions=rows, is_dummy=is_dummy)

    def _maker(self, size: int) -> partial[Batch]:
        """Makes the example, as loader processes do."""
        return partial(self.model_type.example, self.config.model, self.config.data, size)

    def _one(self, run: _Run, size: int) -> MicroBatch:
        return next(prefetch_to_device(iter([self._example(size)]), run.runtime.device))

    def _batches(self, step: int) -> Iterator[MicroBatch]:
        """Micro-batches from a step on."""
        size = _WHOLE.micro_batch
        for first in range(step * SAMPLES, _WHOLE.total_steps * SAMPLES, size):
            yield self._example(size, first)
