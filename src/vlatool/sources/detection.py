"""Which dataset format reads a location, found by asking each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from vlatool.config.base import ConfigModel
from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.plugins import FORMATS
from vlatool.sources.base import FormatReader


class DeferredKeys(ConfigModel):
    """Keys of a format that is not known yet."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True)
class DetectedSource:
    """A format that finds episodes at a location, and the episodes."""

    format: str
    reader: FormatReader
    refs: Sequence[EpisodeRef]


def is_source(word: str) -> bool:
    """Whether a word is a location rather than the name, perhaps misspelt, of a format."""
    if word in FORMATS.names():
        return False
    try:
        return "/" in word or Path(word).exists()
    except (OSError, ValueError):  # a name that no file can have
        return True


def detect_source(location: Path, forced: str | None) -> DetectedSource:
    """The one format that finds episodes at `location`; with `forced`, that format.

    A format that base_format another one wins over it, and any over one that is a last resort.

    Raises:
        DataError: None does; says what each searched for.
        UsageError: Several do, or `forced` is unknown.
    """
    if forced is not None:
        return _discover(forced, location)
    detected: list[DetectedSource] = []
    errors: dict[str, VlatoolError] = {}
    for name in FORMATS.names():
        try:
            detected.append(_discover(name, location))
        except VlatoolError as error:
            errors[name] = error
    general = {getattr(source.reader, "base_format", "") for source in detected}
    detected = [source for source in detected if source.format not in general]
    detected = [
        source for source in detected if not getattr(source.reader, "is_fallback", False)
    ] or detected
    if len(detected) > 1:
        counts = ", ".join(f"{source.format} ({len(source.refs)})" for source in detected)
        raise UsageError(
            f"{location}: several formats find episodes here: {counts}",
            hint=f"choose one with --format, such as --format {detected[0].format}",
            code="usage.ambiguous_format",
            details={"formats": [source.format for source in detected]},
        )
    if not detected:
        raise _not_detected_error(location, errors)
    return detected[0]


def _discover(name: str, location: Path) -> DetectedSource:
    reader = _reader(name)
    refs = list(reader.discover([location]))
    if not refs:
        raise DataError(f"{location}: no {name} episodes", code="data.no_episodes")
    return DetectedSource(name, reader, refs)


def _reader(name: str) -> FormatReader:
    kind = FORMATS.get(name)
    try:
        return kind(kind.Config())
    except ValidationError as error:
        keys = [".".join(map(str, problem["loc"])) for problem in error.errors()]
        raise UsageError(
            f"the format {name!r} cannot be read without values for: {', '.join(keys)}",
            hint=f"try vlatool preprocess {name} ... --dry-run, which takes them",
            code="usage.format_needs_keys",
            details={"format": name, "keys": keys},
        ) from None


def _not_detected_error(location: Path, errors: Mapping[str, VlatoolError]) -> VlatoolError:
    """The error of a format that knows the data but cannot read it, else one that names all."""
    for error in errors.values():
        if isinstance(error, DataError) and error.code != "data.no_episodes":
            return error
    searched = {
        name: str(error.details.get("searched") or error.hint or error.message)
        for name, error in errors.items()
    }
    return DataError(
        f"{location}: no run, no shards, and no episodes of a known format",
        hint="; ".join(f"{name}: {text}" for name, text in searched.items()),
        code="data.no_episodes",
        details={"path": str(location), "searched": searched},
    )
