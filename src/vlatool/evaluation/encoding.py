"""Pictures of many episodes to files of codes: read, copied, computed and written side by side.

Batches never span episodes: what is computed together is the same whatever was done before, by
whatever process. Legend of shapes: B pictures of a batch, S their side, K codes of a picture.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlatool.artifacts.codes import (
    CodesLayout,
    EpisodeCodes,
    check_name,
    write_check,
    write_codes,
)
from vlatool.artifacts.image import encode_png
from vlatool.episode import Array
from vlatool.errors import VlatoolError
from vlatool.evaluation.code_maker import CodeMaker, Codes, ImageRule
from vlatool.evaluation.coding_config import Precision
from vlatool.evaluation.image_sets import ImageItem, ImageSet, OpenImages, check_unique_names
from vlatool.jobs.journal import Receipt
from vlatool.loading.loader import init_worker, loader_exited, start_forkserver
from vlatool.parallel.executor import Outcome, attempt, default_workers
from vlatool.storage.background import in_background

STAGES = ("reading", "copying", "computing", "writing")
_PREFETCH = 2  # batches ready per reading process
_ON_DEVICE = 2  # batches there at the same time
_WRITTEN_AT_ONCE = 4  # episodes
_COMPARED = 8  # pictures of an episode that are encoded in both precisions


@dataclass(frozen=True)
class EncodeRule:
    """How codes are made and written.

    Attributes:
        output: The folder of codes.
        layout: How they lie there.
        precision: Of the encoder; the quantizer is fp32.
        batch_size: Most pictures on the device at once.
        check_every: One of so many pictures of an episode is drawn again beside itself; 0: none.
        num_workers: Processes that read and decode; 0 for this one.
    """

    output: Path
    layout: CodesLayout = "json"
    precision: Precision = "fp32"
    batch_size: int = 64
    check_every: int = 500
    num_workers: int = 0


class _Task(NamedTuple):
    """Pictures of one batch: `number` of its episode in the run, the episode, places in it."""

    number: int
    item: ImageItem
    indices: tuple[int, ...]


class _Read(NamedTuple):
    """What became of a task.

    Attributes:
        number: Of the episode.
        indices: Places of the pictures.
        stems: Their names.
        images: uint8 [B, S, S, 3]; empty after an error.
        resized: How many had another size.
        error: Why there are none.
    """

    number: int
    indices: tuple[int, ...]
    stems: tuple[str, ...]
    images: Tensor
    resized: int
    error: VlatoolError | None


class _Reading(Dataset[_Read]):
    """Reads and decodes batches; lives in the reading processes."""

    def __init__(self, images: ImageSet, rule: ImageRule) -> None:
        self._images, self._rule = images, rule
        self._opened: tuple[int, OpenImages] | None = None

    def __getitem__(self, index: Any) -> _Read:
        task: _Task = index
        # Raised in a loader process an error would arrive as text; as a value it arrives whole.
        done = attempt(self._read, task)
        if done.value is None:
            return _Read(task.number, task.indices, (), torch.empty(0), 0, done.error)
        return done.value

    def _read(self, task: _Task) -> _Read:
        if self._opened is None or self._opened[0] != task.number:
            self._opened = task.number, self._images.open(task.item)
        found = list(self._opened[1].read(task.indices))
        size = self._rule.size
        place, fitted = task.item.path, self._rule.fitted
        images = np.stack([fitted(one.pixels, f"{place}: {one.stem}") for one in found])
        resized = sum(one.pixels.shape[:2] != (size, size) for one in found)
        stems = tuple(one.stem for one in found)
        return _Read(task.number, task.indices, stems, torch.from_numpy(images), resized, None)


@dataclass
class _Episode:
    """An episode on its way.

    Attributes:
        item: As the job has it.
        batches: How many are still to come.
        codes: Stem to codes, of those that came.
        checks: Stem to PNG.
        counts: As the receipt has them.
        error: Why it cannot be done.
        written: Its receipt, once it is being written.
    """

    item: Any
    batches: int = 0
    codes: dict[str, Array] = field(default_factory=dict[str, Array])
    checks: dict[str, bytes] = field(default_factory=dict[str, bytes])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    error: VlatoolError | None = None
    written: "Future[Outcome[Any, Receipt]] | None" = None


class EncodePipeline:
    """An executor whose items are episodes; what it makes of one is its receipt.

    Attributes:
        seconds: Stage to the time that the rest waited for it.
        pictures: How many went through the device.
    """

    def __init__(self, images: ImageSet, maker: CodeMaker, rule: EncodeRule) -> None:
        self._set, self._maker, self._rule = images, maker, rule
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.images = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing outlives a call of `map`."""

    @property
    def bottleneck(self) -> str:
        """The stage that the others waited for; empty where nothing was done."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.images else ""

    def one(self, item: ImageItem) -> Receipt:
        """What `map` yields of a single episode."""
        outcome = next(iter(self.map(self.one, [item])))
        if outcome.error is not None:
            raise outcome.error
        assert outcome.value is not None
        return outcome.value

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[Outcome[Any, Any]]:
        """Yields one outcome per episode, in their order."""
        del function
        coming = deque[_Episode]()
        started: dict[int, _Episode] = {}
        device = _Device(self._maker, self._rule.precision, self.seconds)
        with closing(self._read(self._tasks(items, coming, started))) as batches:
            for read in batches:
                if read.error is None:
                    device.start(read)
                else:
                    _take(started[read.number], read)
                while device.is_full:
                    self._computed(started, *device.finish())
                yield from self._finished(coming)
            while device.is_busy:
                self._computed(started, *device.finish())
        yield from self._finished(coming, is_end=True)

    def _tasks(
        self, items: Iterable[Any], coming: deque[_Episode], started: dict[int, _Episode]
    ) -> Iterator[_Task]:
        """The batches of each episode, all nearly of one size; notes what comes."""
        for number, item in enumerate(items):
            opened = attempt(self._set.open, item)
            episode = _Episode(item, error=opened.error)
            batches: list[tuple[int, ...]] = []
            if opened.value is not None:
                batches = even_batches(len(opened.value), self._rule.batch_size)
            episode.batches = len(batches)
            started[number] = episode
            coming.append(episode)
            for indices in batches:
                yield _Task(number, item, indices)

    def _read(self, tasks: Iterator[_Task]) -> Generator[_Read]:
        """Decoded batches in the order of the tasks."""
        workers = min(self._rule.num_workers, default_workers())
        on_gpu = self._maker.device.type == "cuda"
        context = _context() if workers else None
        loader = DataLoader(
            _Reading(self._set, self._maker.rule),
            batch_size=None,
            sampler=tasks,
            num_workers=workers,
            prefetch_factor=_PREFETCH if workers else None,
            pin_memory=on_gpu,
            multiprocessing_context=context,
            worker_init_fn=init_worker if workers else None,
        )
        if workers:
            start_forkserver()
        running = iter(loader)
        try:
            while True:
                with self._waiting("reading"):
                    read = next(running, None)
                if read is None:
                    return
                yield read
        except RuntimeError as error:
            raise loader_exited(error) or error from None
        finally:
            for process in getattr(running, "_workers", ()):
                process.kill()

    def _computed(self, started: Mapping[int, _Episode], read: _Read, codes: Codes) -> None:
        """Takes in the codes of a batch; draws those that are to be looked at."""
        episode = started[read.number]
        self.images += len(read.stems)
        counts = {"resized": read.resized, "encoded_alone": codes.alone}
        if self._rule.precision != "fp32":
            counts |= self._compared(read, codes)
        for name, count in counts.items():
            episode.counts[name] = episode.counts.get(name, 0) + count
        for row, index in enumerate(read.indices):
            if self._rule.check_every and index % self._rule.check_every == 0:
                with self._waiting("computing"):
                    drawn = self._maker.decode(codes.values[row : row + 1])[0]
                beside = np.concatenate([read.images[row].numpy(), drawn], axis=1)
                episode.checks[read.stems[row]] = encode_png(beside)
        _take(episode, read, codes.values)

    def _compared(self, read: _Read, codes: Codes) -> dict[str, int]:
        """How many codes of an episode's first pictures are those of fp32."""
        rows = [row for row, index in enumerate(read.indices) if index < _COMPARED]
        if not rows:
            return {}
        images = read.images[rows].to(self._maker.device).permute(0, 3, 1, 2)
        exact = self._maker.codes(images, "fp32").values
        same = exact == codes.values[rows]
        return {"compared": same.size, "agreeing": int(same.sum())}

    def _finished(
        self, coming: deque[_Episode], *, is_end: bool = False
    ) -> Iterator[Outcome[Any, Any]]:
        """Outcomes of the first episodes, as far as they are written; begins to write more."""
        for episode in coming:
            if episode.batches == 0 and episode.written is None and episode.error is None:
                episode.written = in_background(partial(attempt, self._write, episode))
        while coming and (first := coming[0]).batches == 0:
            busy = sum(one.written is not None for one in coming)
            if first.written is None:
                yield Outcome(first.item, error=first.error)
            elif is_end or busy > _WRITTEN_AT_ONCE or first.written.done():
                with self._waiting("writing"):
                    done = first.written.result()
                yield Outcome(first.item, done.value, done.error)
            else:
                return
            coming.popleft()

    def _write(self, episode: _Episode) -> Receipt:
        """Writes the codes of an episode and its checks."""
        rule, name = self._rule, str(episode.item.id)
        found = EpisodeCodes.of(name, episode.codes)
        checks = [
            write_check(rule.output, check_name(name, stem), png)
            for stem, png in episode.checks.items()
        ]
        entry = write_codes(rule.output, rule.layout, found, self._maker.digest)
        counts = {"pictures": len(found.stems), **episode.counts}
        info = {"digest": found.digest}
        return Receipt(name, counts=counts, files=(entry, *checks), facts=info)

    @contextmanager
    def _waiting(self, stage: str) -> Iterator[None]:
        with timed(self.seconds, stage):
            yield


