"""Writes the file for Ray's cluster launcher from a template."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import StringConstraints

from vlatool import __version__
from vlatool.config.base import ConfigModel, option
from vlatool.credentials import without_credentials
from vlatool.errors import EnvironmentProblem, UsageError

_PLACEHOLDER = re.compile(r"[\w-]*PLACEHOLDER[\w-]*")
# A value of AWS in the file, without characters that YAML or a shell would interpret.
Name = Annotated[str, StringConstraints(pattern=r"^[\w+=,.@-]+$")]


class RayClusterConfig(ConfigModel):
    """The file of a new Ray cluster on AWS, and the values of your account in it."""

    cluster: str = option(
        "ray-cluster.yaml", "File for `ray up`: vlatool writes it, or you give your own."
    )
    image: Name | None = option(None, "Machine image, such as ami-0abc.")
    key_pair: Name | None = option(None, "Key pair for SSH; its file is ~/.ssh/NAME.pem.")
    subnet: Name | None = option(None, "Subnet of all nodes.")
    security_group: Name | None = option(None, "Security group of all nodes.")
    account: Annotated[str, StringConstraints(pattern=r"^\d{12}$")] | None = option(
        None, "Number of the AWS account."
    )
    head_profile: Name | None = option(
        None, "Instance profile of the head, which starts the workers."
    )
    worker_profile: Name | None = option(
        None, "Instance profile of the workers, which use your bucket."
    )

    def placeholders(self) -> dict[str, str]:
        """Placeholders of the template to the keys with their values."""
        return {
            "ami-PLACEHOLDER": "image",
            "PLACEHOLDER-KEY-PAIR": "key_pair",
            "subnet-PLACEHOLDER": "subnet",
            "sg-PLACEHOLDER": "security_group",
            "PLACEHOLDER-ACCOUNT": "account",
            "PLACEHOLDER-HEAD-PROFILE": "head_profile",
            "PLACEHOLDER-WORKER-PROFILE": "worker_profile",
        }


def template() -> str:
    """The template, with placeholders for the values of your account."""
    return files("vlatool.launching").joinpath("ray_cluster.yaml").read_text(encoding="utf-8")


def with_program(text: str, folder: Path) -> str:
    """The template, which installs on every node what is installed here: a version of the index, a
    commit of Git, or a wheel. For a local folder, the wheel has to be built in `folder`. pip
    records where a package came from (PEP 610).
    """
    origin = _origin()
    url = str(origin.get("url", ""))
    source = _local_source(origin)
    if source is not None:
        is_wheel = source.suffix == ".whl"
        wheel = source if is_wheel else folder / f"vlatool-{__version__}-py3-none-any.whl"
        path = f"$HOME/{wheel.name}"
        again = f'  - ~/vlatool-env/bin/pip install --force-reinstall --no-deps "{path}"'
        text = text.replace("file_mounts: {}", f"file_mounts:\n  ~/{wheel.name}: {wheel}")
        return text.replace("'vlatool[ray]'", f'"{path}[ray]"\n{again}')
    requirement = f"vlatool[ray]=={__version__}"
    if "vcs_info" in origin:
        requirement = f"vlatool[ray] @ git+{url}@{origin['vcs_info']['commit_id']}"
    elif url:
        requirement = f"vlatool[ray] @ {url}"
    if without_credentials(requirement) != requirement:
        raise UsageError(
            f"vlatool was installed from {without_credentials(url)}, an address with a secret",
            hint="install vlatool from a folder or a wheel",
            code="usage.secret",
        )
    return text.replace("'vlatool[ray]'", f"'{requirement}'")


def _origin() -> Mapping[str, Any]:
    with suppress(PackageNotFoundError):  # of the program in one file
        return json.loads(distribution("vlatool").read_text("direct_url.json") or "{}")
    return {}


def _local_source(origin: Mapping[str, Any]) -> Path | None:
    """Local folder or wheel from which vlatool was installed."""
    url = urlsplit(str(origin.get("url", "")))
    return Path(unquote(url.path)) if url.scheme == "file" and "vcs_info" not in origin else None


def build_wheel(folder: Path, text: str) -> None:
    """Builds the wheel in `folder` that a cluster file mounts, if it mounts one."""
    source = _local_source(_origin())
    if source is None or source.suffix == ".whl" or f": {folder}/vlatool-" not in text:
        return
    words = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    ended = subprocess.run(  # noqa: S603 - pip with arguments that are no shell text
        [sys.executable, "-m", "pip", *words], capture_output=True, check=False
    )
    if ended.returncode:
        reason = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise EnvironmentProblem(
            f"no wheel of vlatool could be built from {source}: {reason}",
            hint="install vlatool from a wheel or from Git, or write the line that installs "
            "it yourself",
            code="environment.missing_dependency",
            details={"path": str(source)},
        )


def filled(text: str, config: RayClusterConfig) -> str:
    """A cluster file with the values of the configuration in place of its placeholders."""
    for placeholder, key in config.placeholders().items():
        value = getattr(config, key)
        if value is None:
            continue
        text = text.replace(placeholder, value)
        if value not in text:
            raise UsageError(
                f"{config.cluster} has another value than --ray.{key.replace('_', '-')} {value}",
                hint="change the file and leave the option out, or remove the file",
                code="usage.bad_value",
                details={"key": f"ray.{key}", "path": config.cluster},
            )
    return text


def left_placeholders(text: str) -> dict[int, list[str]]:
    """Placeholders of a cluster file outside comments, by line number from 1."""
    lines = enumerate(text.splitlines(), start=1)
    words = (
        (number, _PLACEHOLDER.findall(re.sub(r"(^|\s)#.*", "", line))) for number, line in lines
    )
    return {number: names for number, names in words if names}


def placeholder_error(config: RayClusterConfig, left: Mapping[int, list[str]]) -> UsageError:
    """Error for a cluster file with placeholders: each with its lines and its option."""
    by_name: dict[str, list[int]] = {}
    for number, names in left.items():
        for name in names:
            by_name.setdefault(name, []).append(number)
    keys = config.placeholders()
    known = {name: key for name in by_name for part, key in keys.items() if part in name}
    rows = [f"{name} (line {', '.join(map(str, lines))})" for name, lines in by_name.items()]
    options = [f"--ray.{key.replace('_', '-')}" for key in dict.fromkeys(known.values())]
    return UsageError(
        f"{config.cluster}: placeholders have to be replaced: {'; '.join(rows)}",
        hint=f"replace them in the file, or run the same command again with {' '.join(options)}"
        if options
        else "replace them in the file",
        code="usage.bad_value",
        details={"path": config.cluster, "placeholders": by_name},
    )
