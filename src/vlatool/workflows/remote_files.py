"""Files of a remote folder: from its listing, or from the manifests that a web server names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vlatool.artifacts.lerobot.format import INFO_FILE
from vlatool.artifacts.shards.format import (
    CONFIG_NAME,
    EPISODES_NAME,
    MANIFEST_NAME,
    METADATA_NAME,
    SHARDS_NAME,
    read_manifest,
)
from vlatool.artifacts.stats.format import DIGESTS_NAME, STATS_NAME
from vlatool.errors import DataError
from vlatool.jobs.files import NAME, FileEntry, read_file_list
from vlatool.storage.background import in_parallel
from vlatool.storage.listing import tree
from vlatool.storage.remote import Address, ObjectInfo, find_object, is_listable
from vlatool.storage.remote_path import RemotePath

_MAX_HEADS = 16
# Files next to a manifest, and whether training needs them.
_COMPANIONS = {STATS_NAME: True, CONFIG_NAME: True, METADATA_NAME: False, DIGESTS_NAME: False}


@dataclass(frozen=True)
class RemoteFile:
    """File of a remote location."""

    name: str  # Path in the output
    address: Address  # the object
    info: ObjectInfo  # its size and version

    @property
    def path(self) -> str:
        """Location, for messages."""
        return str(self.address)


def remote_files(source: RemotePath) -> list[RemoteFile]:
    """Files at a location, by their path below it."""
    address = source.address
    if not is_listable(address):
        return _named(source)
    info = find_object(address) if address.key else ObjectInfo(is_dir=True)
    if info is not None and not info.is_dir:
        return [RemoteFile(source.name, address, info)]
    return [
        RemoteFile(name, address.joined(name), info)
        for name, info in tree(address)
        if not info.is_dir
    ]


def _named(source: RemotePath) -> list[RemoteFile]:
    """Files of a web server: what a manifest names, or the file itself."""
    if source.name == MANIFEST_NAME and source.is_file():
        return _infos(source.parent, _manifest_names(source))
    if not PurePosixPath(source.name).suffix:
        if (entries := read_file_list(source)) is not None:
            return list(_of_file_list(source, entries))
        for folder in ("", SHARDS_NAME, EPISODES_NAME):
            manifest = source / folder / MANIFEST_NAME
            if manifest.is_file():
                prefix = f"{folder}/" if folder else ""
                names = [(f"{prefix}{name}", needed) for name, needed in _manifest_names(manifest)]
                return _infos(source, names)
        if (source / INFO_FILE).is_file():
            from vlatool.sources.lerobot.dataset import named_files  # imports pyarrow

            return _infos(source, named_files(source))
    info = find_object(source.address)
    if info is not None:
        return [RemoteFile(source.name, source.address, info)]
    raise DataError.at(
        source,
        f"no file, and no folder with {MANIFEST_NAME}, {INFO_FILE} or {NAME}",
        hint="web servers cannot list folders: name a file or a manifest",
        code="data.no_source",
    )


def _of_file_list(source: RemotePath, entries: Sequence[FileEntry]) -> Iterator[RemoteFile]:
    """Files of an output of vlatool, with the digests in its file list."""
    for entry in entries:
        if entry.count is None:
            info = ObjectInfo(entry.bytes, digest=f"sha256:{entry.sha256}")
            yield RemoteFile(entry.path, source.address.joined(entry.path), info)


def _manifest_names(manifest: RemotePath) -> list[tuple[str, bool]]:
    """Names next to a manifest, and whether they must exist."""
    shards = [
        (shard.path.relative_to(manifest.parent).as_posix(), True)
        for shard in read_manifest(manifest)
    ]
    return [(MANIFEST_NAME, True), *shards, *((name, False) for name in _COMPANIONS)]


def task_files(task: RemotePath, view: str) -> tuple[list[RemoteFile], list[str]]:
    """Files of a view (`shards` or `episodes`) of a published task.

    Returns the files, with names below the folder of the task, and the names of those files.

    Files that training needs and the view lacks are taken from the other view.
    """
    folder = task / view
    try:
        names = _manifest_names(folder / MANIFEST_NAME)
    except DataError as error:
        if error.code != "data.no_manifest":
            raise
        raise DataError.at(
            folder,
            "is not there",
            hint="check --version and --registry; `vlatool download --list` shows the tasks",
            code="data.no_task",
        ) from None
    files = {file.name: file for file in _infos(folder, names)}
    other = task / (EPISODES_NAME if view == SHARDS_NAME else SHARDS_NAME)
    missing = [(name, needed) for name, needed in _COMPANIONS.items() if name not in files]
    borrowed = _infos(other, [(name, needed) for name, needed in missing if needed])
    every = [*files.values(), *borrowed]
    view_files = [RemoteFile(f"{view}/{file.name}", file.address, file.info) for file in every]
    return view_files, [f"{view}/{file.name}" for file in borrowed]


def doubled_error(where: object) -> DataError:
    """Error for a file that occurs twice in a list."""
    return DataError.at(
        where, "is listed twice", hint="the list there is wrong", code="data.doubled_name"
    )


def _infos(folder: Path, names: Sequence[tuple[str, bool]]) -> list[RemoteFile]:
    """Files with their sizes; raises DataError for a missing or doubled one."""
    assert isinstance(folder, RemotePath)
    addresses = [folder.address.joined(name) for name, _ in names]
    infos = in_parallel(find_object, addresses, _MAX_HEADS)
    files: dict[str, RemoteFile] = {}
    for (name, is_needed), address, info in zip(names, addresses, infos, strict=True):
        if name in files:
            raise doubled_error(address)
        if info is not None:
            files[name] = RemoteFile(name, address, info)
        elif is_needed:
            raise DataError.at(
                address,
                "is listed in the manifest, and is missing",
                hint="the data there is not complete",
                code="data.missing_shard",
            )
    return list(files.values())
