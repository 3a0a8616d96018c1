"""Builds the single file `dist/vlatool`: vlatool with the packages of its light core.

The packages are those installed beside the interpreter that runs this script, in the versions that
the tests have used; no network is needed. `start.py` is the entry point of the file.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import Distribution, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from shiv import __version__ as shiv_version
from shiv.bootstrap.environment import Environment
from shiv.builder import create_archive
from shiv.constants import BUILD_AT_TIMESTAMP_FORMAT

from binary import start

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "dist" / "vlatool"
# A folder of these names is needed to compile or test a package, not to run it.
_LEFT_OUT = {"include", "tests", "__pycache__"}


def build(target: Path) -> None:
    """Writes the single file.

    Raises:
        PackageNotFoundError: A package of the light core is not installed.
    """
    with TemporaryDirectory() as folder:
        packages = Path(folder)
        _install_vlatool(packages)
        for package in _requirements("vlatool"):
            _copy(package, packages)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.tmp")
        _write(temporary, packages, _facts(packages))
        temporary.replace(target)


def _facts(packages: Path) -> dict[str, str | int]:
    """What `start.py` knows of the file: its packages, and the interpreter that they fit."""
    files = sorted(path for path in packages.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(packages)}\n".encode() + path.read_bytes())
    suffix, machine = start.interpreter()
    version = ".".join(platform.python_version_tuple()[:2])
    return {
        "id": digest.hexdigest()[:16],
        "megabytes": sum(path.stat().st_size for path in files) // 1_000_000 + 1,
        "suffix": suffix,
        "machine": machine,
        "name": f"{platform.python_implementation()} {version} on {machine}",
        "command": f"python{version}",
    }


def _write(target: Path, packages: Path, facts: Mapping[str, str | int]) -> None:
    environment = Environment(
        built_at=datetime.now(UTC).strftime(BUILD_AT_TIMESTAMP_FORMAT),
        shiv_version=shiv_version,
        build_id=facts["id"],
        compile_pyc=False,  # takes half a minute; Python compiles the modules that are imported
        entry_point="vlatool.__main__:main",
        extend_pythonpath=True,
    )
    create_archive([packages], target, "/usr/bin/env python3", "_start:main", environment)
    with zipfile.ZipFile(target, "a") as archive:
        archive.write(Path(start.__file__), "_start.py")
        archive.writestr("_built.py", f"BUILT = {facts!r}\n")


def _install_vlatool(folder: Path) -> None:
    """Installs this checkout, which may be an editable installation, without its requirements."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-compile", "--target", folder]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, ROOT], check=True)


def _requirements(name: str) -> list[Distribution]:
    """Installed distributions that one needs, directly or not."""
    packages: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [*_direct(distribution(name), set())]
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name), ",".join(sorted(requirement.extras))
        if key not in seen:
            seen.add(key)
            packages[key[0]] = package = distribution(requirement.name)
            waiting += _direct(package, requirement.extras)
    return [*packages.values()]


def _direct(package: Distribution, extras: set[str]) -> Iterator[Requirement]:
    """Requirements of a distribution with some of its extras, on this platform."""
    for line in package.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": name}) for name in ("", *extras)):
            yield requirement


def _copy(package: Distribution, folder: Path) -> None:
    """Copies the files of an installed distribution; programs are outside its folder."""
    for file in package.files or ():
        if _LEFT_OUT.isdisjoint(file.parts) and ".." not in file.parts:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(package.locate_file(file), target)


if __name__ == "__main__":
    build(TARGET)
