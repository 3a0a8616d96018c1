"""Validation data that are trained on, too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.builders.recording import Recorder
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.training.data import report_shared


def info(*shards: ShardInfo) -> Any:
    return SimpleNamespace(datasets=[DataSet("set", shards)])


def warning(training: Any, validation: Any) -> str:
    reporter = Recorder()
    report_shared(training, validation, reporter)
    return dict(reporter.warnings).get("data.validation_is_trained_on", "")


def test_samples_of_a_copied_folder_are_known_by_their_digest() -> None:
    training = info(ShardInfo(Path("a/1.tar"), 5, "one"), ShardInfo(Path("a/2.tar"), 7, "two"))
    copied = info(ShardInfo(Path("b/1.tar"), 7, "two"), ShardInfo(Path("b/2.tar"), 3, "three"))
    assert warning(training, copied).startswith("7 of 10 validation samples are also training data")


def test_files_without_a_digest_are_known_by_their_place() -> None:
    training = info(ShardInfo(Path("a/1.tar"), 5))
    assert warning(training, info(ShardInfo(Path("a/1.tar"), 5))).startswith("5 of 5")
    assert warning(training, info(ShardInfo(Path("b/1.tar"), 5))) == ""
