"""Repositories of a model hub: data sets and models at one commit, read in byte ranges."""

import errno
import importlib
import io
import os
import re
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vlatool.errors import DataError, EnvironmentProblem, missing_package
from vlatool.storage.http import WebServer
from vlatool.storage.remote import Body, ListPage, LocationForm, ObjectInfo, RangeNotSatisfiable
from vlatool.storage.retry import RetryAdvice

_KINDS = ("datasets", "models", "spaces")


def _with_kind(location: str) -> str:
    """Location with the kind `models`, which is the default."""
    is_named = location.partition("/")[0] in _KINDS
    return location if is_named else f"models/{location}"


class Repository:
    """Files of a repository, at the commit of its revision when it is first used.

    Endpoint (HF_ENDPOINT), token and cache folder are those of huggingface_hub; files in that
    cache are read from it.
    """

    form = LocationForm(
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
        self._kind = kind.removesuffix("s")
        self._name, _, self._revision = f"{owner}/{name}".partition("@")
        self._lock = threading.Lock()

    @cached_property
    def hub(self) -> Any:
        """Module `huggingface_hub`."""
        try:
            return importlib.import_module("huggingface_hub")
        except ImportError as error:
            raise missing_package("huggingface_hub") from error

    @property
    def _endpoint(self) -> str | None:
        return os.environ.get("HF_ENDPOINT") or None

    @cached_property
    def _api(self) -> Any:
        return self.hub.HfApi(endpoint=self._endpoint)

    @cached_property
    def commit(self) -> str:
        """Commit of the revision."""
        info = self._api.repo_info(
            self._name, repo_type=self._kind, revision=self._revision or None
        )
        return str(info.sha)

    @property
    def pinned(self) -> str:
        """Root with the commit as revision."""
        return f"{self._root.partition('@')[0]}@{self.commit}"

    @property
    def files(self) -> Mapping[str, ObjectInfo]:
        """All files, sorted by name; listed once for all threads."""
        with self._lock:
            return self._listed

    @cached_property
    def _listed(self) -> Mapping[str, ObjectInfo]:
        entries = self._api.list_repo_tree(
            self._name, repo_type=self._kind, revision=self.commit, recursive=True
        )
        files = {
            str(entry.path): ObjectInfo(
                int(entry.size), etag=str(entry.lfs.sha256 if entry.lfs else entry.blob_id)
            )
            for entry in entries
            if hasattr(entry, "blob_id")
        }
        return dict(sorted(files.items()))

    def head(self, key: str) -> ObjectInfo:
        """Size and ETag of a file, from the listing."""
        if key not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self._root}/{key}")
        return self.files[key]

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> ListPage:
        """Page of the listing."""
        names = self._names
        position = bisect_left(names, max(below, token))
        objects: list[tuple[str, ObjectInfo]] = []
        prefixes: list[str] = []
        while position < len(names) and names[position].startswith(below):
            name = names[position]
            if len(objects) + len(prefixes) >= at_most:
                return ListPage(objects, prefixes, name)
            head, cut, _ = name[len(below) :].partition(delimiter) if delimiter else (name, "", "")
            if cut:
                prefixes.append(f"{below}{head}{cut}")
                position = bisect_left(names, f"{below}{head}{chr(ord(cut) + 1)}")
            else:
                objects.append((name, self.files[name]))
                position += 1
        return ListPage(objects, prefixes)

    def get(self, key: str, start: int, stop: int, etag: str) -> Body:
        """Reads from the cache if it has the file, else with a GET of a range."""
        info = self.head(key)
        first = max(0, info.size + start) if start < 0 else start
        if first >= info.size:
            raise RangeNotSatisfiable
        cached = self.hub.try_to_load_from_cache(
            self._name, key, revision=self.commit, repo_type=self._kind
        )
        if isinstance(cached, str):
            stop = info.size if start < 0 else stop
            file = io.BytesIO(_bytes(Path(cached), first, stop))
            return Body(info, first, file.read, file.close)
        body = self._files.get(key, first, min(stop, info.size), "")
        return Body(info, body.start, body.read, body.close)

    def retry_advice(self, error: Exception) -> RetryAdvice | None:
        """Advice on retrying after an error; None if a retry is useless."""
        status = _status(error)
        if status:
            is_busy = status == 429 or status >= 500
            return RetryAdvice(f"the hub returns status {status}") if is_busy else None
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore"):
            return RetryAdvice(f"no complete response ({type(error).__name__})")
        return self._files.retry_advice(error)

    def map_error(self, error: Exception, location: str) -> Exception:
        """Converts an error of the library or the server to an error of vlatool."""
        names = {cls.__name__ for cls in type(error).__mro__}
        if names & {"RevisionNotFoundError"}:
            return DataError(
                f"{self._root}: the repository has no such revision",
                hint="name an existing branch, tag or commit, as owner/name@revision",
                code="data.no_revision",
                details={"path": location},
            )
        if names & {"GatedRepoError", "RepositoryNotFoundError", "LocalTokenNotFoundError"} or (
            _status(error) in (401, 403)
        ):
            return self._access_error(location)
        if names & {"OfflineModeIsEnabled"}:
            return EnvironmentProblem(
                f"{location}: access to the hub is switched off (HF_HUB_OFFLINE)",
                hint="unset HF_HUB_OFFLINE, or give the path of a local folder",
                code="environment.offline",
            )
        if names & {"HFValidationError"}:
            return DataError(
                f"{self._root}: invalid name of a repository",
                hint="write hf://datasets/owner/name, or hf://owner/name for a model",
                code="data.bad_repository",
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
            self._name,
            key,
            repo_type=self._kind,
            revision=self.commit,
            endpoint=self._endpoint,
        )

    def _access_error(self, location: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"{location}: there is no such repository, or it is private or gated",
            hint="check the name; request access on its page, then `hf auth login` or set HF_TOKEN",
            code="environment.no_credentials",
            details={"path": location},
        )


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
        return self._repository.hub.utils.build_hf_headers()


def _bytes(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(max(0, stop - start))


def _status(error: Exception) -> int:
    """HTTP status of an error of huggingface_hub; 0 if it has none."""
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)
