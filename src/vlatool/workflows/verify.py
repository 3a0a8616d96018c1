"""Inspects and verifies a location: any output of vlatool, or raw episodes."""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from vlatool import inspection
from vlatool.checkpoints.locations import require_weights
from vlatool.config.base import option, required_field
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.findings import SEVERITIES, Finding
from vlatool.jobs.executor import default_workers
from vlatool.plugins import FORMATS
from vlatool.recordings.check import CheckOptions
from vlatool.recordings.detect import SourceKeys, detect_source
from vlatool.recordings.propose import LEFT_OUT_LINE
from vlatool.report.facts import PageRequest, Report
from vlatool.report.text import blocks
from vlatool.results import MERGED, OPTIONAL, Result, columns, one_line
from vlatool.storage.atomic import write_text
from vlatool.storage.documents import read_yaml
from vlatool.storage.tree import size_text
from vlatool.storage.uri import location, require_existing
from vlatool.transforms.names import NameMap


class InspectConfig(SourceKeys):
    """Options of `vlatool inspect`."""

    location: str = required_field(
        "", "Raw episodes, training data, shard, run or tokenizer to inspect."
    )
    others: list[str] = option(
        [], "More sources or folders of shards; shows which cameras and fields all of them have."
    )
    episodes: str | None = option(
        None, "Raw episodes to read, such as 0:4,7; the end of a range is excluded."
    )
    rename: NameMap = option(NameMap(), "New names in raw episodes, as for `preprocess`.")
    html: str | None = option(
        None, "HTML file to write, with images and charts; for a run use `vlatool runs --html`."
    )
    html_episodes: int = option(
        3, "Number of raw episodes that the page shows in full, not in brief.", ge=0
    )
    video: bool | None = option(
        None,
        "Show videos of the episodes in full; null: as many as fit into 50 MB; true: all, some in "
        "files beside the page.",
    )
    html_samples: int = option(
        6, "Number of training samples that the page shows with images.", ge=0
    )
    tokenizer: str | None = option(
        None,
        "Run, checkpoint or published folder of the visual tokenizer that made the codes in "
        "samples; the page then shows the images that it decodes.",
    )
    propose: str | None = option(
        None,
        "YAML file to write: a mapping of your recordings, with cameras and fields, and open "
        "questions as comments.",
    )


@dataclass(frozen=True)
class InspectResult(Result):
    """Report on a location."""

    kind: str  # determines the keys of the document
    location: str
    html: str | None = field(metadata=OPTIONAL)  # page that was written, if requested
    report: Report = field(metadata=MERGED)

    def lines(self) -> list[str]:
        page = "" if self.html is None else f"page: {self.html}"
        shown = [f"{self.location}: {self.report.headline}", *blocks(self.report), page]
        return ["\n\n".join(block for block in shown if block)]


@dataclass(frozen=True)
class ProposalResult(Result):
    """The mapping that `--propose` wrote."""

    location: str
    format: str
    mapping: str
    questions: Sequence[str]  # what the recordings do not say
    left_out: Sequence[str]  # what the mapping does not use, with the reasons
    next: str

    def lines(self) -> Iterator[str]:
        yield f"{self.mapping}: check each line with a question mark"
        yield from self.questions
        if self.left_out:
            yield f"left out: {'; '.join(self.left_out)}"


def _propose(source: Path, target: Path, config: InspectConfig) -> ProposalResult:
    """Writes a mapping for the first detected format that supports mappings."""
    for name in [config.format] if config.format else FORMATS.names():
        try:
            text = FORMATS.get(name).propose(source)
        except DataError as error:
            if error.code != "data.no_episodes":
                raise
            continue
        if text is not None:
            write_text(target, text)
            return _proposal_result(source, target, name, text)
    detected = detect_source(source, config.format)  # raises if there is nothing to read
    raise DataError.at(
        source,
        f"the format {detected.format} has no mappings",
        hint="leave --propose out; to give cameras and fields other names, use --rename",
        code="data.missing",
    )


def _proposal_result(source: Path, target: Path, name: str, text: str) -> ProposalResult:
    mapping: dict[str, Any] = read_yaml(target)
    questions: list[str] = []
    if not mapping.get("action_fields"):
        questions.append("no field has a name like action or command: set action_fields")
    if not mapping.get("instruction"):
        questions.append("no instruction is stored: set instruction, or give --instruction")
    words = ["vlatool", "preprocess", name, str(source), "--mapping", str(target)]
    following = shlex.join([*words, "--output", "data"])
    has_rate = mapping.get("fps") or name == "lerobot"
    if not has_rate:
        questions.append("no rate is stored: set fps, or give --fps to preprocess")
    if not (has_rate and mapping.get("action_fields")):
        following = shlex.join(["vlatool", "inspect", str(source), "--mapping", str(target)])
    left_out = [
        line.removeprefix(LEFT_OUT_LINE) for line in text.splitlines() if LEFT_OUT_LINE in line
    ]
    return ProposalResult(str(source), name, str(target), questions, left_out, following)


