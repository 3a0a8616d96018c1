"""The loss of a policy of lerobot, and its chunks for a robot.

Legend of shapes: B samples, T steps of a chunk, A width of an action, P past steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.errors import UsageError
from vlatool.models import base
from vlatool.models.lerobot import package
from vlatool.models.lerobot.batch import FeatureStatistics, as_floats, plan
from vlatool.models.lerobot.config import ACTION, LeRobotPolicyConfig
from vlatool.models.policy import equal_groups


class LeRobotObjective(base.Objective):
    """The loss of the policy itself, `policy.forward`.

    A micro-batch counts with its number of samples. With one process and no accumulation a step is
    the one of lerobot; else the loss is the mean over samples of the means that the policy computes
    in micro-batches, where policies that average over steps which are not padding differ a little.
    """

    def __init__(
        self,
        section: LeRobotPolicyConfig,
        statistics: FeatureStatistics,
        policy: nn.Module,
    ) -> None:
        self._section = section
        self._statistics = statistics
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
        if str(device) not in self._processors:
            seen, commanded = self._statistics.seen, self._statistics.commanded
            made = package.new_processors(self._section, seen, commanded, device)
            self._processors[str(device)] = made[0]
        preprocess = self._processors[str(device)]
        return dict(preprocess(as_floats(batch, device)))

    def loss(self, optimizer: str, batch: base.Batch, ctx: base.StepContext) -> base.Loss:
        for counting in self._counting:
            part: Any = counting
            part.optimized_steps = ctx.step if ctx.training else -1
        try:
            with package.quiet():
                loss, facts = ctx.parts["model"](dict(batch))
        except KeyError as error:
            raise UsageError(
                f"the policy {self._section.policy} needs {error}, which the data do not give",
                hint="choose another model.policy; the docs list those that were run",
                code="usage.unsupported",
                details={"key": "model.policy"},
            ) from error
        size = len(batch[ACTION])
        sums: dict[str, Tensor] = {}
        for name, value in (facts or {}).items():
            if isinstance(value, int | float) and ctx.training:
                sums[name] = torch.tensor(float(value) * size)
        return base.Loss(loss * size, torch.tensor(size), sums)

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        return {name: float(total) / count for name, total in sums.items() if count}


class LeRobotSampler:
    """Chunks of a policy, in physical units."""

    def __init__(self, policy: nn.Module, processors: Any, past: int, rows: int) -> None:
        self._policy: Any = policy
        self._preprocess, self._postprocess = processors
        self._past = past
        self._rows = rows
        if self._policy.supports_rtc():
            from lerobot.policies.rtc.configuration_rtc import (  # pyright: ignore[reportMissingImports]
                RTCConfig,
            )

            self._policy.config.rtc_config = RTCConfig(enabled=True)
            self._policy.init_rtc_processor()

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
        # Steps that the robot executes before a chunk takes effect, and all that are left.
        left = [(0, 0)] * len(seeds)
        if "guidance" in batch and self._policy.supports_rtc():
            weights = batch["guidance"][:, self._past :]
            left = [(int((row == 1).sum()), int((row > 0).sum())) for row in weights]
        # A text is padded to the longest of its batch, so equal ones are planned together.
        for group in equal_groups([*zip(batch["task"], left, strict=True)]):
            planned = self._group(floats, group.filled, noise, seeds, left[group.rows[0]])
            if chunks is None:
                chunks = planned.new_zeros(len(seeds), *planned.shape[1:])
            chunks[group.rows] = planned[: len(group.rows)]
        assert chunks is not None, "there are observations"
        return functional.pad(chunks, (0, 0, self._past, 0))

    def _group(
        self,
        batch: Mapping[str, Any],
        rows: Sequence[int],
        noise: Tensor | None,
        seeds: list[int],
        left: tuple[int, int],
    ) -> Tensor:
        """Chunks of rows: together if the policy draws nothing but `noise`, else one by one."""
        with torch.random.fork_rng():
            torch.manual_seed(seeds[rows[0]])
            before = _random_state()
            chunks = self._plan(batch, rows, noise, left)
            if all(map(torch.equal, before, _random_state())):
                return chunks
            alone: list[Tensor] = []
            for row in rows:
                torch.manual_seed(seeds[row])
                alone.append(self._plan(batch, [row], noise, left))
        return torch.cat(alone)

    def _plan(
        self,
        batch: Mapping[str, Any],
        rows: Sequence[int],
        noise: Tensor | None,
        left: tuple[int, int],
    ) -> Tensor:
        chosen: dict[str, Any] = {}
        for name, value in batch.items():
            is_list = isinstance(value, list)
            chosen[name] = [value[row] for row in rows] if is_list else value[list(rows)]
        prepared = self._preprocess(chosen)
        options: dict[str, Any] = {} if noise is None else {"noise": noise[list(rows)]}
        delay, count = left
        if count:
            options |= {"inference_delay": delay, "execution_horizon": count}
            options["prev_chunk_left_over"] = prepared[ACTION][:, :count]
        return self._postprocess(plan(self._policy, prepared, **options))[:, : self._rows]


def _random_state() -> list[Tensor]:
    """State of the global generators of torch."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return states
