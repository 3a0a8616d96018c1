"""`check_model_type` reports each broken part of the contract of a model type."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.builders.serving import LookPolicy
from tests.builders.toy_networks import GanObjective, LmObjective, ToyLm, token_batch
from tests.builders.toys import GanType, LmType, NumbersConfig, NumbersKind, write_numbers
from vlatool.errors import DataError
from vlatool.models.base import Batch, Loss, OptimizerSpec, ParamGroup, Part, StepContext
from vlatool.testing.model_rules import check_config
from vlatool.testing.model_runs import ModelChecks
from vlatool.testing.models import check_model_type, check_policy


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbers(tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file({"weight": torch.eye(4), "bias": torch.zeros(4)}, path)
    return str(path)


def check(model_type: Any, data: Path | None, folder: Path, **keys: Any) -> None:
    """Runs the checks without a new process, which cannot import the module of this test."""
    config, info = check_config(model_type, model_type.Config.model_validate(keys), data, folder)
    ModelChecks(config, info, folder).check()


def picklable(made: type) -> Any:
    """The class with a name of its own here: loader workers get pickled copies."""
    made.__qualname__ = f"Made{len(globals())}"
    globals()[made.__qualname__] = made
    return made


def lm(objective: type[LmObjective]) -> type[LmType]:
    """The toy language model with another objective."""

    class Broken(LmType):
        def objective(self, *args: Any) -> LmObjective:
            del args
            return objective()

    return picklable(Broken)


# config, data kinds, parts


class OtherName(LmType):
    name: ClassVar[str] = "other"


class ChangingDerive(LmType):
    def derive(self, config: Any, data: Any, info: Any) -> tuple[Any, dict[str, str]]:
        del data, info
        return config.model_copy(update={"chunks": config.chunks + 1}), {}


class NoKind(LmType):
    kinds: ClassVar[tuple[str, ...]] = ()


class BuiltinNameConfig(NumbersConfig):
    type: Literal["robotics"] = Field(default="robotics", description="Data kind.")


class BuiltinNameKind(NumbersKind):
    name: ClassVar[str] = "robotics"
    Config: ClassVar[Any] = BuiltinNameConfig


class BuiltinName(LmType):
    kinds: ClassVar[tuple[str, ...]] = (f"{__name__}:BuiltinNameKind",)


class ChangingAssets(NumbersKind):
    def make_assets(self, config: Any, info: Any) -> Any:
        del config, info
        return 1

    def load_assets(self, config: Any, folder: Path) -> Any:
        del config, folder
        return 2


class UsesAssets(LmType):
    kinds: ClassVar[tuple[str, ...]] = (f"{__name__}:ChangingAssets",)

    def batcher(self, config: Any, data: Any, assets: Any, folder: Any, *, training: bool) -> Any:
        del config, data, folder, training
        return partial(times_mask, assets)


def times_mask(factor: int, samples: Any) -> Batch:
    batch = token_batch(samples)
    return {**batch, "mask": factor * batch["mask"]}


class ReadsWeights(LmType):
    def build(self, config: Any) -> Mapping[str, Part]:
        part = super().build(config)["model"]
        float(next(part.module.parameters()).sum())
        return {"model": part}


class NoModel(LmType):
    def build(self, config: Any) -> Mapping[str, Part]:
        return {"body": super().build(config)["model"]}


class NotSaved(LmType):
    def build(self, config: Any) -> Mapping[str, Part]:
        return {"model": replace(super().build(config)["model"], saved=False)}


class NoOptimizer(LmType):
    def build(self, config: Any) -> Mapping[str, Part]:
        return {**super().build(config), "other": Part(nn.Linear(2, 2))}


class NoMethod(LmType):
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("generate",)}


class ForeignBlock(LmType):
    def build(self, config: Any) -> Mapping[str, Part]:
        return {"model": replace(super().build(config)["model"], blocks=[nn.Linear(1, 1)])}


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (OtherName, "`Config.type` is 'toy_lm', but `name` is 'other'"),
        (ChangingDerive, "`derive` changes"),
        (NoKind, "`kinds` is empty"),
        (BuiltinName, "a built-in data kind already has its name 'robotics'"),
        (UsesAssets, "`load_assets` gives a different batch"),
        (ReadsWeights, "meta device"),
        (NoModel, "none is named 'model'"),
        (NotSaved, "trained but not saved"),
        (NoOptimizer, "no optimizer lists it"),
        (NoMethod, r"model\.generate, which does not exist"),
        (ForeignBlock, "belongs to no part"),
    ],
)
def test_broken_config_kind_or_part_is_reported(
    broken: Any, sentence: str, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(broken(), rows, tmp_path)


def test_teacher_without_loaded_weights_is_reported(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="'teacher' is not saved, and `load`"):
        check(GanType(), rows, tmp_path)


def test_data_kind_of_a_plugin_needs_data(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="pass data=FOLDER"):
        check(LmType(), None, tmp_path)


def test_error_of_a_data_kind_is_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check_config(LmType(), LmType.Config(), {"folders": []}, tmp_path)


def test_type_that_imports_torch_is_reported() -> None:
    heavy = type("HeavyType", (LmType,), {"__module__": "tests.builders.toy_networks"})
    with pytest.raises(AssertionError, match="imports torch"):
        check_model_type(heavy)


# optimizers


class UnknownPart(LmObjective):
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("modle",))}


class NoActiveOptimizer(LmObjective):
    def optimizers_at(self, step: int) -> Sequence[str]:
        del step
        return []


class UnknownOptimizer(LmObjective):
    def optimizers_at(self, step: int) -> Sequence[str]:
        del step
        return ["mian"]


def one_group(parts: Mapping[str, nn.Module]) -> Sequence[ParamGroup]:
    return [ParamGroup([next(parts["model"].parameters())])]


class PartialGroups(LmObjective):
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",), groups=one_group)}


# losses


Change = Callable[[Loss, Batch, StepContext], Loss]


def changed(change: Change) -> type[LmObjective]:
    """An objective with a loss that `change` modifies."""

    class Changed(LmObjective):
        def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
            return change(super().loss(optimizer, batch, ctx), batch, ctx)

    return Changed


def with_total(change: Callable[[Tensor], Tensor]) -> type[LmObjective]:
    return changed(lambda loss, batch, ctx: replace(loss, total=change(loss.total)))


def embedding_only(loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
    """Loss with a gradient only for the embedding."""
    return replace(loss, total=ctx.parts["model"].block.embed.weight.square().sum())


class NotLearning(with_total(lambda total: total + (0.0 * total - total).detach() + 9.0)):
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",), lr=0.0)}


class Counting(LmObjective):
    """Loss that depends on a counter that no checkpoint holds."""

    calls = 0

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        self.calls += 1
        loss = super().loss(optimizer, batch, ctx)
        return replace(loss, total=loss.total * (1 + self.calls % 5))


class EmptyValidation(LmObjective):
    def validate(self, batch: Batch, ctx: StepContext) -> Loss:
        loss = self.loss("main", batch, ctx)
        return replace(loss, count=loss.count * 0)


class FloatImages(LmObjective):
    def images(self, batch: Batch, ctx: StepContext) -> Any:
        del batch, ctx
        return {"made": np.zeros((2, 4, 4, 3))}


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        (UnknownPart, "part 'modle', which `build` does not return"),
        (NoActiveOptimizer, "no optimizer is active"),
        (UnknownOptimizer, "lists 'mian', which is not an optimizer"),
        (PartialGroups, r"leave out model\.block"),
        (with_total(lambda total: total * float("nan")), "`total` is nan"),
        (with_total(lambda total: total[None]), "must be a scalar"),
        (with_total(lambda total: total.bfloat16()), "not float32"),
        (
            changed(lambda loss, batch, ctx: replace(loss, count=loss.count * 0)),
            "`count` is 0, but must be positive",
        ),
        (
            changed(lambda loss, batch, ctx: replace(loss, sums={"again": loss.total})),
            r"`sums\['again'\]` requires grad",
        ),
        (
            changed(lambda loss, batch, ctx: replace(loss, sums={"rows": batch["mask"].sum(1)})),
            "has other shapes in another micro-batch",
        ),
        (changed(embedding_only), r"gives model\.block\.mix\S* no gradient"),
        (EmptyValidation, "validate: `count` is 0"),
        (FloatImages, "`images` returns 'made' as float64"),
        (NotLearning, "change the loss from"),
        (Counting, "differs after a resume"),
    ],
)
def test_broken_objective_is_reported(
    objective: type[LmObjective], sentence: str, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(lm(objective)(), rows, tmp_path)


# buffers


class ChangesInLoss(GanObjective):
    """Changes running means in the loss."""

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        self._means.real.add_(1.0)
        return super().loss(optimizer, batch, ctx)


class IgnoresOk(GanObjective):
    """Updates buffers although no weight was changed."""

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        super().update_buffers(optimizer, sums, torch.ones_like(ok))


class Decaying(GanObjective):
    """Decays running means in steps without counted elements."""

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        super().update_buffers(optimizer, sums, ok)
        if optimizer == "critic":
            self._means.real.mul_(torch.where(sums["n"] == 0, 0.5, 1.0).float())


class ChangesInLossGan(GanType):
    Objective: ClassVar[type[GanObjective]] = ChangesInLoss

    def objective(self, config: Any, data: Any, info: Any, parts: Any) -> GanObjective:
        del data, info
        return self.Objective(config, parts["means"].module)


class IgnoresOkGan(ChangesInLossGan):
    Objective: ClassVar[type[GanObjective]] = IgnoresOk


class DecayingGan(ChangesInLossGan):
    Objective: ClassVar[type[GanObjective]] = Decaying


class HiddenMeansGan(GanType):
    """GAN whose means are in no checkpoint."""

    def build(self, config: Any) -> Mapping[str, Part]:
        parts = super().build(config)
        parts["means"].module.register_buffer("real", torch.zeros(()), persistent=False)
        return parts


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (ChangesInLossGan, r"the loss of 'generator' changes the buffer means\.real"),
        (IgnoresOkGan, r"`update_buffers` of 'critic' changes the buffer means\.real"),
        (HiddenMeansGan, "differs after a resume"),
        (DecayingGan, r"a step without counted elements changes means\.real"),
    ],
)
def test_buffer_that_changes_or_is_lost_is_reported(
    broken: Any, sentence: str, rows: Path, teacher: str, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(broken(), rows, tmp_path, teacher=teacher)


# batches


def example_of(change: Callable[[Batch], Batch]) -> type[LmType]:
    class Broken(LmType):
        def example(self, config: Any, data: Any, size: int) -> Batch:
            return change(super().example(config, data, size))

    return picklable(Broken)


class NoPickle(LmType):
    def batcher(self, config: Any, data: Any, assets: Any, folder: Any, *, training: bool) -> Any:
        del config, data, assets, folder, training
        return lambda samples: token_batch(samples)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (example_of(lambda batch: {**batch, "more": {"x": 1}}), "neither a tensor nor"),
        (example_of(lambda batch: {**batch, "mask": batch["mask"][:1]}), "has 1 rows for 8"),
        (example_of(lambda batch: {"ids": batch["ids"]}), "the batcher returns"),
        (
            example_of(lambda batch: {**batch, "mask": batch["mask"].double()}),
            "float64 with 2",
        ),
        (NoPickle, "the batcher cannot be pickled"),
    ],
)
def test_broken_batch_is_reported(broken: Any, sentence: str, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(broken(), rows, tmp_path)


class ReturnsNetwork(LmType):
    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> Any:
        del config, assets, folder
        return parts["model"]


def as_tensors(actions: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in actions.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda plan: {**plan, "grip": plan["grip"] + np.random.rand()},
            "differ between equal calls",
        ),
        (
            lambda plan: {**plan, "grip": plan["grip"] + plan["grip"].mean()},
            "depend on other observations in its batch",
        ),
        (lambda plan: {**plan, "grip": plan["grip"] * np.inf}, "not finite"),
        (as_tensors, "act returns a tensor with gradients"),
        (lambda plan: {"grip": plan["grip"]}, "`act` returns no actions for"),
    ],
)
def test_broken_policy_is_reported(change: Callable[[dict[str, Any]], Any], sentence: str) -> None:
    class Broken(LookPolicy):
        def act(self, *args: Any, **keys: Any) -> Any:
            return change(super().act(*args, **keys))

    with pytest.raises(AssertionError, match=sentence):
        check_policy(Broken())


def test_policy_of_a_model_type_is_checked(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is not a Policy: it has no 'sees'"):
        check(ReturnsNetwork(), rows, tmp_path)


def test_correct_toy_passes(rows: Path, tmp_path: Path) -> None:
    assert isinstance(LmType().build(LmType.Config())["model"].module, ToyLm)
    check(LmType(), rows, tmp_path)