def inspect(config: InspectConfig, *, reporter: Reporter = NULL) -> InspectResult | ProposalResult:
    """Reports on the content of a location; writes nothing but the HTML page.

    Broken episodes, shards and checkpoints are findings of the report if others are readable.

    Raises:
        UsageError: No location is given, or several formats find episodes.
        DataError: The content is unknown, or all of it is broken.
        StorageError: The page cannot be written.
    """
    if not config.location:
        raise UsageError(
            "no location is given",
            hint="run vlatool inspect LOCATION",
            code="usage.missing_key",
        )
    if config.others:
        return _inspect_names(config)
    path = require_weights(config.location)
    if config.propose is not None:
        return _propose(path, location(config.propose), config)
    target = None if config.html is None else location(config.html)
    if target is None:
        _check_page_options(path, "", config)
    else:
        inspection.check_target(target)
    kind, report = inspection.inspect_location(
        path, config, config.episodes, reporter, config.rename
    )
    if target is not None:
        if report.page is None:
            raise UsageError(
                f"{path}: there is no HTML page for a {kind}",
                hint="leave --html out; for runs, use `vlatool runs --html FILE`",
                code="usage.unknown_name",
            )
        _check_page_options(path, kind, config)
        request = _page_request(config)
        inspection.write_page(report, config.location, target, request, has_videos=config.video)
    return InspectResult(report.kind, config.location, config.html, report)


def _inspect_names(config: InspectConfig) -> InspectResult:
    options = {"--html": config.html, "--propose": config.propose, "--tokenizer": config.tokenizer}
    options["--video"] = "true" if config.video else None
    options["--rename"] = ", ".join([*config.rename.cameras, *config.rename.fields])
    for option_name, value in options.items():
        if value:
            raise UsageError(
                f"{option_name} works with one location only",
                hint=f"leave {option_name} out, or inspect each location on its own",
                code="usage.conflict",
            )
    locations = [config.location, *config.others]
    paths = [require_existing(text) for text in locations]
    report = inspection.inspect_names(paths, config, config.episodes)
    return InspectResult(report.kind, ", ".join(locations), None, report)


def _check_page_options(path: Path, kind: str, config: InspectConfig) -> None:
    """Raises UsageError for options that have no effect: no page is written, or one of another
    kind.
    """
    for key, needed, of in (
        ("tokenizer", "samples", "a folder of `vlatool build-dataset`"),
        ("video", "source", "raw episodes"),
    ):
        if getattr(config, key) and kind != needed:
            raise UsageError(
                f"{path}: --{key} only applies to the HTML page of {of}",
                hint=f"leave --{key} out" if kind else f"add --html PAGE, or leave --{key} out",
                code="usage.bad_value",
                details={"key": key},
            )


def _page_request(config: InspectConfig) -> PageRequest:
    decoder = None
    if config.tokenizer:
        from vlatool.tokens.decode import open_decoder

        decoder = partial(open_decoder, config.tokenizer)
    return PageRequest(config.html_episodes, config.html_samples, open_decoder=decoder)


# Findings of one code in a result; all are counted.
_MAX_PER_CODE = 100
_MAX_SHOWN = 3


class VerifyConfig(SourceKeys):
    """Options of `vlatool verify`."""

    location: str = required_field(
        "", "Raw episodes, training data, shard, run or checkpoint to verify."
    )
    episodes: str | None = option(
        None, "Raw episodes to verify, such as 0:4,7; the end of a range is excluded."
    )
    rename: NameMap = option(NameMap(), "New names in raw episodes, as for `preprocess`.")
    full: bool = option(False, "Decode every image and read every sample; slow.")
    quick: bool = option(False, "Compare only sizes and headers, no digests; fast.")
    samples: int = option(200, "Number of samples whose content is read, evenly spaced.", ge=0)
    workers: int | None = option(
        None, "Number of processes for raw episodes; null: one per processor.", ge=1
    )
    codes: bool = option(False, "List all finding codes and exit.")


@dataclass(frozen=True)
class CodesResult(Result):
    """All finding codes."""

    rows_key: ClassVar[str] = "codes"

    codes: Sequence[Mapping[str, str]]

    def lines(self) -> list[str]:
        return [columns((row["code"], row["severity"], row["meaning"]) for row in self.codes)]


