"""The hub of Hugging Face: repositories at one commit, and buckets; read in byte ranges."""

import errno
import importlib
import io
import os
import re
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from ssl import SSLContext
from typing import Any, TypeVar
from urllib.parse import quote

from vlatool.credentials import hide
from vlatool.errors import DataError, EnvironmentProblem, missing_package
from vlatool.storage import remote, retry, web
from vlatool.storage.digests import has_git_digest
from vlatool.storage.http import WebServer

_COMMIT = re.compile(r"[\w.-]{1,100}", re.ASCII)
_OUTSIDE = re.compile(r"^/|(^|/)\.\.?(/|$)|//|[\x00-\x1f]|^$")
_KINDS = ("datasets", "models", "spaces", "buckets")
_BUCKET = "buckets/"
_NO_ACCESS = frozenset({401, 403, 404})
_MAX_REASON = 300  # characters of what the hub says


def _with_kind(location: str) -> str:
    """Location with the kind `models`, which is the default."""
    is_named = location.partition("/")[0] in _KINDS
    return location if is_named else f"models/{location}"


class Repository(WebServer):
    """Files of a repository, at the commit of its revision when it is first used, or of a bucket.

    Endpoint (HF_ENDPOINT), token and cache folder are the same as in huggingface_hub; files in its
    cache are read from there. A bucket has no commits: each file is pinned by its ETag.
    """

    form = remote.LocationForm(
        "hf://datasets/owner/name/path, hf://owner/name@revision/path or hf://buckets/owner/name/path",
        re.compile(
            r"(datasets|models|spaces)(/(?!\.)[^/@]+){2}(@[^/]+)?(/|$)|buckets(/(?!\.)[^/@]+){2}(/|$)"
        ),
        num_root_segments=3,
        canonical=_with_kind,
        read_only=re.compile(r"(?!buckets/)"),
        version=lambda root: "ETag of each file" if _BUCKET in root else root.partition("@")[2],
    )
    settings = ("HF_",)
    can_list = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        kind, owner, name = root.partition("://")[2].split("/")
        self.kind = kind.removesuffix("s")  # `dataset`, `model`, `space` or `bucket`
        self.name, _, self._revision = f"{owner}/{name}".partition("@")
        self._lock = threading.Lock()

    @cached_property
    def hub(self) -> Any:
        """Module `huggingface_hub`."""
        try:
            for name in ("constants", "utils", "errors"):  # they are loaded on demand
                importlib.import_module(f"huggingface_hub.{name}")
            return importlib.import_module("huggingface_hub")
        except ImportError as error:
            raise missing_package("huggingface_hub") from error

    @property
    def api(self) -> Any:
        """Client of the library, with the certificates that all schemes accept."""
        self.check_on()
        _accept_certificates(self.hub, web.route(self.endpoint).certificates)
        return self.hub.HfApi(endpoint=self.endpoint, token=self.token or False)

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

    @cached_property
    def commit(self) -> str:
        """Commit of the revision; empty for a bucket."""
        if self.kind == "bucket":
            return ""
        info = self.api.repo_info(
            self.name,
            revision=self._revision or None,
            repo_type=self.kind,
            timeout=retry.READ_TIMEOUT_S,
        )
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise web.UnusableAnswer("the hub's answer has no commit")
        return info.sha

    @property
    def pinned(self) -> str:
        """Root with the commit as revision."""
        return f"{self._root.partition('@')[0]}@{self.commit}" if self.commit else self._root

    @property
    def files(self) -> Mapping[str, remote.ObjectInfo]:
        """All files, sorted by name; listed once for all threads."""
        with self._lock:
            return self._listed

    @cached_property
    def _listed(self) -> Mapping[str, remote.ObjectInfo]:
        files: dict[str, remote.ObjectInfo] = {}
        if self.kind == "bucket":
            entries = self.api.list_bucket_tree(self.name, recursive=True)
        else:
            entries = self.api.list_repo_tree(
                self.name, recursive=True, revision=self.commit, repo_type=self.kind
            )
        for entry in entries:
            if not hasattr(entry, "size"):  # a folder
                continue
            if entry.path in files:
                raise web.UnusableAnswer("the hub's list of files has no end")
            files[entry.path] = _info(entry)
        return dict(sorted(files.items()))

    @cached_property
    def _names(self) -> Sequence[str]:
        return list(self.files)

    def check_on(self) -> None:
        """Raises EnvironmentProblem if the user has switched off access to the hub."""
        if self.is_off:
            raise EnvironmentProblem(
                f"{self._root}: access to the hub is switched off (HF_HUB_OFFLINE)",
                hint="unset HF_HUB_OFFLINE, or give the path of a local folder instead",
                code="environment.offline",
                details={"path": self._root},
            )

    def head(self, key: str) -> remote.ObjectInfo:
        """Size and ETag of a file, from the listing."""
        if key not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self._root}/{key}")
        return self.files[key]

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> remote.ListPage:
        objects: list[tuple[str, remote.ObjectInfo]] = []
        prefixes: dict[str, None] = {}
        for name in islice(self._names, bisect_left(self._names, max(below, token)), None):
            if not name.startswith(below):
                break
            if delimiter and delimiter in name[len(below) :]:
                prefixes[name[: name.index(delimiter, len(below)) + 1]] = None
                continue
            objects.append((name, self.files[name]))
            if len(objects) == at_most:
                return remote.ListPage(objects, list(prefixes), f"{name}\0")
        return remote.ListPage(objects, list(prefixes))

    def get(self, key: str, start: int, stop: int, etag: str) -> remote.Body:
        """Reads from the cache if it has the file, else with a GET of a range."""
        info = self.head(key)
        first = max(0, info.size + start) if start < 0 else start
        if etag not in ("", info.etag):
            raise remote.ConditionFailed
        if first >= info.size:
            raise remote.RangeNotSatisfiable
        stop = info.size if start < 0 else min(stop, info.size)
        cached = self.commit and self.hub.try_to_load_from_cache(
            self.name, key, revision=self.commit, repo_type=self.kind
        )
        if isinstance(cached, str) and cached:
            with open(cached, "rb") as stored:
                stored.seek(first)
                file = io.BytesIO(stored.read(stop - first))
            return remote.Body(info, first, file.read, file.close)
        body = super().get(key, first, stop, "")
        if body.info.size != info.size:
            body.close()
            raise remote.ConditionFailed
        return replace(body, info=info)

    def url(self, key: str) -> str:
        """URL of a file, which may redirect."""
        if self.kind == "bucket":
            return f"{self.endpoint}/buckets/{self.name}/resolve/{quote(key, safe='')}"
        return self.hub.hf_hub_url(
            self.name, key, repo_type=self.kind, revision=self.commit, endpoint=self.endpoint
        )

    def headers(self) -> Mapping[str, str]:
        """Headers with the token, if the user has one."""
        # `build_hf_headers` asks the hub for a list, to name the program that runs this one.
        token = self.token
        return {"User-Agent": "vlatool", **({"Authorization": f"Bearer {token}"} if token else {})}

    def put(self, key: str, data: bytes, etag: str | None = None) -> str:
        """Writes a file of a bucket; the hub has no conditions, so that they are compared here."""
        self._change()
        if etag is not None and etag != (self.files[key].etag if key in self.files else ""):
            raise remote.ConditionFailed
        return self.add(key, data)

    def add(self, key: str, content: bytes | str) -> str:
        """Writes a file of a bucket, from bytes or a local file; returns its ETag."""
        with _without_bars(self.hub):
            self.api.batch_bucket_files(self.name, add=[(content, key)])
        self._change()
        return self.head(key).etag

    def multipart(self, key: str) -> remote.Upload:
        self._change()
        return _Spooled(self, key)

    def unfinished(self, below: str) -> Sequence[tuple[str, remote.Upload]]:
        """Returns none: parts wait on the disk of the process that sends them."""
        del below
        return ()

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        self._change()
        present = [key for key in keys if key in self.files]
        if present:
            self.api.batch_bucket_files(self.name, delete=present)
            self._change()
        return ()

    def _change(self) -> None:
        """Forgets the listing of a bucket; raises StorageError for a repository."""
        if self.kind != "bucket":
            raise remote.read_only_error(self._root)
        with self._lock:
            for name in ("_listed", "_names"):
                self.__dict__.pop(name, None)

    def map_error(self, error: Exception, location: str) -> Exception:
        name = type(error).__name__
        status, code, headers = web.answer_of(error)
        if name == "RevisionNotFoundError" or headers.get("X-Error-Code") == "RevisionNotFound":
            return DataError.at(
                self._root,
                "the repository has no such revision",
                hint="name an existing branch, tag or commit, as owner/name@revision",
                code="data.no_source",
            )
        if name == "HFValidationError":
            return DataError(
                f"{self._root}: invalid name of a repository",
                hint="write hf://datasets/owner/name, or hf://owner/name for a model",
                code="data.broken",
            )
        if status in _NO_ACCESS and headers.get("X-Error-Code") != "EntryNotFound":
            reason = "there is no such repository, or it is private, gated, or of another owner"
            return _no_access_error(location, reason)
        if status:
            said = " ".join(str(getattr(error, "server_message", None) or code).split())
            error = web.HttpStatusError(status, headers, said[:_MAX_REASON])
        return super().map_error(error, location)


