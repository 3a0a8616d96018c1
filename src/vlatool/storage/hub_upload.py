"""Upload of files to a repository of a model hub, through the uploader of the hub's library.

The hub is the only memory of an upload: files that it has with equal content are not sent again.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from ssl import SSLContext
from typing import Any, TypeVar

from vlatool.errors import DataError, EnvironmentProblem, StorageError, VlatoolError
from vlatool.storage.digests import has_git_digest
from vlatool.storage.hub import Repository
from vlatool.storage.remote import Address, ObjectInfo, call, forget_connections
from vlatool.storage.retry import RetryAdvice, network_retry_advice, retrying
from vlatool.storage.routes import route

# Limits of one commit, and of what is sent before the progress is reported.
_MAX_FILES = 256
_MAX_COMMIT_BYTES = 20 * 10**9
_MAX_STEP_BYTES = 10**9
# Small files are part of the request of a commit, which is in memory.
_SMALL_BYTES, _MAX_SMALL_BYTES = 10 * 2**20, 64 * 2**20
_BLOCK_BYTES = 2**20
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_NO_ACCESS = frozenset({401, 403, 404})
_WEB_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "requests", "urllib3"})
_MAX_REASON = 300  # characters
_BRANCH = "main"

T = TypeVar("T")


@dataclass(frozen=True)
class UploadFile:
    name: str  # Path in the repository
    content: Path | bytes  # the local file, or its content
    size: int  # size in bytes

    def is_at(self, info: ObjectInfo | None) -> bool:
        """True if a file of the hub has the same content."""
        if info is None or info.size != self.size:
            return False
        return has_git_digest(info.digest, self.size, self._blocks())

    def _blocks(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
            return
        with self.content.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block


class RepositoryWriter:
    """Repository that is written, on its main branch.

    Every method raises
        EnvironmentProblem: There is no token, it gives no access, or access is switched off.
        StorageError: The hub does not respond, or rejects a request.
    """

    def __init__(self, root: str) -> None:
        """Stores the root, `hf://KIND/OWNER/NAME`; no request."""
        self._root = root
        self._repository = Repository(root)

    @property
    def url(self) -> str:
        """Web page of the repository."""
        repository = self._repository
        prefix = "" if repository.kind == "model" else f"{repository.kind}s/"
        return f"{repository.endpoint.rstrip('/')}/{prefix}{repository.name}"

    def create(self, *, is_private: bool) -> None:
        """Creates the repository if it does not exist; the visibility of an existing one stays."""
        self._call(lambda api: api.create_repo(private=is_private, exist_ok=True, **self._target))

    def files(self) -> Mapping[str, ObjectInfo]:
        """Files that are there now."""
        forget_connections()
        address = Address(self._root, "")
        return call(address, lambda _: Repository(self._root).files)

    def send(
        self,
        files: Sequence[UploadFile],  # files that are not there with this content
        removed: Sequence[str],  # Paths of files that are there
        message: str,  # title of the commits
        # called with the number of bytes of each part that was sent
        advance: Callable[[int], None],
    ) -> None:
        """Sends files in one or several commits; the first commit removes files."""
        commits = list(_parts(files, _MAX_COMMIT_BYTES)) or [[]]
        for number, part in enumerate(commits, 1):
            title = message if len(commits) == 1 else f"{message} ({number} of {len(commits)})"
            self._commit(part, () if number > 1 else removed, title, advance)

    def _commit(
        self,
        files: Sequence[UploadFile],
        removed: Sequence[str],
        title: str,
        advance: Callable[[int], None],
    ) -> None:
        hub = self._repository.hub
        additions: list[Any] = []
        for step in _parts(files, _MAX_STEP_BYTES):
            adds = [hub.CommitOperationAdd(file.name, _source(file)) for file in step]
            self._call(
                lambda api, adds=adds: api.preupload_lfs_files(
                    additions=adds, free_memory=False, revision=_BRANCH, **self._target
                )
            )
            additions += adds
            advance(sum(file.size for file in step))
        operations = [*map(hub.CommitOperationDelete, removed), *additions]
        if operations:
            self._call(
                lambda api: api.create_commit(
                    operations=operations, commit_message=title, revision=_BRANCH, **self._target
                )
            )

    def move_tag(self, name: str) -> None:
        """Makes a tag name the newest commit."""

        def move(api: Any) -> None:
            refs = api.list_repo_refs(**self._target)
            newest = [ref.target_commit for ref in refs.branches if ref.name == _BRANCH]
            commits = [ref.target_commit for ref in refs.tags if ref.name == name]
            if commits and commits != newest:
                api.delete_tag(tag=name, **self._target)
            if commits != newest:
                api.create_tag(tag=name, exist_ok=True, **self._target)

        self._call(move)

    @property
    def _target(self) -> Mapping[str, str]:
        return {"repo_id": self._repository.name, "repo_type": self._repository.kind}

    def _call(self, operation: Callable[[Any], T]) -> T:
        """Calls a function of the library's client, with retries."""
        repository = self._repository
        repository.check_on()
        if not repository.token:
            raise self._no_access_error("there is no token")
        _accept_certificates(repository.hub, route(repository.endpoint).certificates)
        api = repository.hub.HfApi(endpoint=repository.endpoint, token=repository.token)
        try:
            with _without_bars(repository.hub):
                return retrying(lambda: operation(api), self._root, classify=_retry_advice)
        except VlatoolError:
            raise
        except Exception as error:  # the library raises anything, also of its own dependencies
            raise self._error(error) from error

    def _error(self, error: Exception) -> Exception:
        if type(error).__name__ == "HFValidationError":
            return self._repository.map_error(error, self._root)
        for cause in _chain(error):
            if isinstance(cause, FileNotFoundError | PermissionError) and cause.filename:
                return DataError.at(
                    cause.filename,
                    f"cannot be read: {cause.strerror}",
                    hint="nothing may write the folder during its upload; run the command again",
                    code="data.unreadable_file",
                )
        if _status(error) in _NO_ACCESS:
            return self._no_access_error("the token gives no access")
        return StorageError.at(
            self._root,
            f"the hub rejects the upload: {' '.join(str(error).split())[:_MAX_REASON]}",
            hint="see its reason; what was uploaded stays, and the same command continues",
            code="storage.refused",
        )

    def _no_access_error(self, reason: str) -> EnvironmentProblem:
        owner = self._repository.name.partition("/")[0]
        return EnvironmentProblem(
            f"{self._root}: {reason}",
            hint=f"`hf auth login`, or set HF_TOKEN to a token that may write to {owner}",
            code="environment.no_credentials",
            details={"path": self._root},
        )


