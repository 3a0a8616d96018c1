"""Pipeline that encodes the images of many episodes: reads, copies, computes and writes at once.

Batches never span episodes, so they depend neither on what was encoded before nor on the process.
With several devices, a worker process per device has its own pipeline.
Legend of shapes: B images of a batch, S side of an image in pixels, K codes of an image.
"""

import signal
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlatool.datasets.codes.layout import (
    CodesLayout,
    EpisodeCodes,
    check_image_name,
    write_check_image,
    write_codes,
)
from vlatool.episode import Array, EpisodeRef
from vlatool.errors import VlatoolError
from vlatool.jobs.executor import (
    Outcome,
    attempt,
    default_workers,
    signals_blocked,
)
from vlatool.jobs.job import InputState, ItemTask, WorkItem
from vlatool.jobs.journal import Receipt
from vlatool.loading.loader import loader_exited, start_forkserver, start_worker
from vlatool.media.images import labeled_png
from vlatool.models.base import Codes, Precision
from vlatool.models.tokenizer import ImageRule, OpenTokenizer, open_tokenizer, rank_device
from vlatool.storage.background import in_background
from vlatool.tokens.decode import decoded
from vlatool.tokens.images import EpisodeImages, EpisodeOpener, check_unique_names

STAGES = ("reading", "copying", "computing", "writing")
_PREFETCH = 2  # batches per reader process
_ON_DEVICE = 2  # batches on the device at the same time
_WRITTEN_AT_ONCE = 4  # episodes
_COMPARED = 8  # images of an episode that are encoded in both precisions


@dataclass(frozen=True)
class EncodeRule:
    """Options of encoding and of the files of codes."""

    output: Path  # folder of codes
    layout: CodesLayout = "json"  # layout of the files
    precision: Precision = "fp32"  # precision of the encoder; the quantizer computes in fp32
    batch_size: int = 64  # most images on the device at once
    check_every: int = 500  # save the reconstruction of every N-th image of an episode; 0: none
    num_workers: int = 0  # processes that read and decode; 0: this one


class _Task(NamedTuple):
    """Images of one batch: number of its episode in the run, the episode, indices in it."""

    number: int
    item: EpisodeRef
    indices: tuple[int, ...]


class _Read(NamedTuple):
    number: int  # number of the episode in the run
    indices: tuple[int, ...]  # indices of the images in the episode
    stems: tuple[str, ...]  # names of the images
    images: Tensor  # uint8 [B, S, S, 3]; empty after an error
    resized: int  # number of images that had another size
    error: VlatoolError | None  # error that prevented reading; None without one


class _ReadDataset(Dataset[_Read]):
    """Dataset that reads and decodes batches; runs in the reader processes."""

    def __init__(self, open_episode: EpisodeOpener, rule: ImageRule) -> None:
        self._open = open_episode
        self._rule = rule
        self._opened: tuple[int, EpisodeImages] | None = None

    def __getitem__(self, index: Any) -> _Read:
        task: _Task = index
        # An error raised in a loader process arrives as text only; as a value it stays complete.
        outcome = attempt(self._read, task)
        if outcome.value is None:
            return _Read(task.number, task.indices, (), torch.empty(0), 0, outcome.error)
        return outcome.value

    def _read(self, task: _Task) -> _Read:
        if self._opened is None or self._opened[0] != task.number:
            self._opened = task.number, self._open(task.item)
        stored = list(self._opened[1].read(task.indices))
        size = self._rule.size
        path = task.item.path
        resize = self._rule.apply
        images = np.stack([resize(image.pixels, f"{path}: {image.stem}") for image in stored])
        resized = sum(image.pixels.shape[:2] != (size, size) for image in stored)
        stems = tuple(image.stem for image in stored)
        return _Read(task.number, task.indices, stems, torch.from_numpy(images), resized, None)


@dataclass
class _Episode:
    item: WorkItem
    state: InputState | None = None  # state of its images
    # receipt of an earlier run, or of this one once it is written
    receipt: Receipt | None = None
    batches: int = 0  # number of batches that are not encoded yet
    stems: list[str] = field(default_factory=list[str])  # names of the encoded images
    codes: list[Array] = field(default_factory=list[Array])  # uint16 [K] of each
    # map from stem to PNG of image and reconstruction
    checks: dict[str, bytes] = field(default_factory=dict[str, bytes])
    counts: dict[str, int] = field(default_factory=dict[str, int])  # counts of its receipt
    error: VlatoolError | None = None  # error that prevents its codes; None without one
    # future of its receipt once writing has started
    written: "Future[Outcome[Any, Receipt]] | None" = None

    @property
    def name(self) -> str:
        return self.item.name


