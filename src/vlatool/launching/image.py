"""Container image of a training job: its files, its build, its address in the registry.

The tag is a digest of the files, so a job that waits for machines never runs newer code.
"""

import base64
import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from vlatool.config.presets import builtin_root
from vlatool.errors import EnvironmentProblem, UsageError
from vlatool.events import Reporter
from vlatool.launching.aws_account import Account
from vlatool.storage.atomic import atomic_folder
from vlatool.storage.cache import default_cache_folder

REPOSITORY = "vlatool"
_BASE_REGISTRY = "763104351884"  # account of the images that AWS publishes
_EXTRAS = ("train", "hub", "tensorboard", "wandb")
_DOCKERFILE = "Dockerfile"
_MISSING = {"ImageNotFoundException", "RepositoryNotFoundException"}
_STDERR = 2


def ensure_image(account: Account, reporter: Reporter) -> str:
    """Address of the image of this version of vlatool; builds and pushes it if it is not there."""
    files = dict(_files())
    tag = _digest(files)
    number = account.call("sts", "get_caller_identity")["Account"]
    registry = _registry(number, account.region)
    image = f"{registry}/{REPOSITORY}:{tag}"
    if _is_there(account, tag):
        return image
    folder = _written(files, tag)
    registries = [_registry(_BASE_REGISTRY, account.region), registry]
    docker = shutil.which("docker")
    if docker is None:
        commands = _commands(registries, image, folder, account.region)
        raise EnvironmentProblem(
            f"the image {image} is not in the registry, and Docker, which would build it, is not "
            "installed here",
            hint="\n  ".join(["on a machine with Docker:", *commands])
            + f"\nthen run this command again, or give --sagemaker.image {image}",
            code="environment.docker",
            details={"image": image, "folder": str(folder), "commands": commands},
        )
    _create_repository(account)
    reporter.note(f"building {image}")
    _sign_in(docker, account, registries)
    build = ["build", "--platform", "linux/amd64", "--build-arg", f"REGION={account.region}"]
    _run([docker, *build, "--tag", image, str(folder)])
    _run([docker, "push", image])
    return image


def _registry(number: str, region: str) -> str:
    suffix = ".cn" if region.startswith("cn-") else ""
    return f"{number}.dkr.ecr.{region}.amazonaws.com{suffix}"


def _files() -> Iterator[tuple[str, bytes]]:
    """Files of the build: name and content, in the order of the names."""
    package = Path(__file__).resolve().parent.parent
    presets = builtin_root()
    sources = {path: f"vlatool/{path.relative_to(package)}" for path in package.rglob("*")}
    sources |= {path: f"vlatool/presets/{path.relative_to(presets)}" for path in presets.rglob("*")}
    for path, name in sorted(sources.items(), key=lambda item: item[1]):
        if path.is_file() and "__pycache__" not in path.parts:
            yield name, path.read_bytes()
    yield _DOCKERFILE, Path(__file__).with_name(_DOCKERFILE).read_bytes()
    yield "requirements.txt", "".join(f"{line}\n" for line in _requirements()).encode()


def _requirements() -> list[str]:
    """Packages of vlatool and of the extras that training needs."""
    try:
        lines = requires("vlatool") or []
    except PackageNotFoundError:
        raise EnvironmentProblem(
            "vlatool is not installed, so the packages of its image are not known",
            hint="install it, or give an image with --sagemaker.image URI",
            code="environment.not_installed",
        ) from None
    chosen: list[str] = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", marker)
        if extra is None or extra[1] in _EXTRAS:
            chosen.append(requirement.strip())
    return sorted(set(chosen))


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _written(files: dict[str, bytes], tag: str) -> Path:
    """Folder with the files, in the user's cache."""
    folder = default_cache_folder() / "images" / tag
    if not folder.is_dir():
        with atomic_folder(folder) as partial:
            for name, content in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(content)
    return folder


def _is_there(account: Account, tag: str) -> bool:
    request = {"repositoryName": REPOSITORY, "imageIds": [{"imageTag": tag}]}
    try:
        return bool(account.call("ecr", "describe_images", **request).get("imageDetails"))
    except UsageError as error:
        if error.details.get("reason") in _MISSING:
            return False
        raise


def _create_repository(account: Account) -> None:
    try:
        account.call("ecr", "create_repository", repositoryName=REPOSITORY)
    except UsageError as error:
        if error.details.get("reason") != "RepositoryAlreadyExistsException":
            raise


def _commands(registries: Sequence[str], image: str, folder: Path, region: str) -> list[str]:
    """Commands for a shell that build and push the image."""
    password = f"aws ecr get-login-password --region {region}"
    sign_in = "docker login --username AWS --password-stdin $registry"
    build = f"docker build --platform linux/amd64 --build-arg REGION={region} --tag {image}"
    return [
        f"for registry in {' '.join(registries)}; do {password} | {sign_in}; done",
        f"{build} {shlex.quote(str(folder))}",
        f"docker push {image}",
    ]


def _sign_in(docker: str, account: Account, registries: Sequence[str]) -> None:
    """Lets Docker use the registries; the password is its input, no argument."""
    tokens = account.call("ecr", "get_authorization_token")["authorizationData"]
    user, _, password = base64.b64decode(tokens[0]["authorizationToken"]).partition(b":")
    for registry in registries:
        _run(
            [docker, "login", "--username", user.decode(), "--password-stdin", registry],
            password,
        )


def _run(command: Sequence[str], content: bytes = b"") -> None:
    """Runs Docker, whose output goes to stderr."""
    ended = subprocess.run(command, input=content, stdout=_STDERR, check=False)  # noqa: S603 - Docker with arguments that are no shell text
    if ended.returncode:
        raise EnvironmentProblem(
            f"`{shlex.join(['docker', *command[1:]])}` ended with exit code {ended.returncode}",
            hint="see its output above; then run the same command again",
            code="environment.docker",
            details={"exit_code": ended.returncode},
        )
