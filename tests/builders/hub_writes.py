"""Requests by which the hub's library writes a repository, as the test server answers them."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Larger files, and those with these names, are sent beside the commit, by their digest.
LARGEST_IN_GIT = 1_000_000
_LARGE_SUFFIXES = (".tar", ".parquet", ".mp4", ".safetensors", ".pt")
OID = "0" * 40


@dataclass
class WrittenHub:
    """State of the repositories that were created."""

    is_private: dict[str, bool] = field(default_factory=dict)  # whether each is private
    # Title and paths of each commit.
    commits: list[tuple[str, list[str]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)  # tag to commit
    objects: dict[str, bytes] = field(default_factory=dict)  # digest to content of large files
    sent: int = 0  # number of large files that were sent
    cut_after: int | None = None  # commits fail once there are N; None: never

    @property
    def commit(self) -> str:
        """Newest commit."""
        return hashlib.sha1(str(len(self.commits)).encode(), usedforsecurity=False).hexdigest()


def is_large(name: str, size: int) -> bool:
    """True if the hub stores a file by its digest, not in git."""
    return size > LARGEST_IN_GIT or (size > 0 and name.endswith(_LARGE_SUFFIXES))


def answer(
    hub: WrittenHub, folder: Path, endpoint: str, request: tuple[str, str, bytes]
) -> tuple[int, Any]:
    """Status and document for a request."""
    method, path, body = request
    if path.startswith("/lfs/"):
        content = hashlib.sha256(body).hexdigest()
        hub.objects[content] = body
        hub.sent += 1
        return (200, {}) if path == f"/lfs/{content}" else (400, {"error": "other digest"})
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        return _create(hub, folder, endpoint, json.loads(body))
    if path.endswith(".git/info/lfs/objects/batch"):
        return 200, {"transfer": "basic", "objects": _actions(hub, endpoint, json.loads(body))}
    return _of_repository(hub, folder, endpoint, (method, path, body))


def _of_repository(
    hub: WrittenHub, folder: Path, endpoint: str, request: tuple[str, str, bytes]
) -> tuple[int, Any]:
    """Status and document for a request to `/api/KIND/OWNER/NAME/VERB/...`."""
    method, path, body = request
    _, _, kind, owner, name, verb, *_ = path.split("/")
    repository = folder / owner / name
    if not repository.is_dir():
        return 404, {"error": "Repository not found"}
    if verb == "commit":
        return _commit(hub, repository, f"{endpoint}/{kind}/{owner}/{name}", body)
    document = json.loads(body) if body else {}
    if verb == "preupload":
        return 200, {"files": [_upload_mode(repository, file) for file in document["files"]]}
    if verb == "refs":
        tags = [{"name": tag, **_ref(f"tags/{tag}", commit)} for tag, commit in hub.tags.items()]
        main = {"name": "main", **_ref("heads/main", hub.commit)}
        return 200, {"branches": [main], "converts": [], "tags": tags}
    assert verb == "tag", path
    if method == "DELETE":
        del hub.tags[path.rpartition("/")[2]]
    else:
        hub.tags[document["tag"]] = hub.commit
    return 200, {}


def _ref(name: str, commit: str) -> dict[str, str]:
    return {"ref": f"refs/{name}", "targetCommit": commit}


def _create(
    hub: WrittenHub, folder: Path, endpoint: str, document: dict[str, Any]
) -> tuple[int, Any]:
    name = f"{document['organization']}/{document['name']}"
    url = f"{endpoint}/{document.get('type', 'model')}s/{name}"
    if (folder / name).exists():
        return 409, {"error": "You already created this repo", "url": url}
    (folder / name).mkdir(parents=True)
    (folder / name / ".gitattributes").write_text("*.tar filter=lfs\n")
    is_private = document.get("private", document.get("visibility") == "private")
    hub.is_private[name] = bool(is_private)
    return 200, {"url": url}


def _actions(hub: WrittenHub, endpoint: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Objects of the batch, with the request that sends each one that the hub lacks."""
    return [
        entry
        if entry["oid"] in hub.objects
        else {**entry, "actions": {"upload": {"href": f"{endpoint}/lfs/{entry['oid']}"}}}
        for entry in document["objects"]
    ]


def _upload_mode(repository: Path, file: dict[str, Any]) -> dict[str, Any]:
    large = is_large(file["path"], file["size"])
    mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
    return {**mode, "shouldIgnore": False, "oid": _oid(repository / file["path"], large=large)}


def _oid(path: Path, *, large: bool) -> str | None:
    if not path.is_file():
        return None
    content = path.read_bytes()
    if large:
        return hashlib.sha256(content).hexdigest()
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def _commit(hub: WrittenHub, repository: Path, page: str, body: bytes) -> tuple[int, Any]:
    """Applies a commit: lines of JSON, first its title; `page` is that of the repository."""
    header, *lines = [json.loads(line) for line in body.splitlines()]
    if hub.cut_after is not None and len(hub.commits) >= hub.cut_after:
        return 422, {"error": "the quota of this account is used up"}
    for line in lines:
        value = line["value"]
        target = repository / value["path"]
        if line["key"] == "deletedFile":
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        is_file = line["key"] == "file"
        content = base64.b64decode(value["content"]) if is_file else hub.objects[value["oid"]]
        target.write_bytes(content)
    hub.commits.append((header["value"]["summary"], [line["value"]["path"] for line in lines]))
    url = f"{page}/commit/{hub.commit}"
    return 200, {"success": True, "commitOid": hub.commit, "commitUrl": url}