@cache
def _accept_certificates(hub: Any, certificates: SSLContext | None) -> None:
    """Makes the client of the library accept the certificates that all schemes accept.

    It takes proxies from the environment by itself; before version 1, certificates too.
    """
    if certificates is None or not hasattr(hub, "set_client_factory"):
        return
    client = hub.get_session()
    hub.set_client_factory(
        partial(
            type(client),
            verify=certificates,
            event_hooks=client.event_hooks,
            follow_redirects=True,
            timeout=None,
        )
    )


def _source(file: UploadFile) -> str | bytes:
    return file.content if isinstance(file.content, bytes) else str(file.content)


def _parts(files: Sequence[UploadFile], max_bytes: int) -> Iterator[list[UploadFile]]:
    """Yields runs of files within the limits; a file that exceeds them is a run of its own."""
    part: list[UploadFile] = []
    size = small = 0
    for file in files:
        own = file.size if file.size <= _SMALL_BYTES else 0
        is_full = size + file.size > max_bytes or small + own > _MAX_SMALL_BYTES
        if part and (is_full or len(part) == _MAX_FILES):
            yield part
            part, size, small = [], 0, 0
        part.append(file)
        size, small = size + file.size, small + own
    if part:
        yield part


@contextmanager
def _without_bars(hub: Any) -> Generator[None]:
    """Switches the progress bars of the library off: they would mix with those of the command."""
    bars = import_module("huggingface_hub.utils")
    were_off = bars.are_progress_bars_disabled() or hub.constants.HF_HUB_DISABLE_PROGRESS_BARS
    if not were_off:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            bars.enable_progress_bars()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its causes."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _status(error: Exception) -> int | None:
    """Status of the response that an error is about; None without one."""
    statuses = (getattr(getattr(e, "response", None), "status_code", None) for e in _chain(error))
    return next((status for status in statuses if status is not None), None)


def _retry_advice(error: Exception) -> RetryAdvice | None:
    """Advice on retrying after an error of the library; None if a retry is useless."""
    status = _status(error)
    if status is not None:
        return RetryAdvice(f"status {status}") if status in _BUSY else None
    for cause in _chain(error):
        if type(cause).__module__.partition(".")[0] in _WEB_LIBRARIES:
            return RetryAdvice(f"no connection ({type(cause).__name__})")
        if (advice := network_retry_advice(cause)) is not None:
            return advice
    return None
