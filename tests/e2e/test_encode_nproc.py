"""`encode` by several processes writes what one process writes, and reports each failure once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.encoding import encoded, image_name, image_tree, write_tokenizer
from tests.builders.images import write
from tests.builders.jobs import contents

VLATOOL = ("-m", "vlatool")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tiny")


def encode(
    program: tuple[str, ...], tree: Path, tokenizer: str, output: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    options = ["--tokenizer", tokenizer, "--num-workers", "0", "--check-every", "4", *more]
    command = [sys.executable, *program, "encode", str(tree), *options, "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow  # test_encode has worker processes
def test_two_processes_write_what_one_writes_except_a_broken_episode(
    tokenizer: str, tmp_path: Path
) -> None:
    tree = image_tree(tmp_path / "A")
    encoded(tree, tokenizer, tmp_path / "one")
    write(tree, image_name(1), b"broken")

    done = encode(VLATOOL, tree, tokenizer, tmp_path / "two", "--json", "--nproc", "2")

    assert done.returncode == 4, done.stderr
    document = json.loads(done.stdout)
    (failure,) = document["error"]["details"]["failures"]
    assert failure["episode"] == "episode_000001"
    assert (document["episodes"], document["status"]) == (2, "written")
    excluded = (".vlatool/files.jsonl", "manifest.json")
    two = {name: data for name, data in contents(tmp_path / "two").items() if name not in excluded}
    single = contents(tmp_path / "one")
    assert two == {name: data for name, data in single.items() if name in two}
    assert len({Path(name).parts[0] for name in two} - {"checks"}) == 2
