"""Every promise that `check_model_type` checks, broken by a toy, is noticed and told."""

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
from vlatool.model_promises import check_config, world_data
from vlatool.model_trial import ModelChecks
from vlatool.models.base import Batch, Loss, OptimizerSpec, ParamGroup, Part, StepContext
from vlatool.models.diffusion_policy.spec import DiffusionPolicyType
from vlatool.models.policy import RoboticsPolicy
from vlatool.testing import check_model_type


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbers(tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file({"weight": torch.eye(4), "bias": torch.zeros(4)}, path)
    return str(path)


def check(model_type: Any, data: Path | None, folder: Path, **keys: Any) -> None:
    """As `check_model_type`, without a process that imports the module of this test."""
    config, info = check_config(model_type, model_type.Config.model_validate(keys), data, folder)
    ModelChecks(config, info, folder).check()


def lm(objective: type[LmObjective]) -> type[LmType]:
    """The toy language model with another objective."""

    class Broken(LmType):
        def objective(self, *args: Any) -> LmObjective:
            del args
            return objective()

    # Loader processes get copies, so it must have a name of its own.
    Broken.__qualname__ = f"Broken{objective.__name__}"
    globals()[Broken.__qualname__] = Broken
    return Broken


# config, kinds of data, parts


class OtherName(LmType):
    name: ClassVar[str] = "other"


class Growing(LmType):
    def derive(self, config: Any, data: Any, info: Any) -> tuple[Any, dict[str, str]]:
        del data, info
        return config.model_copy(update={"chunks": config.chunks + 1}), {}


class Choosy(LmType):
    kinds: ClassVar[tuple[str, ...]] = ()


class UsurperConfig(NumbersConfig):
    type: Literal["robotics"] = Field(default="robotics", description="Kind of data.")


class UsurperKind(NumbersKind):
    name: ClassVar[str] = "robotics"
    Config: ClassVar[Any] = UsurperConfig


class Usurping(LmType):
    kinds: ClassVar[tuple[str, ...]] = (f"{__name__}:UsurperKind",)


class Forgetful(NumbersKind):
    def make_assets(self, config: Any, info: Any) -> Any:
        del config, info
        return 1

    def load_assets(self, config: Any, folder: Path) -> Any:
        del config, folder
        return 2


class UsesKept(LmType):
    kinds: ClassVar[tuple[str, ...]] = (f"{__name__}:Forgetful",)

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


class Lossy(LmType):
    def build(self, config: Any) -> Mapping[str, Part]:
        return {"model": replace(super().build(config)["model"], saved=False)}


class Unmoved(LmType):
    def build(self, config: Any) -> Mapping[str, Part]:
        return {**super().build(config), "other": Part(nn.Linear(2, 2))}


class NoMethod(LmType):
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("generate",)}


class StrangeBlock(LmType):
    def blocks(self, parts: Mapping[str, Part]) -> Sequence[Any]:
        del parts
        return [nn.Linear(1, 1)]


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (OtherName, "Config.type is 'toy_lm', name is 'other'"),
        (Growing, "derive changes what it derived"),
        (Choosy, "kinds is empty"),
        (Usurping, "has the name 'robotics' of a built-in one"),
        (UsesKept, "kept gives another batch than prepared"),
        (ReadsWeights, "meta device"),
        (NoModel, "none of them 'model'"),
        (Lossy, "trained but not saved"),
        (Unmoved, "no optimizer moves it"),
        (NoMethod, r"model\.generate, which is not there"),
        (StrangeBlock, "in no part"),
    ],
)
def test_broken_config_kind_or_part_is_noticed(
    broken: Any, sentence: str, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(broken(), rows, tmp_path)


def test_teacher_without_weights_of_its_own_is_noticed(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="'teacher' is not saved, and load"):
        check(GanType(), rows, tmp_path)


def test_kind_of_ones_own_needs_data(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="give data=FOLDER"):
        check(LmType(), None, tmp_path)


def test_error_of_a_kind_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check_config(LmType(), LmType.Config(), {"folders": []}, tmp_path)


def test_type_that_loads_torch_is_noticed() -> None:
    heavy = type("HeavyType", (LmType,), {"__module__": "tests.builders.toy_networks"})
    with pytest.raises(AssertionError, match="imports torch"):
        check_model_type(heavy)


# optimizers


class Elsewhere(LmObjective):
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("modle",))}


