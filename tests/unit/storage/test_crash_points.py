import os
import signal
from pathlib import Path

import pytest

from vlatool.storage.atomic import remove_tree, write_text
from vlatool.storage.crash_points import VARIABLE


def recorded_points(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv(VARIABLE, str(folder / "steps"))
    write_text(folder / "out/file_17", "abcd")
    return (folder / "steps").read_text().splitlines()


def killed_at(step: int, folder: Path) -> int:
    """Exit code of a fork that writes a file and kills itself at crash point `step`."""
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = str(step)
        write_text(folder / "out/file_17", "abcd")
        remove_tree(folder / "tree")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_crash_points_of_a_file_are_recorded_in_order_without_numbers_in_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = recorded_points(tmp_path, monkeypatch)
    kinds = [line.split()[:2] for line in points]

    assert kinds == [
        ["create", "before"],
        ["create", "after"],
        ["write", "before"],
        ["write", "inside"],
        ["write", "after"],
        ["sync", "before"],
        ["sync", "after"],
        ["rename", "before"],
        ["rename", "after"],
        ["sync", "before"],
        ["sync", "after"],
    ]

    assert "rename after out/file_#" in points


@pytest.mark.parametrize(("step", "left"), [(3, b""), (4, b"ab"), (5, b"abcd")])
def test_process_ends_before_inside_or_after_a_write(
    tmp_path: Path, step: int, left: bytes
) -> None:
    assert killed_at(step, tmp_path) == -signal.SIGKILL
    (partial,) = (tmp_path / "out").iterdir()
    assert partial.read_bytes() == left


def test_process_ends_while_a_tree_is_half_removed(tmp_path: Path) -> None:
    for name in "abcd":
        write_text(tmp_path / "tree" / name, name)

    assert killed_at(13, tmp_path) == -signal.SIGKILL
    assert len(list((tmp_path / "tree").iterdir())) == 2
