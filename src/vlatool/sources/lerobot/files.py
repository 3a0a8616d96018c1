"""Paths of the files of a LeRobot data set: from templates, or from a search if these are wrong."""

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from string import Formatter

from vlatool.artifacts.lerobot.format import (
    INFO_FILE,
    SHARED_DATA_PATH,
    SHARED_VIDEO_PATH,
    EpisodeLine,
    Span,
)
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.sources.lerobot.findings import LEROBOT
from vlatool.sources.lerobot.meta import Info
from vlatool.storage.uri import can_list

_LONGEST_NAME, _LONGEST_PATH = 255, 1024  # of common file systems, and of S3
_INT_SPEC = re.compile(r"^0?\d{0,2}d?$")


def fill_template(template: str, values: Mapping[str, int | str], key: str) -> str:
    """Path relative to the data set.

    Fills only plain fields in `values`, because the template, the value of `key` in info.json, is
    untrusted.

    Raises:
        DataError: A field is unknown or has a conversion, or the path leaves the data set.
    """
    parts: list[str] = []
    try:
        for literal, field, spec, conversion in Formatter().parse(template):
            parts.append(literal)
            if field is None:
                continue
            if field not in values or conversion:
                raise _template_error(key, f'uses unknown field "{{{field}}}"')
            parts.append(_formatted(values[field], spec or "", key))
    except ValueError as error:
        raise _template_error(key, f"is not a path template: {error}") from error
    path = PurePosixPath("".join(parts))
    if path.is_absolute() or ".." in path.parts:
        raise _template_error(key, f'gives "{path}", which is outside the data set')
    longest = max((len(part.encode(errors="replace")) for part in path.parts), default=0)
    if longest > _LONGEST_NAME or len(str(path)) > _LONGEST_PATH or "\0" in str(path):
        raise _template_error(key, f'gives "{str(path)[:40]}...", which is not a valid path')
    return str(path)


def _formatted(value: int | str, spec: str, key: str) -> str:
    if isinstance(value, str):
        if spec:
            raise _template_error(key, f'formats a name with ":{spec}"')
        return value
    if not _INT_SPEC.match(spec):
        raise _template_error(key, f'formats a number with ":{spec}"')
    return format(value, spec)


def _template_error(key: str, problem: str) -> DataError:
    return DataError.at(
        INFO_FILE,
        f"{key} {problem}",
        hint="correct the template; see the LeRobot v2.1 default for its form",
        code="data.bad_template",
        field=key,
    )


class FileFinder:
    """Paths of the parquet file and the videos of an episode.

    If the path of a template does not exist, the only file of that name is used, of v3.0 that of
    the usual template, with one finding per template. Source: formats/lerobot 3.1. If nothing can
    be listed, paths are not checked; reading an episode reports missing files.

    Attributes:
        root: Folder of the data set.
        existing: Requested paths that exist, as far as known.
    """

    def __init__(self, root: Path, info: Info, findings: list[Finding]) -> None:
        self.root = root
        self.existing: set[Path] = set()
        self._info = info
        self._findings = findings
        self._reported: set[str] = set()
        self._can_list = can_list(root)

    def data_file(self, line: EpisodeLine) -> Path:
        """Path of the parquet file of an episode; it may not exist."""
        template = self._template("data_path", self._info.data_path, SHARED_DATA_PATH)
        values = self._values(line.number, line.rows)
        relative = fill_template(template, values, "data_path")
        usual = line.rows and fill_template(SHARED_DATA_PATH, values, "data_path")
        return self._locate("data_path", relative, "data", usual=usual)

    def video_file(self, line: EpisodeLine, camera: str) -> Path | None:
        """Path of the video of a camera, which may not exist; None if the list names none."""
        span = line.clips.get(camera)
        if self._info.is_shared and span is None:
            return None
        template = self._template("video_path", self._info.video_path, SHARED_VIDEO_PATH)
        values = {**self._values(line.number, span), "video_key": camera}
        relative = fill_template(template, values, "video_path")
        usual = span and fill_template(SHARED_VIDEO_PATH, values, "video_path")
        return self._locate("video_path", relative, "videos", camera, usual)

    def _template(self, key: str, template: str, default: str) -> str:
        """The template, or that of v3.0 if it is one of v2, which cannot name shared files."""
        if not self._info.is_shared or "{file_index" in template:
            return template
        self._report(key, f"{key} is {template!r}, which names no files of v3.0; using {default}")
        return default

    def numbered_data_files(self) -> dict[int, Path]:
        """Map from number to path of all `episode_N.parquet` below `data/`."""
        numbered: dict[int, Path] = {}
        for (folder, name), paths in sorted(self._by_name.items()):
            match = re.fullmatch(r"episode_(\d+)\.parquet", name)
            if folder == "data" and match:
                numbered[int(match.group(1))] = self.root / paths[0]
        return numbered

    def _locate(
        self, key: str, relative: str, folder: str, camera: str = "", usual: str | None = None
    ) -> Path:
        """The path, or the file that a template should name: of v3.0 `usual`, else by its name."""
        path = self.root / relative
        if not self._can_list:
            self.existing.add(path)
            return path
        matches = self._by_name.get((folder, path.name), [])
        if relative not in matches and not path.exists():
            candidates = [
                name
                for name in matches
                if (name == usual if usual else not camera or camera in PurePosixPath(name).parts)
            ]
            if len(candidates) != 1:
                return path
            path = self.root / candidates[0]
            problem = f"{key} gives {relative}, but the file is {candidates[0]}"
            self._report(key, f"{problem}; using the files found")
        self.existing.add(path)
        return path

    def _report(self, key: str, problem: str) -> None:
        if key not in self._reported:
            self._reported.add(key)
            message = f"{self.root}: {problem}"
            self._findings.append(LEROBOT("template_mismatch", message, field=key))

    def _values(self, number: int, span: Span | None) -> dict[str, int | str]:
        if span is not None:
            return {
                "chunk_index": span.chunk,
                "file_index": span.file,
                "episode_index": number,
            }
        chunk = number // self._info.chunks_size
        # A published v2.1 set has chunk_index for episode_chunk. Source: formats/lerobot 3.1
        return {"episode_chunk": chunk, "chunk_index": chunk, "episode_index": number}

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, str], list[str]]:
        """(`data` or `videos`, file name) to the paths with that name, relative to the data set."""
        index: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for folder in ("data", "videos") if self._can_list else ():
            # Skips broken links; on S3 the listing answers this without a request.
            for path in sorted((self.root / folder).rglob("*.*")):
                if path.is_file():
                    index[folder, path.name].append(path.relative_to(self.root).as_posix())
        return dict(index)
