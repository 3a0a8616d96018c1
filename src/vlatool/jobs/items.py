"""Execution of items: those that an earlier run finished are not processed again."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlatool.errors import StorageError
from vlatool.jobs.executor import Executor, Outcome, attempt
from vlatool.jobs.inputs import InputState
from vlatool.jobs.job import Job
from vlatool.jobs.journal import Journal, Receipt, intact_receipt
from vlatool.storage.background import in_parallel
from vlatool.storage.uri import is_remote

_LOADED_AHEAD = 4

_CheckedInput = tuple[InputState, Receipt | None]


class Items:
    """Runner of the items of a job, with its journal and executor."""

    def __init__(self, job: Job[Any], journal: Journal, executor: Executor) -> None:
        self._spec, self._name = job.spec, job.name
        self._journal = journal
        self._executor = executor

    def outcomes(self, items: Sequence[Any]) -> Iterator[Outcome[Any, Receipt]]:
        """Outcomes with complete receipts; arrays of a remote journal are prefetched."""
        spec, name = self._spec, self._name
        has_stored = spec.has_arrays and self._journal.folder.is_dir()
        task = _Task(spec.work, spec.state, spec.plan, self._journal, spec.has_arrays, has_stored)
        logged = {} if spec.has_arrays else self._journal.logged()
        work_items = (_WorkItem(item, name(item), logged.get(name(item))) for item in items)
        if spec.is_pipelined:
            return self._pipelined(task, work_items)
        outcomes = self._executor.map(task, work_items)
        if not spec.has_arrays:
            return (replace(outcome, item=outcome.item.item) for outcome in outcomes)
        if is_remote(spec.output):
            return in_parallel(self._load_arrays, outcomes, _LOADED_AHEAD)
        return map(self._load_arrays, outcomes)

    def _pipelined(
        self, task: "_Task", work_items: Iterator["_WorkItem"]
    ) -> Iterator[Outcome[Any, Receipt]]:
        """Earlier receipts from here and new ones from the executor, in the order of the items.

        Inputs are checked in this process, also those of the items that the executor prefetches.
        """
        checked = deque[Outcome[_WorkItem, _CheckedInput]]()

        def to_do() -> Iterator[Any]:
            if checked:
                yield checked[0].item.item
            for work_item in work_items:
                checked.append(attempt(task.check_input, work_item))
                if _is_to_do(checked[-1]):
                    yield work_item.item

        def done() -> Iterator[Outcome[Any, Receipt]]:
            while checked and not _is_to_do(checked[0]):
                check = checked.popleft()
                receipt = check.value and check.value[1]
                yield Outcome(check.item.item, receipt and self.with_arrays(receipt), check.error)

        for work_item in work_items:  # most of the finished items come first
            checked.append(attempt(task.check_input, work_item))
            if _is_to_do(checked[0]):
                break
            yield from done()
        for outcome in self._executor.map(self._spec.work, to_do()):
            yield from done()
            check = checked.popleft()
            assert check.value is not None
            receipt = outcome.value and task.complete(check.item, check.value[0], outcome.value)
            yield Outcome(check.item.item, receipt, outcome.error)
        yield from done()
        assert not checked, "the executor lost an item"

    def _load_arrays(self, outcome: Outcome["_WorkItem", Receipt]) -> Outcome[Any, Receipt]:
        if outcome.value is None:
            return Outcome(outcome.item.item, error=outcome.error)
        try:
            return Outcome(outcome.item.item, self.with_arrays(outcome.value))
        except StorageError as error:
            return Outcome(outcome.item.item, error=error)

    def with_arrays(self, receipt: Receipt) -> Receipt:
        """Receipt with its arrays from the journal."""
        if not self._spec.has_arrays:
            return receipt
        stored = self._journal.find(receipt.item, receipt.key)
        if stored is None:
            raise StorageError(
                f"{self._journal.folder}: the receipt of {receipt.item} is missing",
                hint="another program removed it; run the same command again",
                code="storage.output_changed",
            )
        return replace(stored, resumed=receipt.resumed)


@dataclass(frozen=True)
class _WorkItem:
    """Item, its name, and the logged receipt of an earlier run."""

    item: Any
    name: str
    logged: Receipt | None


@dataclass(frozen=True)
class _Task:
    """Function that a worker calls with an item; skips finished items. Picklable."""

    work: Callable[[Any], Receipt]  # `JobSpec.work`
    state: Callable[[Any], InputState]  # `JobSpec.state`
    plan: str  # `JobSpec.plan`
    journal: Journal  # journal of the output
    has_arrays: bool  # receipts are files of their own
    has_stored: bool  # an earlier run left such files

    def __call__(self, item: _WorkItem) -> Receipt:
        """Receipt of an item, without the arrays, which are in the journal."""
        state, earlier = self.check_input(item)
        return earlier or self.complete(item, state, self.work(item.item)).without_arrays()

    def check_input(self, item: _WorkItem) -> "_CheckedInput":
        """State of the input, and the receipt of an earlier run if it is still valid."""
        state = self.state(item.item)
        return state, self._earlier_receipt(item, state)

    def _earlier_receipt(self, item: _WorkItem, state: InputState) -> Receipt | None:
        key = f"{self.plan} {state.digest}"
        earlier = self.journal.find(item.name, key) if self.has_stored else item.logged
        if earlier is None or earlier.key != key:
            return None
        receipt = intact_receipt(self.journal.output, earlier)
        return receipt and replace(receipt.without_arrays(), resumed=True)

    def complete(self, item: _WorkItem, state: InputState, receipt: Receipt) -> Receipt:
        """Receipt with name and key; stored in the journal if it has arrays."""
        key = f"{self.plan} {state.digest}"
        receipt = replace(
            receipt, item=item.name, key=key, sizes=state.sizes, changed_ns=state.changed_ns
        )
        if self.has_arrays:
            self.journal.store(receipt)
        else:
            json.dumps(receipt.row())  # a receipt that is not JSON fails its own item
        return receipt


def _is_to_do(check: Outcome[_WorkItem, _CheckedInput]) -> bool:
    """True if an item has no receipt of an earlier run."""
    return check.value is not None and check.value[1] is None