def _no_access_error(location: str, reason: str) -> EnvironmentProblem:
    hint = "check the name; request access on its page, then `hf auth login` or set HF_TOKEN"
    return EnvironmentProblem.at(location, reason, hint=hint, code="environment.credentials")


class _Spooled:
    """Upload of a file of a bucket, whose parts wait in a temporary file."""

    def __init__(self, bucket: Repository, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._folder = tempfile.TemporaryDirectory(prefix="vlatool-")

    def send(self, number: int, data: bytes) -> str:
        Path(self._folder.name, str(number)).write_bytes(data)
        return str(number)

    def complete(self, parts: Sequence[str]) -> None:
        whole = Path(self._folder.name, "whole")
        with whole.open("wb") as file:
            for part in parts:
                file.write(Path(self._folder.name, part).read_bytes())
        self._bucket.add(self._key, str(whole))
        self.abort()

    def abort(self) -> None:
        self._folder.cleanup()


def _info(entry: Any) -> remote.ObjectInfo:
    """Information on an entry of a list of files."""
    digest = ""
    if not hasattr(entry, "blob_id"):  # of a bucket
        etag = entry.xet_hash
    elif entry.lfs is None:
        etag = entry.blob_id
        digest = f"git-sha1:{etag}"
    else:
        etag = entry.lfs.sha256
        digest = f"sha256:{etag}"
    is_valid = isinstance(entry.path, str) and isinstance(etag, str) and type(entry.size) is int
    if not is_valid or entry.size < 0 or _OUTSIDE.search(entry.path):
        raise web.UnusableAnswer("the hub's answer is no list of files")
    modified = getattr(entry, "mtime", None)
    return remote.ObjectInfo(
        entry.size, modified.timestamp() if modified else 0.0, etag, digest=digest
    )


# Limits of one commit, after which the progress is reported.
_MAX_FILES = 256
_MAX_COMMIT_BYTES = 10 * 10**9
# Small files are part of the request of a commit, which is in memory.
_SMALL_BYTES = 10 * 2**20
_MAX_SMALL_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20
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
        # called with the number of bytes of each commit
        advance: Callable[[int], None],
    ) -> None:
        """Sends files in one or several commits; the first commit removes files."""
        hub = self._repository.hub
        commits = list(_parts(files)) or [[]]
        operations: list[Any] = [hub.CommitOperationDelete(name) for name in removed]
        for number, part in enumerate(commits, 1):
            title = message if len(commits) == 1 else f"{message} ({number} of {len(commits)})"
            operations += [hub.CommitOperationAdd(file.name, _source(file)) for file in part]
            if operations:
                self._call(partial(self._commit, title, operations))
            advance(sum(file.size for file in part))
            operations = []

    def _commit(self, title: str, operations: Sequence[Any], api: Any) -> None:
        api.create_commit(
            operations=operations, commit_message=title, revision=_BRANCH, **self._target
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
            raise _no_access_error(self._root, "there is no token")

        def run(there: Any) -> T:
            return operation(there.api)

        try:
            with _without_bars(repository.hub):
                return remote.call(remote.Address(self._root, ""), run)
        except OSError as error:
            raise DataError.at(
                error.filename,
                f"cannot be read: {error.strerror}",
                hint="nothing may write the folder during its upload; run the command again",
                code="data.broken",
            ) from error


@cache
def _accept_certificates(hub: Any, certificates: SSLContext | None) -> None:
    """Gives the client of the library the certificates and limits in time of all schemes.

    It takes proxies from the environment by itself.
    """
    client = hub.get_session()
    timeout = type(client.timeout)(retry.READ_TIMEOUT_S, connect=retry.CONNECT_TIMEOUT_S)
    hub.set_client_factory(
        partial(
            type(client),
            verify=certificates or True,
            event_hooks=client.event_hooks,
            follow_redirects=True,
            timeout=timeout,
        )
    )


def _source(file: UploadFile) -> str | bytes:
    return file.content if isinstance(file.content, bytes) else str(file.content)


def _parts(files: Sequence[UploadFile]) -> Iterator[list[UploadFile]]:
    """Yields runs of files within the limits; a file that exceeds them is a run of its own."""
    part: list[UploadFile] = []
    size = small = 0
    for file in files:
        own = file.size if file.size <= _SMALL_BYTES else 0
        is_full = size + file.size > _MAX_COMMIT_BYTES or small + own > _MAX_SMALL_BYTES
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
    bars: Any = importlib.import_module("huggingface_hub.utils")
    were_off = bars.are_progress_bars_disabled() or hub.constants.HF_HUB_DISABLE_PROGRESS_BARS
    if not were_off:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            bars.enable_progress_bars()
