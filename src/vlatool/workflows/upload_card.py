"""Card of an uploaded folder: the README.md that the hub shows, made from the records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlatool.artifacts.base import contents_text
from vlatool.artifacts.lerobot.format import INFO_FILE
from vlatool.credentials import without_credentials
from vlatool.events import counted
from vlatool.jobs.downloads import contents_record
from vlatool.jobs.record import OutputRecord
from vlatool.pages.report import Report
from vlatool.storage.tree import size_text
from vlatool.workflows.upload_files import without_locations

# Options of training are in config.yaml; those of a download say nothing on the files.
_WITHOUT_OPTIONS = frozenset({"train", "finetune", "tokenizer train"})
_LEROBOT_TABLES = "data/*/*.parquet"


def card_text(
    folder: Path, report: Report, location: str, sizes: Sequence[int], license_key: str | None
) -> str:
    """Card of a folder; the same for equal records, files and arguments.

    `sizes`: sizes of the files in bytes; `license_key`: license as the hub writes it, such as
    `mit`; None: the card names none.
    """
    record = contents_record(folder)
    _, _, kind, _, name = location.split("/")
    content = contents_text(report.kind) or report.kind
    blocks = [
        _metadata(folder, str(report.facts.get("format") or report.kind), kind, license_key),
        f"# {name}",
        f"{content[0].upper()}{content[1:]}: {report.headline}.",
        "## Contents",
        *(f"```text\n{block.rstrip()}\n```" for block in report.blocks() if block.strip()),
        f"{counted(len(sizes), 'file')}, {size_text(sum(sizes))}.",
        *_origin(record),
        "## Use",
        f"```bash\nvlatool download {location} --output {name}\nvlatool verify {name}\n```",
    ]
    text = "\n\n".join(blocks) + "\n"
    # A report may name the folder itself, or locations that it was made from.
    text = without_credentials(text)
    return without_locations(text.replace(f"{folder.absolute()}/", "").replace(f"{folder}/", ""))


def _metadata(folder: Path, content: str, kind: str, license_key: str | None) -> str:
    """Header of the card, which the hub reads."""
    is_lerobot = (folder / INFO_FILE).is_file()
    tags = ["vlatool", content, *(["LeRobot"] if is_lerobot else [])]
    values: dict[str, Any] = {} if license_key is None else {"license": license_key}
    if kind == "models":
        values |= {"library_name": "vlatool", "pipeline_tag": "robotics"}
    else:
        values |= {"task_categories": ["robotics"]}
    values["tags"] = tags
    if is_lerobot:
        values["configs"] = [{"config_name": "default", "data_files": _LEROBOT_TABLES}]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _origin(record: OutputRecord | None) -> list[str]:
    """Blocks on the command that made the files; none without a record."""
    if record is None:
        return []
    made_by = f"Made by `vlatool {record.command}` of vlatool {record.version}"
    if record.command in _WITHOUT_OPTIONS:
        return ["## Origin", f"{made_by}; its options are in `config.yaml`."]
    options = _set_options(record.options)
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True) if options else ""
    block = [f"```yaml\n{text.rstrip()}\n```"] if text else []
    return ["## Origin", f"{made_by}{', with the options' if text else ''}", *block]


def _set_options(options: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        key: _set_options(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
    }
    return {key: value for key, value in values.items() if value not in (None, {}, [])}
