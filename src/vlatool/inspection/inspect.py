"""Report of a location of any kind, and its HTML page."""

from functools import partial
from pathlib import Path

from vlatool.artifacts.base import recognize
from vlatool.errors import UsageError
from vlatool.events import Reporter
from vlatool.pages.layout import GENERATOR, page
from vlatool.pages.report import PageRequest, Report
from vlatool.sources.detection import detect_source
from vlatool.sources.report import report_source
from vlatool.storage.atomic import remove_partials_of, write_text

_HEAD_BYTES = 1000


def inspect_location(
    location: Path, format_name: str | None, episodes: str | None, reporter: Reporter
) -> tuple[str, Report]:
    """Name of the kind in the table of artifacts, or `source`, and the report; `format_name`:
    format of raw episodes; None: detect it; `episodes`: raw episodes to read; None for all.
    """
    artifact = recognize(location) if format_name is None else None
    if artifact is None:
        source = detect_source(location, format_name)
        return "source", report_source(location, source, episodes, reporter)
    if episodes is not None:
        raise UsageError(
            f"{location}: is not a source of raw episodes",
            hint="leave --episodes out: it selects raw episodes",
            code="usage.no_raw_source",
        )
    return artifact.kind, artifact.inspect()


def check_target(path: Path, generator: str = GENERATOR) -> None:
    """Raises an error if a path cannot be the file of a page; called before anything is read."""
    target_error = partial(UsageError, code="usage.bad_target", details={"path": str(path)})
    if not path.name or path.is_dir():
        raise target_error(
            f"--html {path}: is a folder",
            hint="give the name of the file to write, such as page.html",
        )
    if path.is_file():
        with path.open("rb") as file:
            is_page = generator.encode() in file.read(_HEAD_BYTES)
        if not is_page:
            raise target_error(
                f"--html {path}: exists and is not a page of an earlier {generator.split()[-1]}",
                hint="choose another name, such as page.html",
            )


def write_page(report: Report, title: str, path: Path, request: PageRequest) -> None:
    """Writes the HTML page of a report that has one."""
    assert report.page is not None
    remove_partials_of(path)
    shown = report.page(request)
    write_text(path, page(title, shown.subtitle or report.headline, shown.sections))
