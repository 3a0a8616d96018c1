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

from tests.builders.toy_networks import GanObjective, LmObjective, ToyLm, token_batch
from tests.builders.toys import GanType, LmType, NumbersConfig, NumbersKind, write_numbers
from vlatool.errors import DataError
from vlatool.models.base import Batch, Loss, OptimizerSpec, ParamGroup, Part, Rng, StepContext
from vlatool.models.diffusion_policy.spec import DiffusionPolicyType
from vlatool.models.policy import RoboticsPolicy
from vlatool.testing.model_rules import check_config, world_data
from vlatool.testing.model_runs import ModelChecks
from vlatool.testing.models import check_model_type


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


def lm(objective: type[LmObjective]) -> type[LmType]:
    """The toy language model with another objective."""

    class Broken(LmType):
        def objective(self, *args: Any) -> LmObjective:
            del args
            return objective()

    # Loader workers get pickled copies, so the class needs its own name.
    Broken.__qualname__ = f"Broken{objective.__name__}"
    globals()[Broken.__qualname__] = Broken
    return Broken


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
        (BuiltinName, "its name 'robotics' is already used by a built-in"),
        (UsesAssets, "`load_assets` gives a different batch"),
        (ReadsWeights, "meta device"),
        (NoModel, "no part 'model'"),
        (NotSaved, "trained but not saved"),
        (NoOptimizer, "is in no optimizer"),
        (NoMethod, r"model\.generate, which does not exist"),
        (ForeignBlock, "in no part"),
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


class Changed(LmObjective):
    """Objective with a loss that `change` modifies."""

    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        raise NotImplementedError

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        return self.change(super().loss(optimizer, batch, ctx), batch, ctx)


class NotFinite(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, total=loss.total * float("nan"))


class NoElements(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, count=loss.count * 0)


class NoScalar(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, total=loss.total[None])


class HalfPrecision(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, total=loss.total.bfloat16())


class Attached(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, sums={"again": loss.total})


class Ragged(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, sums={"rows": batch["mask"].sum(1)})


class EmbeddingOnly(Changed):
    """Loss with a gradient only for the embedding."""

    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        block = ctx.parts["model"].block
        return replace(loss, total=block.embed.weight.square().sum())


class NotLearning(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, total=loss.total + (0.0 * loss.total - loss.total).detach() + 9.0)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",), lr=0.0)}


class Counting(Changed):
    """Loss that depends on a counter that no checkpoint holds."""

    calls = 0

    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        self.calls += 1
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
        (NotFinite, "`total` is nan"),
        (NoElements, "`count` is 0, must be positive"),
        (NoScalar, "must be a scalar"),
        (HalfPrecision, "not float32"),
        (Attached, r"`sums\['again'\]` requires grad"),
        (Ragged, "differ between micro-batches"),
        (EmbeddingOnly, r"gives no gradient to model\.block\.mix"),
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
        (IgnoresOkGan, r"update_buffers of 'critic' changes the buffer means\.real"),
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


def example_of(change: Callable[[Batch], Batch], name: str) -> type[LmType]:
    class Broken(LmType):
        def example(self, config: Any, data: Any, size: int) -> Batch:
            return change(super().example(config, data, size))

    Broken.__qualname__ = name
    globals()[name] = Broken
    return Broken