class _Device:
    """The batches that are on the device, in their order.

    The next one is copied while the last one is computed; on a CPU there is nothing to copy.
    """

    def __init__(self, maker: CodeMaker, precision: Precision, seconds: dict[str, float]) -> None:
        self._maker, self._seconds = maker, seconds
        self._precision: Precision = precision
        self._running = deque[tuple[_Read, Tensor, Any]]()
        self._copies = torch.cuda.Stream(maker.device) if maker.device.type == "cuda" else None

    @property
    def is_busy(self) -> bool:
        """Whether a batch is there."""
        return bool(self._running)

    @property
    def is_full(self) -> bool:
        """Whether the first one has to be finished before another is started."""
        return len(self._running) >= (_ON_DEVICE if self._copies else 1)

    def start(self, read: _Read) -> None:
        """Begins to copy a batch."""
        copied: Any = None
        images = read.images
        if self._copies is not None:
            with torch.cuda.stream(self._copies):
                images = images.to(self._maker.device, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record(self._copies)
        self._running.append((read, images, copied))

    def finish(self) -> tuple[_Read, Codes]:
        """The codes of the first batch."""
        read, images, copied = self._running.popleft()
        if copied is not None:
            with timed(self._seconds, "copying"):
                copied.synchronize()
            images.record_stream(torch.cuda.current_stream(self._maker.device))
        with timed(self._seconds, "computing"):
            return read, self._maker.codes(images.permute(0, 3, 1, 2), self._precision)


def _take(episode: _Episode, read: _Read, codes: Array | None = None) -> None:
    """Enters a batch; after an error the rest of the episode is of no use."""
    episode.batches -= 1
    if episode.error is not None or codes is None:
        episode.error = episode.error or read.error
        episode.codes.clear()
        episode.checks.clear()
        return
    twins = [stem for stem in read.stems if stem in episode.codes]
    if twins or len(set(read.stems)) < len(read.stems):
        outcome = attempt(partial(check_unique_names, episode.item.path), [*read.stems, *twins])
        episode.error = outcome.error
        return
    episode.codes.update(zip(read.stems, codes.astype(np.uint16), strict=True))


def even_batches(count: int, most: int) -> list[tuple[int, ...]]:
    """The numbers below `count` in the fewest parts of at most `most`, all nearly of one length."""
    parts = -(-count // most)
    bounds = [count * part // max(parts, 1) for part in range(parts + 1)]
    return [tuple(range(*pair)) for pair in pairwise(bounds)]


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the time that the block takes."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - begun


def _context() -> Any:
    """Reading processes are forked from one that has loaded what they need."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
