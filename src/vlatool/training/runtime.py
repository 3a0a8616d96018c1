"""Devices, precision, ranks and seeds of a run. The only module that uses Accelerate."""

import hashlib
import math
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] - it is public
)
from torch.distributed.device_mesh import init_device_mesh

from vlatool.errors import EnvironmentProblem
from vlatool.models.rng import PerSampleRng
from vlatool.storage.background import in_background
from vlatool.training.config import TrainConfig
from vlatool.training.placement import Placement
from vlatool.training.ranks import LOST_RANK
from vlatool.training.rendezvous import connected, meet

_WATCHED_EVERY_S = 0.5
# A request to a process that is stopped, or to a machine that is lost, would wait for ever.
_ANSWER_S = 15.0
# Gloo raises the first one when a rank does not answer in time, then closes the connections.
_LOST = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer")
# By then the ranks have ended with an error.
_NCCL_MARGIN_S = 60.0


class Runtime:
    """One rank of a run."""

    def __init__(self, config: TrainConfig) -> None:
        on_cpu = not torch.cuda.is_available()
        mixed = config.hparams.precision.startswith("amp")
        backend = config.distributed.dist_backend
        if backend == ("nccl" if on_cpu else "gloo"):
            raise EnvironmentProblem(
                f"distributed.dist_backend is {backend}, but "
                f"{'there is no GPU' if on_cpu else 'the run uses GPUs'}",
                hint="set distributed.dist_backend=auto",
                code="environment.missing_dependency",
            )
        torch.backends.cuda.matmul.allow_tf32 = True
        # Without the reset, Accelerate keeps the first precision of a process. The process group
        # stays.
        AcceleratorState._reset_state()
        self._timeout = timedelta(seconds=config.distributed.timeout)
        self._store: TCPStore | None = None  # inside `waiting`, with several ranks
        self._works: Iterator[str] = iter(())  # keys of the calls of `main_works`
        margin = timedelta(seconds=0.0 if on_cpu else _NCCL_MARGIN_S)
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        store = None
        if expected > 1 and not dist.is_initialized():
            store = meet(os.environ, config.distributed.start_timeout)
        self._accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="bf16" if mixed else "no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=self._timeout + margin)],
        )
        del store  # torch has its own now
        if self._accelerator.num_processes != expected:
            raise EnvironmentProblem(
                f"{expected} processes were started, but only {self._accelerator.num_processes} "
                "have joined the run",
                hint="start the run with `vlatool train --nproc N ...`, or with torchrun",
                code="environment.hardware",
            )

    @property
    def world_size(self) -> int:
        return self._accelerator.num_processes

    @property
    def ranks_here(self) -> int:
        """Number of ranks on this machine, which share its processors."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        return max(1, min(here, self.world_size))

    @property
    def rank(self) -> int:
        return self._accelerator.process_index

    @property
    def timeout_s(self) -> float:
        """Seconds that this rank waits for another rank; infinite if there is no other."""
        return self._timeout.total_seconds() if self.world_size > 1 else math.inf

    @property
    def is_main(self) -> bool:
        """True for rank 0, which writes files."""
        return self._accelerator.is_main_process

    @property
    def is_first_of_machine(self) -> bool:
        """True for the first rank of each machine."""
        return self._accelerator.is_local_main_process

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    def limit_threads(self, processors: int, loaders: int) -> None:
        """Leaves one CPU core to each loader worker of this rank, unless OMP_NUM_THREADS is set.

        With more threads than cores, threads spin while they wait for each other: on two cores,
        with one loader worker and another busy program, a step took 300 ms instead of 60 ms.
        """
        if self.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, processors // self.ranks_here - loaders))

    def placement(self, config: TrainConfig) -> Placement:
        """Placement of parts; sharded if configured and there is more than one rank."""
        mesh = None
        if config.distributed.fsdp and self.world_size > 1:
            mesh = init_device_mesh(self.device.type, (self.world_size,))
        return Placement(
            device=self.device,
            world_size=self.world_size,
            mesh=mesh,
            reshard_after_forward=config.distributed.fsdp_reshard_after_forward,
            grad_checkpointing=config.hparams.grad_checkpointing,
            compile_blocks=config.hparams.torchcompile,
        )

    def autocast(self) -> AbstractContextManager[None]:
        """Autocast context with the configured precision."""
        return self._accelerator.autocast()

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all ranks. Collective."""
        if self.world_size == 1:
            return values
        summed = self._accelerator.reduce(values, reduction="sum")
        assert isinstance(summed, Tensor)
        return summed

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, on every rank. Collective."""
        return broadcast_object_list([value])[0] if self.world_size > 1 else value

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context that raises an EnvironmentProblem if a rank does not answer in time.

        With NCCL a rank that does not take part in a step is noticed when its results are read.
        Elsewhere its watchdog ends the process a minute later, without an exception. Collective.
        """
        if self.world_size == 1:
            yield
            return
        self._store = connected(timedelta(seconds=_ANSWER_S))
        token = self.broadcast(secrets.token_hex(8))
        self._works = (f"vlatool/{token}/{number}" for number in count())
        try:
            yield
        except (RuntimeError, TimeoutError) as error:
            if not any(text in str(error) for text in _LOST):
                raise
            raise EnvironmentProblem(
                f"another rank has ended, or has not answered for {self.timeout_s:g} s",
                hint="read the errors of the other ranks, then run the same command to resume from "
                "the last checkpoint; distributed.timeout is the number of seconds",
                code=LOST_RANK,
            ) from error
        finally:
            self._store = None

    @contextmanager
    def main_works(self) -> Iterator[None]:
        """Context in which rank 0 works and the others wait, without a collective, in which they
        would handle no signal. Collective.
        """
        store = self._store
        if store is None:
            yield
            return
        done = next(self._works)
        try:
            yield
        finally:
            if self.is_main:
                store.set(done, "")
        until = time.monotonic() + self.timeout_s
        # If rank 0 has ended or does not answer, the next collective fails.
        with suppress(RuntimeError, TimeoutError):
            while not self.is_main and time.monotonic() < until:
                if in_background(partial(store.check, [done])).result(_ANSWER_S):
                    break
                time.sleep(_WATCHED_EVERY_S)

    def barrier(self) -> None:
        """Waits until all ranks reach this call."""
        self._accelerator.wait_for_everyone()

    def gather(self, values: Sequence[str]) -> list[str]:
        """The values of all ranks, on every rank. Collective."""
        return gather_object(list(values)) if self.world_size > 1 else list(values)

    def seed(self, *key: object) -> None:
        """Seeds torch's global generators, which dropout uses, from a key and the rank.

        The seed does not depend on whether the run was resumed.
        """
        torch.manual_seed(_number(*key, self.rank))

    def rng(self, rows: Sequence[int], total: int, *key: object) -> PerSampleRng:
        """Generator with a stream per sample of a global batch, independent of the rank."""

        def seeded(chunk: int) -> torch.Generator:
            number = _number(*key, chunk) if chunk else _number(*key)
            return torch.Generator(self.device).manual_seed(number)

        return PerSampleRng(seeded, rows, total)


def _number(*key: object) -> int:
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
