"""Finds out the dataset format of a location by letting each format look for episodes there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from vlatool.config.base import ConfigModel, option
from vlatool.config.resolve import Override, load_config
from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, EnvironmentProblem, UsageError, VlatoolError
from vlatool.media import limits
from vlatool.plugins import FORMATS, is_class_in_file
from vlatool.recordings.artifact import other_contents_error, recognize
from vlatool.recordings.base import FormatReader, checked_refs
from vlatool.recordings.mapping import broken_mapping, mapping_file
from vlatool.recordings.unread import names_below, unread_hint
from vlatool.storage.documents import DocumentError, read_json
from vlatool.storage.manifest import MAX_MANIFEST_BYTES
from vlatool.storage.uri import can_list

_MOST_ENDINGS = 6
# Formats that read what vlatool wrote, by the `format` of the manifest: no other one is asked.
_READ_WITH = {"vlatool.windows": "images", "vlatool.image-shards": "image-shards"}


class DeferredKeys(ConfigModel):
    """Options of a format that is not known yet."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True)
class DetectedSource:
    """Format of a location, and its episodes."""

    format: str
    reader: FormatReader
    refs: Sequence[EpisodeRef]


def is_source(word: str) -> bool:
    """True if a word on the command line is a location, not the name of a format."""
    if word in FORMATS.names() or is_class_in_file(word):
        return False
    try:
        return "/" in word or Path(word).exists()
    except (OSError, ValueError):  # not a valid file name
        return True


class SourceKeys(ConfigModel):
    """Options of commands that read raw episodes of any format."""

    format: str | None = option(None, "Format of your recordings; null detects it.")
    mapping: str | None = option(
        None,
        "Mapping of your recordings, as for `preprocess`: a YAML file, or the name of a preset.",
    )
    format_keys: dict[str, Any] = option(
        {}, "Options of the format, as `preprocess FORMAT --help-all` lists them: {fps: 20}."
    )

    @property
    def source_keys(self) -> dict[str, Any]:
        """Options of the format, including the mapping."""
        return with_mapping(self.format_keys, self.mapping)


def with_mapping(keys: Mapping[str, Any], mapping: str | None) -> dict[str, Any]:
    """Returns options of a format, with the mapping if one is given; checks that it exists."""
    if mapping is None:
        return {**keys}
    file = mapping_file(mapping)
    if not file.is_file():
        raise broken_mapping(file, "does not exist")
    return {**keys, "mapping": mapping}


def detect_source(
    location: Path, forced: str | None, keys: Mapping[str, Any] | None = None
) -> DetectedSource:
    """Returns the format that finds episodes at a location, with these episodes.

    This is the format `forced` if given, else the format that a manifest names. A format takes
    precedence over its `base_format`, and all formats over one with `is_fallback`.

    `keys` are options of the format: only formats that have them are tried.

    Raises:
        UsageError: Several formats find episodes (`usage.conflict`), or no format has these keys.
        DataError: No format finds episodes, or the format cannot read them.
    """
    limits.most_bytes()  # raises its own error: in a reader it would look like an unknown format
    keys = keys or {}
    name = forced or _format_of_manifest(location)
    if name is not None:
        return _discover(name, location, keys)
    formats: list[str] = []
    fallbacks: list[str] = []
    for name in _formats_with(keys):
        (fallbacks if FORMATS.get(name).is_fallback else formats).append(name)
    detected, errors = _asked(formats, location, keys)
    if not detected and not any(map(_is_of_data, errors.values())):
        if recognize(location) is not None:  # its files are no recordings, whatever they look like
            fallbacks = [name for name in fallbacks if not FORMATS.get(name).base_format]
        detected, fallback_errors = _asked(fallbacks, location, keys)
        errors |= fallback_errors
    general = {source.reader.base_format for source in detected}
    detected = [source for source in detected if source.format not in general]
    if len(detected) > 1:
        counts = ", ".join(f"{source.format} ({len(source.refs)})" for source in detected)
        raise UsageError(
            f"{location}: several formats find episodes here: {counts}",
            hint=f"say which one you mean: --format {detected[0].format}, or with preprocess "
            f"{detected[0].format} before the source",
            code="usage.conflict",
            details={"formats": [source.format for source in detected]},
        )
    if not detected:
        raise _not_detected_error(location, errors)
    return detected[0]


