"""Items on their way through an executor: what an earlier run did is not done again."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlatool.errors import StorageError
from vlatool.jobs.inputs import InputState
from vlatool.jobs.job import Job
from vlatool.jobs.journal import Journal, Receipt, intact_receipt
from vlatool.parallel.executor import Executor, Outcome, attempt
from vlatool.storage.background import in_parallel
from vlatool.storage.uri import is_remote

_LOADED_AHEAD = 4

_CheckedInput = tuple[InputState, Receipt | None]


class Items:
    """The items of a job, its journal, and where they are worked on."""

    def __init__(self, job: Job[Any], journal: Journal, executor: Executor) -> None:
        self._spec, self._name = job.spec, job.name
        self._journal = journal
        self._executor = executor

    def outcomes(self, items: Sequence[Any]) -> Iterator[Outcome[Any, Receipt]]:
        """Outcomes with whole receipts; those of a remote journal are fetched a few at a time."""
        spec, name = self._spec, self._name
        begun = spec.has_arrays and self._journal.folder.is_dir()
        task = _Task(spec.work, spec.state, spec.plan, self._journal, spec.has_arrays, begun)
        known = {} if spec.has_arrays else self._logged_receipts()
        parts = (_WorkItem(item, name(item), known.get(name(item))) for item in items)
        if spec.is_pipelined:
            return self._pipelined(task, parts)
        outcomes = self._executor.map(task, parts)
        if not spec.has_arrays:
            return (replace(outcome, item=outcome.item.item) for outcome in outcomes)
        if is_remote(spec.output):
            return in_parallel(self._load_arrays, outcomes, _LOADED_AHEAD)
        return map(self._load_arrays, outcomes)

    def _pipelined(
        self, task: "_Task", parts: Iterator["_WorkItem"]
    ) -> Iterator[Outcome[Any, Receipt]]:
        """Receipts of what is known, here; the rest from the executor, in the order of the items.

        The items that it takes ahead are looked at here as well.
        """
        looks = deque[Outcome[_WorkItem, _CheckedInput]]()

        def unknown() -> Iterator[Any]:
            if looks:
                yield looks[0].item.item
            for part in parts:
                looks.append(attempt(task.check_input, part))
                if _is_to_do(looks[-1]):
                    yield part.item

        def settled() -> Iterator[Outcome[Any, Receipt]]:
            while looks and not _is_to_do(looks[0]):
                look = looks.popleft()
                before = look.value and look.value[1]
                yield Outcome(look.item.item, before and self.with_arrays(before), look.error)

        for part in parts:  # most of what is known comes first
            looks.append(attempt(task.check_input, part))
            if _is_to_do(looks[0]):
                break
            yield from settled()
        for outcome in self._executor.map(self._spec.work, unknown()):
            yield from settled()
            look = looks.popleft()
            assert look.value is not None
            receipt = outcome.value and task.complete(look.item, look.value[0], outcome.value)
            yield Outcome(look.item.item, receipt, outcome.error)
        yield from settled()
        assert not looks, "the executor lost an item"

    def _logged_receipts(self) -> dict[str, Receipt]:
        """Receipts of earlier runs; the last of an item counts."""
        rows = (row for row in self._journal.all_rows() if "failed" not in row)
        return {receipt.item: receipt for receipt in map(_receipt, rows) if receipt is not None}

    def _load_arrays(self, outcome: Outcome["_WorkItem", Receipt]) -> Outcome[Any, Receipt]:
        if outcome.value is None:
            return Outcome(outcome.item.item, error=outcome.error)
        try:
            return Outcome(outcome.item.item, self.with_arrays(outcome.value))
        except StorageError as error:
            return Outcome(outcome.item.item, error=error)

    def with_arrays(self, receipt: Receipt) -> Receipt:
        """The receipt with its arrays from the journal."""
        if not self._spec.has_arrays:
            return receipt
        found = self._journal.find(receipt.item, receipt.key)
        if found is None:
            raise StorageError(
                f"{self._journal.folder}: the entry of {receipt.item} is gone",
                hint="something else removed it; run the same command again",
                code="storage.output_changed",
            )
        return replace(found, resumed=receipt.resumed)


@dataclass(frozen=True)
class _WorkItem:
    """An item on its way to a worker, with what an earlier run says of it."""

    item: Any
    id: str
    known: Receipt | None


@dataclass(frozen=True)
class _Task:
    """What a worker does with an item: nothing, if an earlier run did it; picklable.

    Attributes:
        work: Does it.
        state: Looks at what it is made from.
        plan: What else shapes its bytes.
        journal: Where receipts are.
        is_stored: Whether they are files of their own.
        is_begun: Whether an earlier run left such files.
    """

    work: Callable[[Any], Receipt]
    state: Callable[[Any], InputState]
    plan: str
    journal: Journal
    is_stored: bool
    has_stored: bool

    def __call__(self, part: _WorkItem) -> Receipt:
        """The receipt without its bulk, which is in the journal: answers stay small."""
        state, before = self.check_input(part)
        return before or self.complete(part, state, self.work(part.item)).without_arrays()

    def check_input(self, part: _WorkItem) -> "_CheckedInput":
        """The input as it is, and what an earlier run did from the same, if it is still there."""
        state = self.state(part.item)
        return state, self._earlier_receipt(part, state)

    def _earlier_receipt(self, part: _WorkItem, state: InputState) -> Receipt | None:
        key = f"{self.plan} {state.digest}"
        known = self.journal.find(part.id, key) if self.has_stored else part.known
        if known is None or known.key != key:
            return None
        found = intact_receipt(self.journal.output, known)
        return found and replace(found.without_arrays(), resumed=True)

    def complete(self, part: _WorkItem, state: InputState, receipt: Receipt) -> Receipt:
        """The receipt with what it was made from; in the journal if it has arrays."""
        key = f"{self.plan} {state.digest}"
        receipt = replace(
            receipt, item=part.id, key=key, sizes=state.sizes, changed_ns=state.changed_ns
        )
        if self.is_stored:
            self.journal.store(receipt)
        else:
            json.dumps(receipt.row())  # what cannot be entered is this item's fault
        return receipt


def _is_to_do(look: Outcome[_WorkItem, _CheckedInput]) -> bool:
    """Whether an item is to be worked on."""
    return look.value is not None and look.value[1] is None


def _receipt(row: dict[str, Any]) -> Receipt | None:
    try:
        return Receipt.of(row)
    except ValueError:
        return None
