"""The only place that configures Accelerate: devices, precision, processes, seeds."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from vlatool.errors import EnvironmentProblem
from vlatool.training.config import TrainConfig


class Runtime:
    """This process among all processes of a run."""

    def __init__(self, config: TrainConfig) -> None:
        on_cpu = not torch.cuda.is_available()
        mixed = config.hparams.precision.startswith("amp")
        if not on_cpu and config.distributed.dist_backend == "gloo":
            raise EnvironmentProblem(
                "distributed.dist_backend is gloo, but GPUs are used",
                hint="set it to auto",
                code="environment.backend",
            )
        torch.backends.cuda.matmul.allow_tf32 = True
        # Accelerate keeps the first precision of a process for ever; the processes stay joined.
        AcceleratorState._reset_state()
        self._accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if mixed else "no")
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if self._accelerator.num_processes != expected:
            raise EnvironmentProblem(
                f"{expected} processes were started, {self._accelerator.num_processes} are joined",
                hint="start with torchrun --nproc_per_node N -m vlatool train ...",
                code="environment.processes",
            )

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self._accelerator.num_processes

    @property
    def rank(self) -> int:
        """This process."""
        return self._accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self._accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._accelerator.device

    def share_processors(self, processors: int, loaders: int) -> None:
        """Leaves a processor to each of this process's loaders, unless OMP_NUM_THREADS decides.

        Threads that outnumber their processors spin while they wait for each other: with two
        processors, one loader and another busy program a step took 300 ms instead of 60.
        """
        if self.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, processors // self.world_size - loaders))

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module on its device, wrapped for gradient exchange and precision."""
        return self._accelerator.prepare_model(module)

    def unwrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return self._accelerator.unwrap_model(module, keep_torch_compile=False)

    def autocast(self) -> AbstractContextManager[None]:
        """Computes in the configured precision."""
        return self._accelerator.autocast()

    def without_exchange(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Keeps gradients of all but the last micro-batch to this process."""
        return nullcontext() if last else self._accelerator.no_sync(module)

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all processes."""
        if self.world_size == 1:
            return values
        summed = self._accelerator.reduce(values, reduction="sum")
        assert isinstance(summed, Tensor)
        return summed

    def agree(self, value: Any) -> Any:
        """The first process's value, in every process."""
        return broadcast_object_list([value])[0] if self.world_size > 1 else value

    def wait(self) -> None:
        """Waits for all processes."""
        self._accelerator.wait_for_everyone()

    def to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch whose tensors are on this process's device."""
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def generator(self, seed: int, step: int) -> torch.Generator:
        """Randomness of one step of this process: the same whether the run was resumed or not.

        Also seeds torch's global generators, which dropout draws from.
        """
        digest = hashlib.blake2b(f"{seed}/{step}/{self.rank}".encode(), digest_size=7).digest()
        number = int.from_bytes(digest, "big")
        torch.manual_seed(number)
        return torch.Generator().manual_seed(number)
