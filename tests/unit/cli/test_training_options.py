"""Sugar of training commands: data folders and the run folder."""

import pytest

from vlatool.cli.training_options import expand_data, expand_run
from vlatool.errors import UsageError


def test_data_folders_are_a_key_that_the_kind_of_data_names() -> None:
    """Nothing is opened: the kind looks inside when it reads facts."""
    assert expand_data(["no/such/folder", "s3://bucket/data/"]) == {
        "data.folders": ["no/such/folder", "s3://bucket/data/"]
    }


@pytest.mark.parametrize(
    ("text", "save_path", "name"),
    [("runs/first", "runs", "first"), ("first", ".", "first"), ("/a/b/c/", "/a/b", "c")],
)
def test_run_folder_is_parent_and_name(text: str, save_path: str, name: str) -> None:
    assert expand_run([text]) == {"save_path": save_path, "name": name}


def test_run_folder_needs_a_name() -> None:
    with pytest.raises(UsageError):
        expand_run(["/"])
