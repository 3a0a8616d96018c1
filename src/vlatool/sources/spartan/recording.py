"""What of a raw Spartan episode can be opened, and what cannot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.sources.npz import ArrayHeader, NpzArchive
from vlatool.sources.spartan.codes import SPARTAN

_ARCHIVES = ("observations.npz", "actions.npz", "intrinsics.npz", "extrinsics.npz")
_REQUIRED = ("metadata.yaml", *_ARCHIVES)


@dataclass
class Recording:
    """What of an episode can be opened.

    Attributes:
        folder: Its `processed` folder.
        cameras: Hardware id to semantic name, as written.
        archives: The npz files that open, by name.
        headers: (file, array) to what the array says of itself.
    """

    episode: str
    folder: Path
    discarded: Sequence[str] = ()
    cameras: Mapping[str, str] = field(default_factory=dict[str, str])
    archives: dict[str, NpzArchive] = field(default_factory=dict[str, NpzArchive])
    headers: dict[tuple[str, str], ArrayHeader] = field(
        default_factory=dict[tuple[str, str], ArrayHeader]
    )

    def finding(self, code: str, message: str, file: str, **place: Any) -> Finding:
        """A finding in a file of this episode."""
        path = self.folder / file
        text = f"{path}: {message}"
        return SPARTAN(code, text, episode=self.episode, path=str(path), **place)

    def arrays(self, file: str) -> Iterator[tuple[str, ArrayHeader]]:
        """The arrays of a file with their headers, without those that are discarded."""
        for (owner, name), header in self.headers.items():
            if owner == file and name not in self.discarded:
                yield name, header

    def read(self, file: str, name: str) -> Array | None:
        """An array; None when it is absent, broken or holds objects."""
        header = self.headers.get((file, name))
        if header is None or header.dtype.hasobject:
            return None
        try:
            return self.archives[file].read(name)
        except DataError:
            return None


def open_recording(recording: Recording) -> Iterator[Finding]:
    """Opens what there is and reads every array's header; tells of what is not there."""
    for name in _REQUIRED:
        if not (recording.folder / name).is_file():
            yield recording.finding("missing_file", "is missing", name)
        elif name == "metadata.yaml":
            yield from _open_metadata(recording)
        else:
            try:
                recording.archives[name] = NpzArchive(recording.folder / name)
            except DataError as error:
                yield recording.finding("unreadable_file", error.message, name)
    yield from _read_headers(recording)


def _open_metadata(recording: Recording) -> Iterator[Finding]:
    path = recording.folder / "metadata.yaml"
    try:
        # BaseLoader builds text, lists and mappings only, so camera ids stay text.
        content: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        yield recording.finding("unreadable_file", f"not valid YAML: {error}", path.name)
        return
    mapping = content.get("camera_id_to_semantic_name") if isinstance(content, dict) else None
    if isinstance(mapping, dict):
        recording.cameras = {str(key): str(name) for key, name in mapping.items()}


def _read_headers(recording: Recording) -> Iterator[Finding]:
    for file, archive in recording.archives.items():
        for name in archive.names:
            try:
                header = archive.header(name)
            except DataError as error:
                yield recording.finding("unreadable_array", error.message, file, field=name)
                continue
            recording.headers[file, name] = header
            if header.dtype.hasobject:
                is_read = file == "observations.npz" and name not in recording.discarded
                code = "object_array" if is_read else "ignored_objects"
                message = f"{name!r} holds Python objects"
                yield recording.finding(code, message, file, field=name)
