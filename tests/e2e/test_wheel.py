"""The source distribution and the wheel built from it: whole, and working when installed."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from vlatool import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)  # from the other one
    return next(folder.glob("*.whl"))


def test_wheel_has_every_preset_the_page_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    presets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "presets").rglob("*.yaml")}
    assert presets
    assert {f"vlatool/{name}" for name in presets} <= names
    assert {"vlatool/py.typed", "vlatool/report/page.html"} <= names
    assert "vlatool/datasets/samples/profiles/libero.yaml" in names


def test_wheel_works_in_an_empty_environment(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it may name this checkout
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    programs = tmp_path / "env/bin"
    subprocess.run(
        [programs / "pip", "install", "--quiet", "--no-index", "--no-deps", wheel], check=True
    )
    (packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    line = [programs / "python", "-c", "import vlatool; print(vlatool.__file__)"]
    done = subprocess.run(line, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith(str(packages))
    line = [programs / "vlatool", "resolve-config", "-p", "world-pick"]
    done = subprocess.run(line, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "type: diffusion_policy" in done.stdout


def test_the_client_package_needs_neither_the_main_package_nor_a_new_python(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "wheel"]
    subprocess.run([*command, str(ROOT / "clients/python")], check=True, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    for name in names:
        ast.parse(zipfile.ZipFile(wheel).read(name), name, feature_version=(3, 8))
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys, vlatool_client\n"
        "known = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not known & {'vlatool', 'torch', 'pydantic'}, known\n"
        "try: vlatool_client.connect('ws://127.0.0.1:9')\n"
        "except vlatool_client.EnvironmentProblem as error: print(error.code)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "environment.server_unreachable"


def test_changelog_and_citation_have_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in (__version__, "Unreleased")