class Idle(LmObjective):
    def optimizers_at(self, step: int) -> Sequence[str]:
        del step
        return []


class Unknown(LmObjective):
    def optimizers_at(self, step: int) -> Sequence[str]:
        del step
        return ["mian"]


def one_group(parts: Mapping[str, nn.Module]) -> Sequence[ParamGroup]:
    return [ParamGroup([next(parts["model"].parameters())])]


class Partial(LmObjective):
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",), groups=one_group)}


# losses


class Changed(LmObjective):
    """The loss as `change` makes it."""

    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        raise NotImplementedError

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        return self.change(super().loss(optimizer, batch, ctx), batch, ctx)


class NotFinite(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, total=loss.total * float("nan"))


class Nothing(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, count=loss.count * 0)


class NoScalar(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, total=loss.total[None])


class Coarse(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, total=loss.total.bfloat16())


class Attached(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, sums={"again": loss.total})


class Ragged(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, sums={"rows": batch["mask"].sum(1)})


class Short(Changed):
    """Reaches the embedding alone."""

    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        block = ctx.parts["model"].block
        return replace(loss, total=block.embed.weight.square().sum())


class Still(Changed):
    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        return replace(loss, total=loss.total + (0.0 * loss.total - loss.total).detach() + 9.0)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",), lr=0.0)}


class Counting(Changed):
    """Remembers something that no checkpoint holds."""

    seen = 0

    def change(self, loss: Loss, batch: Batch, ctx: StepContext) -> Loss:
        self.seen += 1
        return replace(loss, total=loss.total * (1 + self.seen % 5))


