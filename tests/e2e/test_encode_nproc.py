"""`encode --nproc 2` writes what one process writes."""

import json
import subprocess
import sys
from pathlib import Path

from tests.builders.encoding import encoded, picture_name, picture_tree, write_tokenizer
from tests.builders.jobs import contents
from tests.builders.pictures import write


def test_two_processes_write_what_one_writes_but_a_broken_episode(tmp_path: Path) -> None:
    tokenizer, tree = write_tokenizer(tmp_path / "tiny"), picture_tree(tmp_path / "A")
    encoded(tree, tokenizer, tmp_path / "one")
    write(tree, picture_name(1), b"broken")
    options = ["--tokenizer", tokenizer, "--num-workers", "0", "--check-every", "4"]
    command = ["encode", str(tree), *options, "--output", str(tmp_path / "two"), "--nproc", "2"]

    done = subprocess.run(
        [sys.executable, "-m", "vlatool", "--json", *command], capture_output=True, text=True
    )

    assert done.returncode == 4, done.stderr
    (failure,) = json.loads(done.stdout)["error"]["details"]["failures"]
    assert failure["episode"] == "episode_000001"
    lists = (".vlatool/files.jsonl", "manifest.json")
    two = {name: data for name, data in contents(tmp_path / "two").items() if name not in lists}
    one = contents(tmp_path / "one")
    assert two == {name: data for name, data in one.items() if name in two}
    assert len({Path(name).parts[0] for name in two} - {"checks"}) == 2
