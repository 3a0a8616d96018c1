"""The loss of a policy of lerobot, and its chunks for a robot.

Legend of shapes: B samples, T steps of a chunk, A width of an action, P past steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.errors import UsageError
from vlatool.models import base
from vlatool.models.lerobot import package
from vlatool.models.lerobot.batch import FeatureStatistics, as_floats, plan
from vlatool.models.lerobot.config import ACTION, LeRobotPolicyConfig
from vlatool.models.policy import ActionUnits, equal_groups


@dataclass(frozen=True)
class PlanWindow:
    """Steps of the windows of the data."""

    past: int  # number of steps before the current one
    total: int  # number of all steps
    first_action: int  # first step of the actions of the policy, relative to the current one


_RECORDED = "recorded"  # actions in physical units, in a prepared batch


class LeRobotObjective(base.Objective):
    """The loss of the policy itself, `policy.forward`.

    A micro-batch counts with its number of samples. With one process and no accumulation a step is
    the one of lerobot; else the loss is the mean over samples of the means that the policy computes
    in micro-batches, where policies that average over steps which are not padding differ a little.
    """

    samples_chunks: ClassVar[bool] = True

    def __init__(
        self,
        section: LeRobotPolicyConfig,
        statistics: FeatureStatistics,
        policy: nn.Module,
        units: ActionUnits,
        window: "PlanWindow",
    ) -> None:
        self._section = section
        self._statistics = statistics
        self._policy: Any = policy
        self._units = units
        self._window = window
        self._processors: dict[str, Any] = {}  # by device
        config = package.policy_config(section)
        self._preset = config.get_optimizer_preset()
        self._schedule = config.get_scheduler_preset()
        self._schedules: dict[int, Any] = {}  # by number of steps
        # Networks that are trained in two phases count their steps outside of their weights.
        self._counting = [part for part in policy.modules() if hasattr(part, "optimized_steps")]

    def optimizers(self) -> Mapping[str, base.OptimizerSpec]:
        return {"main": base.OptimizerSpec(("model",), self._groups, schedule=self._rate)}

    def _groups(self, parts: Mapping[str, nn.Module]) -> Sequence[base.ParamGroup]:
        """The groups of the policy, as the optimizer of its preset has them."""
        policy: Any = parts["model"]
        groups: list[base.ParamGroup] = []
        params = policy.get_optim_params()
        seen: set[int] = set()
        for group in self._preset.build(params).param_groups:
            rate = group["lr"] / self._preset.lr if self._preset.lr else 1.0
            is_preset = group["weight_decay"] == self._preset.weight_decay
            groups.append(
                base.ParamGroup(
                    group["params"], rate=rate, decay=None if is_preset else group["weight_decay"]
                )
            )
            seen.update(map(id, group["params"]))
        others = [p for p in policy.parameters() if p.requires_grad and id(p) not in seen]
        return [*groups, base.ParamGroup(others)]

    def _rate(self, step: int, total: int) -> float:
        """Factor on the learning rate by the schedule of the preset."""
        if self._schedule is None:
            return 1.0
        if total not in self._schedules:
            unused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
            self._schedules[total] = self._schedule.build(unused, total)
        schedule = self._schedules[total]
        return 1.0 if schedule is None else float(schedule.lr_lambdas[0](step))

    def prepare(self, batch: base.Batch, ctx: base.StepContext) -> base.Batch:
        """The batch after the preprocessor of the policy, on the device."""
        device = batch[ACTION].device
        preprocess, _ = self._of(device)
        floats = as_floats(batch, device)
        prepared = dict(preprocess(dict(floats)))
        prepared[_RECORDED] = batch[ACTION]
        return prepared

    def _of(self, device: torch.device) -> Any:
        if str(device) not in self._processors:
            numbers = self._statistics
            self._processors[str(device)] = package.new_processors(
                self._section, numbers.seen, numbers.commanded, device
            )
        return self._processors[str(device)]

    def loss(self, optimizer: str, batch: base.Batch, ctx: base.StepContext) -> base.Loss:
        for part in self._counting:
            part.optimized_steps = ctx.step if ctx.training else -1
        inputs = {name: value for name, value in batch.items() if name != _RECORDED}
        try:
            with package.quiet():
                loss, facts = ctx.parts["model"](inputs)
        except KeyError as error:
            raise UsageError(
                f"the policy {self._section.policy} needs {error}, which the data do not give",
                hint="choose another model.policy; the docs list those that were run",
                code="usage.unsupported",
                details={"key": "model.policy"},
            ) from error
        size = len(batch[_RECORDED])
        sums: dict[str, Tensor] = {}
        for name, value in (facts or {}).items():
            if isinstance(value, int | float) and ctx.training:
                sums[name] = torch.tensor(float(value) * size)
        return base.Loss(loss * size, torch.tensor(size), sums)

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        return {name: float(total) / count for name, total in sums.items() if count}

    def chunk_errors(self, batch: base.Batch, ctx: base.StepContext) -> Mapping[str, Tensor]:
        """Errors of planned chunks in physical units; of the steps that the policy plans."""
        recorded = batch[_RECORDED]
        _, postprocess = self._of(recorded.device)
        chunk = postprocess(plan(self._policy, batch)).to(recorded.device)
        steps = self._window
        sampled = recorded.new_zeros(len(recorded), steps.total, recorded.shape[-1])
        actions = torch.zeros_like(sampled)
        mask = torch.zeros(sampled.shape[:2], dtype=torch.bool, device=recorded.device)
        first = steps.past + steps.first_action
        last = first + recorded.shape[1]
        rows = slice(steps.past, min(steps.past + chunk.shape[1], last))
        sampled[:, rows] = chunk[:, : rows.stop - rows.start]
        actions[:, first:last] = recorded
        mask[:, rows] = ~batch["action_is_pad"][:, rows.start - first : rows.stop - first]
        return self._units.errors(sampled, actions, mask)


class LeRobotSampler:
    """Chunks of a policy, in physical units."""

    def __init__(self, policy: nn.Module, processors: Any, past: int, rows: int) -> None:
        self._policy: Any = policy
        self._preprocess, self._postprocess = processors
        self._past = past
        self._rows = rows

    def __call__(self, batch: Mapping[str, Any], *, steps: int, rng: base.Rng) -> Tensor:
        """Actions [B, P + T, A]; those of past steps are not predicted: 0."""
        del steps
        device = next(self._policy.parameters()).device
        floats = as_floats(batch, device)
        noise = None
        config = self._policy.config
        if package.takes_noise(self._policy):
            width = getattr(config, "max_action_dim", None) or config.action_feature.shape[0]
            noise = rng.normal(len(config.action_delta_indices), width)
        seeds = rng.integers(2**31, 1)[:, 0].tolist()
        chunks: Tensor | None = None
        # A text is padded to the longest of its batch, so equal ones are planned together.
        for group in equal_groups(batch["task"]):
            planned = self._group(floats, group.filled, noise, seeds)
            if chunks is None:
                chunks = planned.new_zeros(len(seeds), *planned.shape[1:])
            chunks[group.rows] = planned[: len(group.rows)]
        assert chunks is not None, "there are observations"
        return functional.pad(chunks, (0, 0, self._past, 0))

    def _group(
        self, batch: Mapping[str, Any], rows: Sequence[int], noise: Tensor | None, seeds: list[int]
    ) -> Tensor:
        """Chunks of rows: together if the policy draws nothing but `noise`, else one by one."""
        with torch.random.fork_rng():
            torch.manual_seed(seeds[rows[0]])
            before = _random_state()
            chunks = self._plan(batch, rows, noise)
            if all(map(torch.equal, before, _random_state())):
                return chunks
            alone: list[Tensor] = []
            for row in rows:
                torch.manual_seed(seeds[row])
                alone.append(self._plan(batch, [row], noise))
        return torch.cat(alone)

    def _plan(self, batch: Mapping[str, Any], rows: Sequence[int], noise: Tensor | None) -> Tensor:
        chosen: dict[str, Any] = {}
        for name, value in batch.items():
            if not name.startswith(ACTION):
                is_list = isinstance(value, list)
                chosen[name] = [value[row] for row in rows] if is_list else value[list(rows)]
        options = {} if noise is None else {"noise": noise[list(rows)]}
        chunk = plan(self._policy, self._preprocess(chosen), **options)
        return self._postprocess(chunk)[:, : self._rows]


def _random_state() -> list[Tensor]:
    """State of the global generators of torch."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return states
