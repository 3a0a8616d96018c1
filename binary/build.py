"""Builds the single file `dist/vlatool`, which needs no Python: PyInstaller's folder in a stub.

PyInstaller makes a folder of the interpreter, vlatool and the packages of its light core, in the
versions that are installed here. The file is the program `stub.c`, then an archive of what starts
the interpreter, then a compressed archive of all the rest. The stub unpacks the first and starts
it (`program.py`), which unpacks the second.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import zstandard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "dist" / "vlatool"
EXTRAS = {"hdf5", "zarr", "mcap", "gcs"}  # whose packages are in the file
LEVEL = 15
WINDOW_LOG = 27  # 128 MiB, the most that a decompressor takes unasked
# Packages whose modules are imported by names that PyInstaller does not see.
COLLECTED = {"boto3", "botocore", "google.auth", "huggingface_hub", "mcap", "numcodecs", "rosbags"}
COLLECTED |= {"s3transfer", "vlatool", "zarr"}
HIDDEN = {"h5py", "lz4.frame", "urllib3", "zstandard", "google.oauth2.service_account"}
# Services of AWS that vlatool talks to; the descriptions of all others take 25 MB.
SERVICES = {"s3", "sts", "sso", "sso-oidc", "signin", "sagemaker", "ecr", "secretsmanager", "logs"}
UNUSED_MODULES = ("zstandard._cffi", "numpy.f2py", "pydantic.v1", "scipy.stats", "scipy.optimize")
UNUSED_MODULES += ("scipy.integrate", "scipy.interpolate", "scipy.ndimage", "scipy.signal")
# Parts of Arrow that nothing here imports.
UNUSED = ("libarrow_flight", "libarrow_python_flight", "_flight", "libarrow_s3", "_s3fs")


def build(target: Path) -> None:
    """Writes the single file.

    Raises:
        PackageNotFoundError: A package of the light core is not installed.
    """
    with TemporaryDirectory() as temporary:
        folder = _frozen(Path(temporary))
        _trim(folder)
        first, rest = _parts(folder)
        payload = io.BytesIO()
        _archive(payload, folder, first)
        first_size = payload.tell()
        settings = zstandard.ZstdCompressionParameters.from_level(
            LEVEL, window_log=WINDOW_LOG, threads=-1
        )
        compressor = zstandard.ZstdCompressor(compression_params=settings)
        with compressor.stream_writer(payload, closefd=False) as compressed:
            _archive(compressed, folder, rest)
        content = payload.getvalue()
        unpacked = sum((folder / name).lstat().st_size for name in [*first, *rest])
        digest = hashlib.sha256(content).hexdigest()[:16]
        stub = _stub(Path(temporary), digest, first_size, len(content), unpacked)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.tmp")
    partial.write_bytes(stub + content)
    partial.chmod(0o755)
    partial.replace(target)


def _frozen(temporary: Path) -> Path:
    """Runs PyInstaller; returns its folder."""
    packages = {"vlatool", *(canonicalize_name(p.name) for p in _requirements("vlatool"))}
    options = ["--noconfirm", "--onedir", "--name", "vlatool", "--log-level", "ERROR"]
    options += ["--paths", str(ROOT / "src"), "--collect-data", "vlatool"]
    options += ["--add-data", f"{ROOT / 'presets'}:vlatool/presets"]
    for name in sorted(packages):  # `doctor` reads which packages are there
        options += ["--copy-metadata", name]
    for name in sorted(COLLECTED):
        options += ["--collect-submodules", name]
    for name in sorted(HIDDEN):
        options += ["--hidden-import", name]
    for name in UNUSED_MODULES:
        options += ["--exclude-module", name]
    for name, distributions in packages_distributions().items():
        if packages.isdisjoint(map(canonicalize_name, distributions)):
            options += ["--exclude-module", name]
    for name in ("distpath", "workpath", "specpath"):
        options += [f"--{name}", str(temporary / name)]
    program = str(ROOT / "binary" / "program.py")
    subprocess.run([sys.executable, "-m", "PyInstaller", *options, program], check=True)
    return temporary / "distpath" / "vlatool"


def _requirements(name: str) -> list[Distribution]:
    """Installed distributions that one needs, directly or not."""
    packages: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [*_direct(distribution(name), EXTRAS)]
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


def _trim(folder: Path) -> None:
    """Removes what no command uses, and symbols that only debuggers read."""
    internal = folder / "_internal"
    for service in (internal / "botocore" / "data").iterdir():
        if service.is_dir() and service.name not in SERVICES:
            shutil.rmtree(service)
    for file in (internal / "pyarrow").iterdir():
        if file.name in ("include", "tests", "src"):
            shutil.rmtree(file)
        elif file.name.startswith(UNUSED):
            file.unlink()
    for library in internal.rglob("*"):
        is_library = ".so" in library.suffixes and not library.is_symlink()
        # Libraries in these folders were moved there by tools after which `strip` breaks them.
        if is_library and not library.parent.name.endswith(".libs"):
            subprocess.run(["strip", "--strip-debug", library], check=True)


def _parts(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files that start the interpreter, and of all others."""
    first: list[str] = []
    rest: list[str] = []
    starting = ("vlatool", "_internal/base_library.zip", "_internal/libpython")
    starting = (*starting, "_internal/python3", "_internal/zstandard", "_internal/libz.")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        (first if name.startswith(starting) else rest).append(name)
    return first, rest


def _archive(file: Any, folder: Path, names: Sequence[str]) -> None:
    """Writes files and links as a tar that `stub.c` reads: plain headers, no long names."""
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            entry = archive.gettarinfo(folder / name, name)
            entry.uid = 0
            entry.gid = 0
            entry.uname = ""
            entry.gname = ""
            entry.mtime = 0
            if entry.isreg():
                with (folder / name).open("rb") as content:
                    archive.addfile(entry, content)
            else:
                archive.addfile(entry)


def _stub(folder: Path, digest: str, first: int, size: int, unpacked: int) -> bytes:
    """The compiled program, which knows the digest and the sizes of what follows it."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC").split()[0]
    source = ROOT / "binary" / "stub.c"
    program = folder / "stub"
    values = {"DIGEST": f'"{digest}"', "FIRST": first, "SIZE": size, "UNPACKED": unpacked}
    defined = [f"-D{name}={value}" for name, value in values.items()]
    command = [compiler, "-O2", "-static", "-s", *defined, "-o", program, source]
    subprocess.run(command, check=True)
    return program.read_bytes()


if __name__ == "__main__":
    build(TARGET)