class BlindToHeldOut(LmObjective):
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
        (Elsewhere, "moves 'modle', which build does not give"),
        (Idle, "no optimizer moves at step 0"),
        (Unknown, "names 'mian', which is no optimizer"),
        (Partial, r"leave out model\.block"),
        (NotFinite, "total is nan"),
        (Nothing, "no element is counted"),
        (NoScalar, "is no scalar"),
        (Coarse, "not float32"),
        (Attached, "the sum 'again' is not detached"),
        (Ragged, "differ from micro-batch to micro-batch"),
        (Short, r"does not reach model\.block\.mix"),
        (BlindToHeldOut, "validate: no element"),
        (FloatImages, "images gives 'made' as float64"),
        (Still, "take the loss from"),
        (Counting, "is another after a resume"),
    ],
)
def test_broken_objective_is_noticed(
    objective: type[LmObjective], sentence: str, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(lm(objective)(), rows, tmp_path)


# buffers


class Hasty(GanObjective):
    """Changes running means while it computes a loss."""

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        self._means.real.add_(1.0)
        return super().loss(optimizer, batch, ctx)


class Deaf(GanObjective):
    """Settles where nothing was changed."""

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        super().update_buffers(optimizer, sums, torch.ones_like(ok))


class Decaying(GanObjective):
    """Forgets where nothing is counted."""

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        super().update_buffers(optimizer, sums, ok)
        if optimizer == "critic":
            self._means.real.mul_(torch.where(sums["n"] == 0, 0.5, 1.0).float())


class HastyGan(GanType):
    Objective: ClassVar[type[GanObjective]] = Hasty

    def objective(self, config: Any, data: Any, info: Any, parts: Any) -> GanObjective:
        del data, info
        return self.Objective(config, parts["means"].module)


class DeafGan(HastyGan):
    Objective: ClassVar[type[GanObjective]] = Deaf


class DecayingGan(HastyGan):
    Objective: ClassVar[type[GanObjective]] = Decaying


class HiddenMeansGan(GanType):
    """Its means are in no checkpoint."""

    def build(self, config: Any) -> Mapping[str, Part]:
        parts = super().build(config)
        parts["means"].module.register_buffer("real", torch.zeros(()), persistent=False)
        return parts


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (HastyGan, r"the loss of 'generator' changes the buffer means\.real"),
        (DeafGan, r"settle of 'critic' changes the buffer means\.real where ok is false"),
        (HiddenMeansGan, "is another after a resume"),
        (DecayingGan, r"a step that counts nothing changes means\.real"),
    ],
)
def test_buffer_that_changes_or_is_lost_is_noticed(
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
        (example_of(lambda one: {**one, "more": {"x": 1}}, "Nested"), "neither a tensor nor"),
        (example_of(lambda one: {**one, "mask": one["mask"][:1]}, "Few"), "has 1 rows for 8"),
        (example_of(lambda one: {"ids": one["ids"]}, "Less"), "the batcher makes"),
        (example_of(lambda one: {**one, "mask": one["mask"].double()}, "Wide"), "float64 with 2"),
        (NoPickle, "the batcher cannot be pickled"),
    ],
)
def test_broken_batch_is_noticed(broken: Any, sentence: str, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(broken(), rows, tmp_path)


# what acts


def wayward(sampler: Any, batch: Any, *, steps: int, rng: torch.Generator) -> Tensor:
    return sampler(batch, steps=steps, rng=rng) + 0.1 * torch.rand(())


def lost(sampler: Any, batch: Any, *, steps: int, rng: torch.Generator) -> Tensor:
    return sampler(batch, steps=steps, rng=rng) * float("inf")


class Acting(DiffusionPolicyType):
    """Samples through another function."""

    sampler: ClassVar[Any] = None

    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> RoboticsPolicy:
        policy = super().policy(config, parts, assets, folder)
        policy._sampler = partial(type(self).sampler, policy._sampler)
        return policy


class Wayward(Acting):
    sampler: ClassVar[Any] = staticmethod(wayward)


class Lost(Acting):
    sampler: ClassVar[Any] = staticmethod(lost)


def graded(sampler: Any, batch: Any, *, steps: int, rng: torch.Generator) -> Tensor:
    actions = sampler(batch, steps=steps, rng=rng)
    return actions * torch.ones((), requires_grad=True)


class Graded(Acting):
    """Its author thought of no gradients, which is nobody's concern but ours."""

    sampler: ClassVar[Any] = staticmethod(graded)


class Tensors(RoboticsPolicy):
    def act(self, *args: Any, **keys: Any) -> Any:
        commands = super().act(*args, **keys)
        return {name: torch.tensor(one, requires_grad=True) for name, one in commands.items()}


class ActsWithTensors(DiffusionPolicyType):
    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> RoboticsPolicy:
        made = super().policy(config, parts, assets, folder)
        return Tensors(made._sampler, made._batcher, assets)


class ActsByItself(DiffusionPolicyType):
    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> Any:
        del config, assets, folder
        return parts["model"]


class ForgetsAField(DiffusionPolicyType):
    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> RoboticsPolicy:
        made = super().policy(config, parts, assets, folder)
        return Half(made._sampler, made._batcher, assets)


class Half(RoboticsPolicy):
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
        (Wayward, "randomness from elsewhere"),
        (Lost, "not finite"),
        (ActsWithTensors, "act gives a tensor that keeps gradients"),
        (ActsByItself, "for robotics data it is"),
        (ForgetsAField, "act gives no actions for"),
    ],
)
def test_broken_policy_is_noticed(broken: Any, sentence: str, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(broken(), shards, tmp_path, **KEYS)


def test_sampler_may_keep_gradients(shards: Path, tmp_path: Path) -> None:
    check(Graded(), shards, tmp_path, **KEYS)


def test_sound_toy_is_let_through(rows: Path, tmp_path: Path) -> None:
    assert isinstance(LmType().build(LmType.Config())["model"].module, ToyLm)
    check(LmType(), rows, tmp_path)
