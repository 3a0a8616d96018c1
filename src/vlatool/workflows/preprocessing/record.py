"""What an output says of how it was made, without a word about the machine."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from vlatool.config.base import ConfigModel
from vlatool.jobs.record import OutputRecord
from vlatool.storage.uri import location
from vlatool.workflows.preprocessing.config import PreprocessConfig
from vlatool.workflows.preprocessing.plan import PreprocessPlan, reader_section

# Which episodes there are is to be seen in the data.
_SELECTION = ("episodes", "max_episodes")
# Published options that do not shape the data; they are written, without a value.
_ADDRESSES = (
    "output_dir",
    "num_workers",
    "ray_address",
    "ray_num_cpus",
    "output_dir_fixed_path",
    "auto_tag",
    "skip_git_tagging",
    "db_logging",
    "max_episodes_to_process",
)


def run_record(config: PreprocessConfig) -> OutputRecord:
    """The record of a run that is about to begin."""
    options = config.model_dump(mode="json", exclude={*config.no_effect_on_output, "source"})
    options["sources"] = [location(source).name for source in config.sources]
    section = reader_section(config)
    files = {key: _content(getattr(section, key)) for key in sorted(section.location_keys)}
    named = {f"{key} content": digest for key, digest in files.items() if digest}
    return OutputRecord("preprocess", {**options, "source": _dumped(section, section), **named})


def data_options(config: PreprocessConfig, plan: PreprocessPlan) -> dict[str, Any]:
    """preprocessing_config.yaml: what shaped the data and what training needs to know of them.

    Source: lbm-data 3.13.
    """
    own = config.model_dump(
        mode="json", exclude={*config.no_effect_on_output, *_SELECTION, "source", "format"}
    )
    own["camera_rotations"] = own["camera_rotations"] or None
    groups = plan.first.pose_groups
    return {
        **_dumped(plan.task.reader_config, reader_section(config)),
        **own,
        "type": config.format,
        "source_episodes": [location(source).name for source in config.sources],
        "image_resizing_method": config.image_resizing_method.upper(),
        "camera_names": list(plan.task.cameras),
        "pose_groups": [
            {key: value for key, value in vars(group).items() if value} for group in groups
        ],
        "action_fields": list(plan.first.action_fields),
        "proprioception_fields": list(plan.first.proprioception_fields),
        "fps": plan.first.fps,
        **dict.fromkeys(_ADDRESSES),
    }


def without_places(config: PreprocessConfig, value: Any) -> Any:
    """A result for a file that may be published: locations without the folders above them."""
    above = {f"{location(text).parent}/" for text in (*config.sources, config.output)}
    return _shortened(value, sorted(above - {"./", "//"}, key=len, reverse=True))


def _shortened(value: Any, prefixes: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if key != "traceback"}
        return {key: _shortened(item, prefixes) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_shortened(item, prefixes) for item in value]
    if isinstance(value, str):
        for prefix in prefixes:
            value = value.replace(prefix, "")
    return value


def _content(path: str | None) -> str:
    """Digest of a side file, such as annotations; empty without one that can be read."""
    try:
        return "" if path is None else sha256(location(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""  # the reader tells


def _dumped(section: ConfigModel, named: ConfigModel) -> dict[str, Any]:
    """Keys of the format; those that hold a file, as `named` has them, without its folders."""
    values = section.model_dump(mode="json")
    for key in named.location_keys:
        path = getattr(named, key)
        values[key] = None if path is None else location(path).name
    return values
