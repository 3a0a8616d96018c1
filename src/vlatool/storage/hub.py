"""Repositories of a model hub: data sets and models at one commit, read in byte ranges."""

import errno
import importlib
import io
import os
import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from importlib import import_module
from pathlib import Path
from ssl import SSLContext
from typing import Any, TypeVar, cast
from urllib.parse import quote, urljoin, urlsplit

from vlatool.credentials import hide
from vlatool.errors import (
    DataError,
    EnvironmentProblem,
    StorageError,
    VlatoolError,
    missing_package,
)
from vlatool.storage import remote
from vlatool.storage.digests import has_git_digest
from vlatool.storage.http import HttpStatusError, WebServer
from vlatool.storage.retry import RetryAdvice, network_retry_advice, retrying
from vlatool.storage.routes import route
from vlatool.storage.web_requests import UnusableAnswer

_COMMIT = re.compile(r"[\w.-]{1,100}", re.ASCII)
_MAX_PAGES = 10_000  # of 1,000 files
_NEXT = re.compile(r'<([^<>]*)>\s*;[^<>,]*\brel="?next\b')
_OUTSIDE = re.compile(r"^/|(^|/)\.\.?(/|$)|//|[\x00-\x1f]|^$")
_KINDS = ("datasets", "models", "spaces")


def _with_kind(location: str) -> str:
    """Location with the kind `models`, which is the default."""
    is_named = location.partition("/")[0] in _KINDS
    return location if is_named else f"models/{location}"


