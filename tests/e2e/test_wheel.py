"""The built wheel: it contains the presets and finds them when installed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_has_every_preset_the_page_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    presets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "presets").rglob("*.yaml")}
    assert presets
    assert {f"vlatool/{name}" for name in presets} <= names
    assert {"vlatool/py.typed", "vlatool/pages/page.html"} <= names
    assert "vlatool/artifacts/profiles/libero.yaml" in names


def test_installed_wheel_resolves_a_preset(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import vlatool, sys; assert vlatool.__file__.startswith(sys.argv.pop(1)); "
        "from vlatool.cli.app import main; main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path), "resolve-config", "-p", "world-pick"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert "type: diffusion_policy" in done.stdout