class NoPickle(LmType):
    def batcher(self, config: Any, data: Any, assets: Any, folder: Any, *, training: bool) -> Any:
        del config, data, assets, folder, training
        return lambda samples: token_batch(samples)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (example_of(lambda batch: {**batch, "more": {"x": 1}}, "Nested"), "neither a tensor nor"),
        (example_of(lambda batch: {**batch, "mask": batch["mask"][:1]}, "Few"), "has 1 rows for 8"),
        (example_of(lambda batch: {"ids": batch["ids"]}, "Less"), "the batcher returns"),
        (
            example_of(lambda batch: {**batch, "mask": batch["mask"].double()}, "Wide"),
            "float64 with 2",
        ),
        (NoPickle, "the batcher cannot be pickled"),
    ],
)
def test_broken_batch_is_reported(broken: Any, sentence: str, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(broken(), rows, tmp_path)


# policies


def ignores_rng(sampler: Any, batch: Any, *, steps: int, rng: Rng) -> Tensor:
    return sampler(batch, steps=steps, rng=rng) + 0.1 * torch.rand(())


def shares_rng(sampler: Any, batch: Any, *, steps: int, rng: Rng) -> Tensor:
    actions = sampler(batch, steps=steps, rng=rng)
    return actions + actions.mean()


def infinite(sampler: Any, batch: Any, *, steps: int, rng: Rng) -> Tensor:
    return sampler(batch, steps=steps, rng=rng) * float("inf")


class WithSampler(DiffusionPolicyType):
    """Diffusion policy with another sampler."""

    sampler: ClassVar[Any] = None

    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> RoboticsPolicy:
        policy = super().policy(config, parts, assets, folder)
        policy._sampler = partial(type(self).sampler, policy._sampler)
        return policy


class IgnoresRng(WithSampler):
    sampler: ClassVar[Any] = staticmethod(ignores_rng)


class SharesNoise(WithSampler):
    sampler: ClassVar[Any] = staticmethod(shares_rng)


class Infinite(WithSampler):
    sampler: ClassVar[Any] = staticmethod(infinite)


def with_gradients(sampler: Any, batch: Any, *, steps: int, rng: Rng) -> Tensor:
    actions = sampler(batch, steps=steps, rng=rng)
    return actions * torch.ones((), requires_grad=True)


class WithGradients(WithSampler):
    """Policy whose actions have gradients, which `RoboticsPolicy` detaches."""

    sampler: ClassVar[Any] = staticmethod(with_gradients)


class TensorPolicy(RoboticsPolicy):
    def act(self, *args: Any, **keys: Any) -> Any:
        actions = super().act(*args, **keys)
        return {name: torch.tensor(value, requires_grad=True) for name, value in actions.items()}


class ReturnsTensors(DiffusionPolicyType):
    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> RoboticsPolicy:
        policy = super().policy(config, parts, assets, folder)
        return TensorPolicy(policy._sampler, policy._batcher, assets)


class ReturnsNetwork(DiffusionPolicyType):
    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> Any:
        del config, assets, folder
        return parts["model"]


class LacksField(DiffusionPolicyType):
    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> RoboticsPolicy:
        policy = super().policy(config, parts, assets, folder)
        return FieldlessPolicy(policy._sampler, policy._batcher, assets)


class FieldlessPolicy(RoboticsPolicy):
    def act(self, *args: Any, **keys: Any) -> Any:
        return dict(list(super().act(*args, **keys).items())[1:])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_data(tmp_path_factory.mktemp("world"))


BACKBONE = {
    "type": "keypoint_backbone",
    "hidden_dim": 16,
    "channels": [4, 8],
    "num_keypoints": 4,
}
TRANSFORMER = {"hidden_dim": 32, "n_layers": 1, "n_heads": 2, "ffn_type": "gelu"}
KEYS = {"vision_language_backbone": BACKBONE, "transformer": TRANSFORMER}


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (IgnoresRng, "randomness that is not from the seeds"),
        (SharesNoise, "depend on the others in its batch"),
        (Infinite, "not finite"),
        (ReturnsTensors, "act returns a tensor with gradients"),
        (ReturnsNetwork, "is not a Policy: it has no 'sees'"),
        (LacksField, "act returns no actions for"),
    ],
)
def test_broken_policy_is_reported(
    broken: Any, sentence: str, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(broken(), shards, tmp_path, **KEYS)


def test_sampler_may_return_gradients(shards: Path, tmp_path: Path) -> None:
    check(WithGradients(), shards, tmp_path, **KEYS)


def test_correct_toy_passes(rows: Path, tmp_path: Path) -> None:
    assert isinstance(LmType().build(LmType.Config())["model"].module, ToyLm)
    check(LmType(), rows, tmp_path)