class Repository:
    """Files of a repository, at the commit of its revision when it is first used.

    Endpoint (HF_ENDPOINT), token and cache folder are the same as in huggingface_hub; files in its
    cache are read from there.
    """

    form = remote.LocationForm(
        "hf://datasets/owner/name/path or hf://owner/name@revision/path",
        re.compile(r"(datasets|models)(/(?!\.)[^/@]+){2}(@[^/]+)?(/|$)"),
        num_root_segments=3,
        canonical=_with_kind,
    )
    settings = ("HF_",)
    can_list = True

    def __init__(self, root: str) -> None:
        self._root = root
        kind, owner, name = root.partition("://")[2].split("/")
        self.kind = kind.removesuffix("s")  # `dataset`, `model` or `space`
        self.name, _, self._revision = f"{owner}/{name}".partition("@")
        self._lock = threading.Lock()

    @cached_property
    def hub(self) -> Any:
        """Module `huggingface_hub`."""
        try:
            for name in ("constants", "utils"):  # they are loaded on demand
                importlib.import_module(f"huggingface_hub.{name}")
            return importlib.import_module("huggingface_hub")
        except ImportError as error:
            raise missing_package("huggingface_hub") from error

    @property
    def endpoint(self) -> str:
        return os.environ.get("HF_ENDPOINT") or str(self.hub.constants.ENDPOINT)

    @property
    def is_off(self) -> bool:
        """True if the user has switched off access to the hub."""
        return bool(self.hub.constants.HF_HUB_OFFLINE)

    @property
    def token(self) -> str | None:
        """Token of the user; None without one."""
        is_off = self.hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
        token = None if is_off else self.hub.get_token()
        hide(token or "")
        return token

    @property
    def _api(self) -> str:
        """URL of the repository in the programming interface of the hub."""
        self.hub.utils.validate_repo_id(self.name)
        return f"{self.endpoint.rstrip('/')}/api/{self.kind}s/{self.name}"

    @cached_property
    def commit(self) -> str:
        revision = f"/revision/{quote(self._revision, safe='')}" if self._revision else ""
        info, _ = self._document(f"{self._api}{revision}")
        commit = cast("dict[str, Any]", info).get("sha") if isinstance(info, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise UnusableAnswer("the hub's answer has no commit")
        return commit

    @property
    def pinned(self) -> str:
        """Root with the commit as revision."""
        return f"{self._root.partition('@')[0]}@{self.commit}"

    @property
    def files(self) -> Mapping[str, remote.ObjectInfo]:
        """All files, sorted by name; listed once for all threads."""
        with self._lock:
            return self._listed

    @cached_property
    def _listed(self) -> Mapping[str, remote.ObjectInfo]:
        url = f"{self._api}/tree/{quote(self.commit, safe='')}?recursive=true&expand=false"
        files: dict[str, remote.ObjectInfo] = {}
        visited: set[str] = set()
        while url:
            visited.add(url)
            page, headers = self._document(url)
            files.update(_files(page))
            link = _NEXT.search(headers.get("Link", ""))
            try:
                target = urljoin(url, link[1]) if link else ""
                is_same_host = urlsplit(target).netloc == urlsplit(url).netloc
            except ValueError as error:
                raise UnusableAnswer("the hub's next page is at an invalid location") from error
            if target and not is_same_host:  # it would get the token
                raise UnusableAnswer("the hub's next page is on another host")
            url = target
            if url in visited or len(visited) > _MAX_PAGES:
                raise UnusableAnswer("the hub's list of files has no end")
        return dict(sorted(files.items()))

    def check_on(self) -> None:
        """Raises EnvironmentProblem if the user has switched off access to the hub."""
        if self.is_off:
            raise EnvironmentProblem(
                f"{self._root}: access to the hub is switched off (HF_HUB_OFFLINE)",
                hint="unset HF_HUB_OFFLINE, or give the path of a local folder instead",
                code="environment.offline",
                details={"path": self._root},
            )

    def _document(self, url: str) -> tuple[Any, Mapping[str, str]]:
        self.check_on()
        try:
            return self._files.document(url)
        except HttpStatusError as error:
            raise _HubStatusError(error.status, error.headers) from error

    def head(self, key: str) -> remote.ObjectInfo:
        """Size and ETag of a file, from the listing."""
        if key not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self._root}/{key}")
        return self.files[key]

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> remote.ListPage:
        names = self._names
        position = bisect_left(names, max(below, token))
        objects: list[tuple[str, remote.ObjectInfo]] = []
        prefixes: list[str] = []
        while position < len(names) and names[position].startswith(below):
            name = names[position]
            if len(objects) + len(prefixes) >= at_most:
                return remote.ListPage(objects, prefixes, name)
            head, cut, _ = name[len(below) :].partition(delimiter) if delimiter else (name, "", "")
            if cut:
                prefixes.append(f"{below}{head}{cut}")
                position = bisect_left(names, f"{below}{head}{chr(ord(cut) + 1)}")
            else:
                objects.append((name, self.files[name]))
                position += 1
        return remote.ListPage(objects, prefixes)

    def get(self, key: str, start: int, stop: int, etag: str) -> remote.Body:
        """Reads from the cache if it has the file, else with a GET of a range."""
        info = self.head(key)
        first = max(0, info.size + start) if start < 0 else start
        if first >= info.size:
            raise remote.RangeNotSatisfiable
        stop = info.size if start < 0 else stop
        cached = self.hub.try_to_load_from_cache(
            self.name, key, revision=self.commit, repo_type=self.kind
        )
        if isinstance(cached, str):
            file = io.BytesIO(_bytes(Path(cached), first, stop))
            return remote.Body(info, first, file.read, file.close)
        body = self._files.get(key, first, min(stop, info.size), "")
        return replace(body, info=info)

    def retry_advice(self, error: Exception) -> RetryAdvice | None:
        """Advice on retrying after an error; None if a retry is useless."""
        return self._files.retry_advice(error)

    def map_error(self, error: Exception, location: str) -> Exception:
        refusal = error.refusal if isinstance(error, _HubStatusError) else ""
        if refusal == "RevisionNotFound":
            return DataError(
                f"{self._root}: the repository has no such revision",
                hint="name an existing branch, tag or commit, as owner/name@revision",
                code="data.no_source",
                details={"path": location},
            )
        if refusal:
            return EnvironmentProblem(
                f"{location}: there is no such repository, or it is private or gated",
                hint="check the name; request access on its page, "
                "then `hf auth login` or set HF_TOKEN",
                code="environment.credentials",
                details={"path": location},
            )
        if type(error).__name__ == "HFValidationError":
            return DataError(
                f"{self._root}: invalid name of a repository",
                hint="write hf://datasets/owner/name, or hf://owner/name for a model",
                code="data.broken",
            )
        return self._files.map_error(error, location)

    @cached_property
    def _names(self) -> Sequence[str]:
        return list(self.files)

    @cached_property
    def _files(self) -> "_Resolved":
        return _Resolved(self)

    def url(self, key: str) -> str:
        """URL of a file of the commit."""
        return self.hub.hf_hub_url(
            self.name,
            key,
            repo_type=self.kind,
            revision=self.commit,
            endpoint=self.endpoint,
        )