def name_other_format(error: DataError, sources: Sequence[Path], name: str) -> None:
    """If the format `name` finds no episodes, puts the format that does into the hint."""
    if "searched" not in error.details:  # episodes were found, and none of them is chosen
        return
    with suppress(VlatoolError):
        found = detect_source(sources[0], None).format
        if found != name:
            error.hint = f"your recordings have the format {found}: write {found} instead of {name}"


def _format_of_manifest(location: Path) -> str | None:
    try:
        document: object = read_json(location / "manifest.json", max_bytes=MAX_MANIFEST_BYTES)
    except (DocumentError, OSError):
        return None
    if not isinstance(document, dict):
        return None
    return _READ_WITH.get(str(document.get("format")))


def _formats_with(keys: Mapping[str, Any]) -> list[str]:
    """Returns the names of the formats that have all `keys`; UsageError if there are none."""
    names: list[str] = []
    for name in FORMATS.names():
        if all(key in FORMATS.get(name).Config.model_fields for key in keys):
            names.append(name)
    if not names:
        raise UsageError(
            f"no format has the options {', '.join(keys)}",
            hint="`vlatool preprocess FORMAT --help-all` lists the options of a format",
            code="usage.unknown_name",
        )
    return names


def _discover(name: str, location: Path, keys: Mapping[str, Any]) -> DetectedSource:
    reader = _reader(name, keys)
    refs = checked_refs(list(reader.discover([location])))
    if not refs:
        raise DataError(f"{location}: no {name} episodes", code="data.no_episodes")
    return DetectedSource(name, reader, refs)


def _reader(name: str, keys: Mapping[str, Any]) -> FormatReader:
    kind = FORMATS.get(name)
    typed = [Override(key, value, f"the {name} key {key}") for key, value in keys.items()]
    try:
        return kind(load_config(kind.Config, overrides=typed).config if keys else kind.Config())
    except ValidationError as error:
        missing = [".".join(map(str, problem["loc"])) for problem in error.errors()]
        raise UsageError(
            f"the format {name!r} needs values for these options: {', '.join(missing)}",
            hint=f"`vlatool preprocess {name} ... --dry-run` accepts these options",
            code="usage.missing_key",
            details={"format": name, "keys": missing},
        ) from None


def _asked(
    names: Sequence[str], location: Path, keys: Mapping[str, Any]
) -> tuple[list[DetectedSource], dict[str, VlatoolError]]:
    """Returns the formats that find episodes at a location, and the errors of all others."""
    detected: list[DetectedSource] = []
    errors: dict[str, VlatoolError] = {}
    for name in names:
        try:
            detected.append(_discover(name, location, keys))
        except VlatoolError as error:
            errors[name] = error
    return detected, errors


def _is_of_data(error: VlatoolError) -> bool:
    """True if a format recognizes the data but cannot read them."""
    return isinstance(error, DataError | EnvironmentProblem) and error.code != "data.no_episodes"


def _not_detected_error(location: Path, errors: Mapping[str, VlatoolError]) -> VlatoolError:
    """Error of the format that recognizes the data but cannot read them, else a general error."""
    for error in errors.values():
        if _is_of_data(error):
            return error
    seen = _seen_text(location)
    known = other_contents_error(
        location,
        "raw episodes, windows or image shards",
        "give the source that they were made from",
        "data.no_episodes",
    )
    if known is not None:
        return known
    searched: dict[str, str] = {}
    for name, error in errors.items():
        searched[name] = str(error.details.get("searched") or error.hint or error.message)
    return DataError.at(
        location,
        f"vlatool finds no episodes, shards or runs here{seen}",
        hint=unread_hint(location)
        or "put the videos, images and tables of each episode into a folder of their own "
        "(docs/formats/folder.md), or write a reader for your files (docs/guides/plugins.md); "
        f"known formats: {', '.join(FORMATS.names())}",
        code="data.no_episodes",
        searched=searched,
    )


def _seen_text(location: Path) -> str:
    """Counts the files at a location by their endings, as the end of a message."""
    if not can_list(location) or not location.is_dir():
        return ""
    counts: Counter[str] = Counter()
    for name in names_below(location):
        ending = Path(name).suffix.lower().lstrip(".")
        counts[ending or "without an ending"] += 1
    if not counts:
        return ": the folder has no files"
    common = counts.most_common(_MOST_ENDINGS)
    return ", only files: " + ", ".join(f"{count:,} {ending}" for ending, count in common)
