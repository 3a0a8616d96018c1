"""The Makefile, with a Python that cannot make environments."""

import re
import subprocess
import tomllib
from pathlib import Path

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def test_environment_of_the_demo_has_all_extras_but_ray() -> None:
    project = tomllib.loads((MAKEFILE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]["all"][0].removeprefix("vlatool[").rstrip("]")
    installed = re.search(r"--editable '\.\[([a-z0-9,]+)\]'\n\ttouch \$@\n", MAKEFILE.read_text())
    assert installed is not None
    assert {*installed[1].split(","), "ray"} == {*extras.split(",")}
    assert "an environment with all but Ray" in (MAKEFILE.parent / "README.md").read_text()


def test_environment_that_could_not_be_made_is_removed(tmp_path: Path) -> None:
    # As Debian's Python without the package python3-venv does.
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n[ $1 = -c ] && exit\nmkdir -p .venv/bin\ntouch .venv/bin/python\nexit 1\n"
    )
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()

    command = ["make", "-f", str(MAKEFILE), "install", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode != 0
    assert not (tmp_path / ".venv").exists()