class _HubStatusError(HttpStatusError):
    """Response of the programming interface with a status that is no success."""

    @property
    def refusal(self) -> str:
        """Reason of the hub for a refusal, such as `RevisionNotFound`; empty for other errors."""
        reason = self.headers.get("X-Error-Code") or "no access"
        return reason if self.status in (401, 403, 404) else ""


class _Resolved(WebServer):
    """Files of a repository over HTTP, with the token of the user."""

    def __init__(self, repository: Repository) -> None:
        super().__init__("")
        self._repository = repository

    def url(self, key: str) -> str:
        """URL of a file, which may redirect."""
        return self._repository.url(key)

    def headers(self) -> Mapping[str, str]:
        """Headers with the token, if the user has one."""
        # `build_hf_headers` asks the hub for a list, to name the program that runs this one.
        token = self._repository.token
        return {"User-Agent": "vlatool", **({"Authorization": f"Bearer {token}"} if token else {})}


def _bytes(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(max(0, stop - start))


def _files(page: object) -> Iterator[tuple[str, remote.ObjectInfo]]:
    """Yields names and information of the files on a page of the list of files."""
    problem = UnusableAnswer("the hub's answer is no list of files")
    if not isinstance(page, list):
        raise problem
    for entry in cast("list[Any]", page):
        row = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        if row.get("type") == "directory":
            continue
        large = row.get("lfs")
        name = row.get("path")
        size = row.get("size")
        etag = row.get("oid")
        digest = f"git-sha1:{etag}"
        if isinstance(large, dict):
            etag = cast("dict[str, Any]", large).get("oid")
            digest = f"sha256:{etag}"
        if not isinstance(name, str) or not isinstance(etag, str) or type(size) is not int:
            raise problem
        if size < 0 or _OUTSIDE.search(name):
            raise problem
        yield name, remote.ObjectInfo(size, etag=etag, digest=digest)


# Limits of one commit, and of what is sent before the progress is reported.
_MAX_FILES = 256
_MAX_COMMIT_BYTES = 20 * 10**9
_MAX_STEP_BYTES = 10**9
# Small files are part of the request of a commit, which is in memory.
_SMALL_BYTES = 10 * 2**20
_MAX_SMALL_BYTES = 64 * 2**20
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

    def is_at(self, info: remote.ObjectInfo | None) -> bool:
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

    def files(self) -> Mapping[str, remote.ObjectInfo]:
        """Files that are there now."""
        remote.forget_connections()
        address = remote.Address(self._root, "")
        return remote.call(address, lambda _: Repository(self._root).files)

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
                    code="data.broken",
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
            code="environment.credentials",
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
            part = []
            size = 0
            small = 0
        part.append(file)
        size = size + file.size
        small = small + own
    if part:
        yield part


@contextmanager
def _without_bars(hub: Any) -> Generator[None]:
    """Switches the progress bars of the library off: they would mix with ours."""
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
