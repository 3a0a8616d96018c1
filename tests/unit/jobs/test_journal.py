"""Receipts and the journal that stores them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.builders.shards import npz_with_header
from vlatool.findings import Finding
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Journal, Receipt, remove_journal
from vlatool.storage.append_log import AppendLog

RECEIPT = Receipt(
    "episode_1",
    key="plan input",
    counts={"frames": 3, "samples": 2},
    dropped={"padding": 1},
    files=(FileEntry("a.tar", 9, "ab" * 32, samples=2), FileEntry("b/", 3, "cd" * 32, count=4)),
    findings=(Finding("world.odd", "warning", "It is odd.", {"frame": 2}, "look at it"),),
    facts={"success": True, "names": ["x"]},
    sizes="ef",
    changed_ns=12,
)
ARRAYS = {"ranges": np.arange(6).reshape(3, 2), "words": np.array(["a", "bc"]), "no": np.zeros(0)}


def test_row_of_a_receipt_survives_a_log_and_items_are_counted_once(tmp_path: Path) -> None:
    assert Receipt.of(RECEIPT.row()) == RECEIPT
    journal = Journal(tmp_path)
    for file in (journal.log, journal.log.with_name("items.1.jsonl")):  # the second of 0.3
        with AppendLog(file) as log:
            log.append(RECEIPT.row())
            log.append({"item": "episode_2", "failed": {}})

    assert [*journal.logged().values()] == [RECEIPT]
    assert journal.count([RECEIPT.item]) == 1


@pytest.mark.parametrize("key", RECEIPT.row())
def test_row_without_a_key_is_not_a_receipt(key: str) -> None:
    row = {name: value for name, value in RECEIPT.row().items() if name != key}

    with pytest.raises(ValueError, match="not a receipt"):
        Receipt.of(row)


def test_receipt_with_arrays_is_read_from_its_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.store(replace(RECEIPT, arrays=ARRAYS))

    receipt = journal.find(RECEIPT.item, RECEIPT.key)

    assert receipt is not None
    assert receipt.without_arrays() == RECEIPT
    assert {name: values.dtype for name, values in receipt.arrays.items()} == {
        name: values.dtype for name, values in ARRAYS.items()
    }
    assert all(np.array_equal(receipt.arrays[name], ARRAYS[name]) for name in ARRAYS)


def test_arrays_are_stored_compressed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.store(replace(RECEIPT, arrays={"counts": np.ones(100_000)}))
    [entry] = journal.folder.iterdir()
    assert entry.stat().st_size < 10_000


@pytest.mark.parametrize("header", ["{'shape': (3,", "{'shape': '''", "\0", "1"])
def test_torn_file_is_not_a_receipt(header: str, tmp_path: Path) -> None:
    """Parsers of numpy and Python raise `tokenize.TokenError` and other errors for these."""
    journal = Journal(tmp_path)
    journal.store(RECEIPT)
    [entry] = journal.folder.iterdir()
    entry.write_bytes(npz_with_header("__receipt__", header))

    assert journal.find(RECEIPT.item, RECEIPT.key) is None
    assert not journal.holds_work()


def test_receipt_of_another_plan_or_kind_or_of_a_removed_journal_is_not_found(
    tmp_path: Path,
) -> None:
    Journal(tmp_path, "shards").store(RECEIPT)
    assert Journal(tmp_path).find(RECEIPT.item, RECEIPT.key) is None
    Journal(tmp_path).store(RECEIPT)
    assert Journal(tmp_path).find(RECEIPT.item, "another plan") is None
    remove_journal(tmp_path)
    assert (Journal(tmp_path).count([RECEIPT.item]), Journal(tmp_path).holds_work()) == (0, False)