@dataclass(frozen=True)
class VerifyResult(Result):
    """Findings of a verification."""

    rows_key: ClassVar[str] = "findings"

    kind: str  # of the artifact, or `source`
    location: str  # as given
    format: str | None = field(metadata=OPTIONAL)  # of a source
    whole: bool  # no finding is an error
    counts: Mapping[str, int]  # map from severity to number of findings
    codes: Mapping[str, int]  # map from code to number of findings
    checked: Mapping[str, int]  # counts of what was checked
    findings: tuple[Finding, ...]  # the first 100 of each code, in order

    @property
    def exit_code(self) -> int:
        if self.whole:
            return 0
        return DataError.exit_code

    def lines(self) -> list[str]:
        groups: dict[str, list[Finding]] = {code: [] for code in self.codes}
        for finding in self.findings:
            groups[finding.code].append(finding)
        blocks: list[str] = []
        for group in sorted(groups.values(), key=lambda group: SEVERITIES.index(group[0].severity)):
            blocks.append(self._group(group))
        return ["\n\n".join([*blocks, self._last_line()])]

    def _group(self, findings: Sequence[Finding]) -> str:
        first = findings[0]
        count = self.codes[findings[0].code]
        lines = [f"{first.severity} {first.code}"]
        if count > 1:
            lines[0] += f", {count} times"
        for finding in findings[:_MAX_SHOWN]:
            lines.append(f"  {one_line(finding.message)}")
        if count > _MAX_SHOWN:
            lines.append(f"  ... and {count - _MAX_SHOWN} more, with --json")
        if first.action:
            lines.append(f"  to do: {first.action}")
        return "\n".join(lines)

    def _last_line(self) -> str:
        parts: list[str] = []
        for severity in SEVERITIES:
            if self.counts[severity]:
                plural = "info" if severity == "info" else ""
                parts.append(counted(self.counts[severity], severity, plural))
        checked: list[str] = []
        for name, count in self.checked.items():
            if not count:
                continue
            if name == "bytes":
                checked.append(size_text(count))
                continue
            unit, *words = name.replace("pictures", "images").split("_")  # `samples_read`
            checked.append(" ".join([counted(count, unit.removesuffix("s")), *words]))
        parts.append(f"checked {', '.join(checked) or 'nothing'}")
        state = "valid" if self.whole else "invalid"
        return f"{state}: {self.location} ({'; '.join(parts)})"


def verify(config: VerifyConfig, *, reporter: Reporter = NULL) -> VerifyResult | CodesResult:
    """Checks the content of a location; writes nothing.

    Raises:
        UsageError: No location is given, options contradict each other, or several formats find
            episodes.
        DataError: The content is unknown.
    """
    if config.codes:
        return CodesResult(list(inspection.code_rows()))
    if not config.location:
        raise UsageError(
            "no location is given", hint="run vlatool verify LOCATION", code="usage.missing_key"
        )
    if config.full and config.quick:
        raise UsageError(
            "--full and --quick exclude each other", hint="choose one", code="usage.conflict"
        )
    samples = None if config.full else config.samples
    workers = config.workers or default_workers()
    options = CheckOptions(samples, config.full, config.quick, workers, reporter=reporter)
    verification = inspection.verify_location(
        require_existing(config.location),
        options,
        keys=config,
        episodes=config.episodes,
        names=config.rename,
    )
    counts = Counter[str]()
    severities = Counter[str]()
    shown: list[Finding] = []
    for finding in _each_once(verification.findings):
        counts[finding.code] += 1
        severities[finding.severity] += 1
        if counts[finding.code] <= _MAX_PER_CODE:
            shown.append(_relative(finding, verification.root))
    return VerifyResult(
        kind=verification.kind,
        location=config.location,
        format=verification.format,
        whole=not severities["error"],
        counts={severity: severities[severity] for severity in SEVERITIES},
        codes=dict(counts),
        checked=asdict(options.counts),
        findings=tuple(shown),
    )


def _each_once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings without repetitions. If both the list of files and the check of a layout miss a
    file, the finding of the layout is kept, because it says what the file was.
    """
    missing: dict[str, Finding] = {}
    seen: set[int] = set()
    for finding in findings:
        if (digest := hash((finding.code, finding.message))) in seen:
            continue
        seen.add(digest)
        path = str(finding.place.get("path", ""))
        if finding.code == "output.missing_file":
            missing[path] = finding
            continue
        if finding.severity == "error":
            missing.pop(path, None)
        yield finding
    yield from missing.values()


def _relative(finding: Finding, root: Path) -> Finding:
    """The finding with the paths of its place relative to `root`; the message keeps full paths."""
    location = dict(finding.place)
    for key in ("path", "shard"):
        path = type(root)(str(location[key])) if key in location else None
        if path is not None and path.is_relative_to(root):
            location[key] = path.relative_to(root).as_posix()
    return replace(finding, place=location)