class EncodePipeline:
    """Executor that encodes episodes and returns a receipt for each."""

    def __init__(
        self, open_episode: EpisodeOpener, tokenizer: OpenTokenizer, rule: EncodeRule
    ) -> None:
        self._open = open_episode
        self._tokenizer = tokenizer
        self._rule = rule
        # map from stage to the time that the other stages waited for it
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Does nothing; `map` frees all it uses."""

    def map(self, function: Any, items: Iterable[Any]) -> Iterator[Outcome[Any, Any]]:
        """Yields one outcome per episode, in order. `function` is the `ItemTask` of a job."""
        pending = deque[_Episode]()
        started: dict[int, _Episode] = {}
        device = _Device(self._tokenizer, self._rule.precision, self.seconds)
        tasks = self._tasks(function, items, pending, started)
        with closing(self._read(tasks)) as batches:
            for read in batches:
                if read.error is None:
                    device.start(read)
                else:
                    _add_batch(started[read.number], read)
                while device.is_full:
                    self._add_codes(started, *device.finish())
                yield from self._finished(function, pending)
            while device.is_busy:
                self._add_codes(started, *device.finish())
        yield from self._finished(function, pending, is_end=True)

    def _tasks(
        self,
        task: ItemTask,
        items: Iterable[WorkItem],
        pending: deque[_Episode],
        started: dict[int, _Episode],
    ) -> Iterator[_Task]:
        """Yields the batches of each episode, nearly equal in size; adds the episode to both."""
        for number, item in enumerate(items):
            episode = _Episode(item)
            split = attempt(partial(self._batches, task), episode)
            episode.error = split.error
            batches = split.value or []
            episode.batches = len(batches)
            started[number] = episode
            pending.append(episode)
            for indices in batches:
                yield _Task(number, item.item, indices)

    def _batches(self, task: ItemTask, episode: _Episode) -> list[tuple[int, ...]]:
        """Indices of the images of each batch; empty if an earlier run encoded the episode."""
        episode.state, episode.receipt = task.check_input(episode.item)
        if episode.receipt is not None:
            return []
        return even_batches(len(self._open(episode.item.item)), self._rule.batch_size)

    def _read(self, tasks: Iterator[_Task]) -> Generator[_Read]:
        """Yields decoded batches in the order of the tasks."""
        workers = min(self._rule.num_workers, default_workers())
        on_gpu = self._tokenizer.device.type == "cuda"
        context = _context() if workers else None
        # The loader takes these when its workers start, which Ctrl-C does not interrupt.
        first = list(islice(tasks, workers * _PREFETCH))
        loader = DataLoader(
            _ReadDataset(self._open, self._tokenizer.rule),
            batch_size=None,
            sampler=chain(first, tasks),
            num_workers=workers,
            prefetch_factor=_PREFETCH if workers else None,
            pin_memory=on_gpu,
            multiprocessing_context=context,
            worker_init_fn=start_worker if workers else None,
        )
        if workers:
            start_forkserver()
        running: Iterator[_Read] = iter(())
        try:
            with signals_blocked(signal.SIGINT):
                running = iter(loader)
            while True:
                with timed(self.seconds, "reading"):
                    read = next(running, None)
                if read is None:
                    return
                yield read
        except RuntimeError as error:
            raise loader_exited(error) or error from None
        finally:
            for process in getattr(running, "_workers", ()):
                process.kill()

    def _add_codes(self, started: Mapping[int, _Episode], read: _Read, codes: Codes) -> None:
        """Adds the codes of a batch; reconstructs the images to check."""
        episode = started[read.number]
        counts = {"resized": read.resized, "encoded_alone": codes.num_encoded_alone}
        if self._rule.precision != "fp32":
            counts |= self._compared(read, codes)
        for name, count in counts.items():
            episode.counts[name] = episode.counts.get(name, 0) + count
        for row, index in enumerate(read.indices):
            if self._rule.check_every and index % self._rule.check_every == 0:
                with timed(self.seconds, "computing"):
                    reconstruction = decoded(self._tokenizer, codes.values[row : row + 1])[0]
                pair = {"recorded": read.images[row].numpy(), "from its codes": reconstruction}
                episode.checks[read.stems[row]] = labeled_png(pair)
        _add_batch(episode, read, codes.values.numpy())

    def _compared(self, read: _Read, codes: Codes) -> dict[str, int]:
        """Number of compared codes of an episode's first images, and number that is the same in
        fp32.
        """
        rows = [row for row, index in enumerate(read.indices) if index < _COMPARED]
        if not rows:
            return {}
        images = read.images[rows].to(self._tokenizer.device)
        exact = self._tokenizer.network.encode(images, "fp32").values.cpu()
        same = exact == codes.values[rows]
        return {"compared": same.numel(), "agreeing": int(same.sum())}

    def _finished(
        self, task: ItemTask, pending: deque[_Episode], *, is_end: bool = False
    ) -> Iterator[Outcome[Any, Any]]:
        """Yields outcomes of the first episodes that are written; starts to write encoded ones."""
        for episode in pending:
            is_done = episode.error is not None or episode.receipt is not None
            if episode.batches == 0 and episode.written is None and not is_done:
                write = partial(self._write, task)
                episode.written = in_background(partial(attempt, write, episode))
        while pending and (first := pending[0]).batches == 0:
            busy = sum(episode.written is not None for episode in pending)
            if first.written is None:
                yield Outcome(first.item, first.receipt, first.error)
            elif is_end or busy > _WRITTEN_AT_ONCE or first.written.done():
                with timed(self.seconds, "writing"):
                    outcome = first.written.result()
                yield Outcome(first.item, outcome.value, outcome.error)
            else:
                return
            pending.popleft()

    def _write(self, task: ItemTask, episode: _Episode) -> Receipt:
        """Writes the codes of an episode and its check images."""
        rule = self._rule
        name = episode.name
        check_unique_names(episode.item.item.path, episode.stems)
        codes = EpisodeCodes.of(name, dict(zip(episode.stems, episode.codes, strict=True)))
        checks = [
            write_check_image(rule.output, check_image_name(name, stem), png)
            for stem, png in episode.checks.items()
        ]
        entry = write_codes(rule.output, rule.layout, codes, self._tokenizer.network.digest)
        counts = {"pictures": len(codes.stems), **episode.counts}
        info = {"digest": codes.digest}
        receipt = Receipt(name, counts=counts, files=(entry, *checks), facts=info)
        assert episode.state is not None
        return task.complete(episode.item, episode.state, receipt)


class _Device:
    """Queue of batches on the device, in order.

    The next batch is copied while the last one is computed; on a CPU nothing is copied.
    """

    def __init__(
        self, tokenizer: OpenTokenizer, precision: Precision, seconds: dict[str, float]
    ) -> None:
        self._tokenizer = tokenizer
        self._seconds = seconds
        self._precision: Precision = precision
        self._running = deque[tuple[_Read, Tensor, Any]]()
        self._copies = (
            torch.cuda.Stream(tokenizer.device) if tokenizer.device.type == "cuda" else None
        )

    @property
    def is_busy(self) -> bool:
        """True if a batch is on the device."""
        return bool(self._running)

    @property
    def is_full(self) -> bool:
        """True if the first batch must be finished before another is started."""
        return len(self._running) >= (_ON_DEVICE if self._copies else 1)

    def start(self, read: _Read) -> None:
        copied: Any = None
        images = read.images
        if self._copies is not None:
            with torch.cuda.stream(self._copies):
                images = images.to(self._tokenizer.device, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record(self._copies)
        self._running.append((read, images, copied))

    def finish(self) -> tuple[_Read, Codes]:
        """Waits for the first batch and returns it with its codes."""
        read, images, copied = self._running.popleft()
        if copied is not None:
            with timed(self._seconds, "copying"):
                copied.synchronize()
            images.record_stream(torch.cuda.current_stream(self._tokenizer.device))
        with timed(self._seconds, "computing"):
            codes = self._tokenizer.network.encode(images, self._precision)
            return read, codes._replace(values=codes.values.cpu())


def _add_batch(episode: _Episode, read: _Read, codes: Array | None = None) -> None:
    """Adds a batch to its episode; after an error the codes of the episode are discarded."""
    episode.batches -= 1
    if episode.error is not None or codes is None:
        episode.error = episode.error or read.error
        episode.codes.clear()
        episode.stems.clear()
        episode.checks.clear()
        return
    episode.stems += read.stems
    episode.codes += [*codes.astype(np.uint16)]


def even_batches(count: int, most: int) -> list[tuple[int, ...]]:
    """Splits range(count) into the fewest batches of at most `most`, nearly equal in size."""
    batches = -(-count // most)
    bounds = [count * batch // max(batches, 1) for batch in range(batches + 1)]
    return [tuple(range(*pair)) for pair in pairwise(bounds)]


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the duration of the block to `seconds[stage]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - start


def _context() -> Any:
    """Context whose reader processes are forked from a server that has imported this module."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def open_pipeline(
    open_episode: EpisodeOpener,
    tokenizer: str,  # its location
    rule: EncodeRule,
    processes: int,  # which share the processors
    index: int,  # of the device
) -> EncodePipeline:
    """Pipeline of a worker process, which owns a device."""
    torch.set_num_threads(max(1, default_workers() // processes))
    return EncodePipeline(open_episode, open_tokenizer(tokenizer, rank_device(index)), rule)
