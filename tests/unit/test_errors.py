"""Requirements in the metadata of the distribution, and the hint for a missing package."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from vlatool import __version__
from vlatool.errors import SINGLE_FILE, extra_of, missing_package, requirements

ROOT = Path(__file__).parents[2]
METADATA = """\
Metadata-Version: 2.4
Name: vlatool
Version: 9
Requires-Dist: heavy-thing<3,>=2; extra == "all"
Requires-Dist: zlib-ng>=0.5
Requires-Dist: heavy-thing<3,>=2; extra == "train"
Requires-Dist: vlatool[train]; extra == "nested"
Requires-Dist: checker[s3]>=5; extra == "all"
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distribution `vlatool` that is found before the real one."""
    folder = tmp_path / "vlatool-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_each_requirement_is_listed_once_under_the_smallest_extra() -> None:
    assert requirements() == {"": ["zlib-ng"], "train": ["heavy-thing"], "all": ["checker"]}


@pytest.mark.parametrize(
    ("module", "extra"), [("zlib_ng", ""), ("heavy_thing", "train"), ("vlatool", None)]
)
def test_extra_of_a_module(module: str, extra: str | None) -> None:
    assert extra_of(module) == extra


@pytest.mark.parametrize(
    ("package", "hint"),
    [
        ("zlib_ng", "pip install vlatool"),
        ("heavy_thing", "pip install 'vlatool[train]'"),
    ],
)
def test_hint_for_a_missing_package_is_the_install_line(package: str, hint: str) -> None:
    error = missing_package(package)
    assert (error.code, error.exit_code, error.hint) == ("environment.missing_dependency", 6, hint)


def test_packages_of_a_checkout_that_is_not_installed_are_those_of_its_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    error = missing_package("torch")
    assert error.details["extra"] == "train"
    assert error.hint == f"pip install -e '{ROOT}[train]'"
    assert extra_of("numpy") == ""


def test_single_file_takes_the_packages_of_an_extra_from_another_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SINGLE_FILE, "/somewhere/vlatool")
    hint = missing_package("heavy_thing").hint
    assert f"pip install 'vlatool[train]=={__version__}'" in hint
    assert "VLATOOL_PYTHON=" in hint
