"""What follows from the data for the section `data`: cameras, fields, steps, widths.

`derive_data` fills in the keys that are not set, and checks the set ones against the data.
"""

from collections.abc import Sequence
from typing import Any

from vlatool.config.coerce import value_text
from vlatool.episode import NO_CAMERAS, listed_cameras
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter, counted
from vlatool.formats.commands import named_commands
from vlatool.loading.robotics.config import RoboticsDataConfig, image_names
from vlatool.loading.robotics.info import RoboticsInfo
from vlatool.plugins import did_you_mean
from vlatool.report.text import few_text
from vlatool.transforms.augmentation import central_box
from vlatool.transforms.names import name_end
from vlatool.transforms.normalize import field_width

# Number of fields that a message lists.
_MAX_LISTED = 40


def derive_data(config: RoboticsDataConfig, info: RoboticsInfo) -> RoboticsDataConfig:
    """Returns the section with all derived keys; DataError if the data lack what it asks for."""
    _check_renames(config, info)
    cameras = config.camera_names or _cameras(config, info)
    indices = config.image_indices or _agreed(info, "image_indices")
    actions = config.action_fields or _fields(config, info, "action_fields")
    observed = config.proprioception_fields or _fields(config, info, "proprioception_fields")
    past = config.lowdim_past_timesteps
    if past is None:
        past = info.past
    future = config.lowdim_future_timesteps
    if future is None:
        future = info.future
    normalization = config.normalization.model_copy(
        update={
            "include_fields": [*observed, *actions],
            "lowdim_past_timesteps": info.statistics_past,
            "lowdim_future_timesteps": info.future,
        }
    )
    episodes = config.episodes
    windows = [dataset.windows for dataset in info.sets if dataset.windows is not None]
    if episodes:
        episodes = windows[0].numbers
    derived = config.model_copy(
        update={
            "camera_names": list(cameras),
            "image_indices": list(indices),
            "windows": config.windows.model_copy(update=_common_windows(info)),
            "episodes": episodes,
            "image_names": image_names(listed_cameras(cameras), indices),
            "action_fields": list(actions),
            "proprioception_fields": list(observed),
            "normalization": normalization,
            "lowdim_past_timesteps": past,
            "lowdim_future_timesteps": future,
            "action_dim": sum(info.widths(actions)),
            "proprioception_dim": sum(info.widths(observed)),
        }
    )
    _check(derived, config, info)
    return derived


def _check_renames(config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    """Raises an error for names of `data.rename` that no data set has; validation data may."""
    cameras = _all_cameras(info)
    fields = [*info.statistics, *info.left_out]
    unused = config.rename.unmatched(cameras, fields)
    if unused and not config.cameras_are_known:
        raise DataError(
            f"data.rename.{unused[0]}: none of your data sets has this name; they have cameras "
            f"{', '.join(cameras) or 'none'} and fields {few_text(fields, _MAX_LISTED)}",
            hint=did_you_mean(unused[0].partition("=")[2], [*cameras, *fields]),
            code="data.unknown_field",
        )


def _cameras(config: RoboticsDataConfig, info: RoboticsInfo) -> list[str]:
    """Cameras of all data sets, which must agree; with padding, cameras of any of them; `none` if
    all were preprocessed without images.
    """
    if all(dataset.options.get("camera_names") == [] for dataset in info.sets):
        return [NO_CAMERAS]
    if config.pad_missing_images:
        return _all_cameras(info)
    return _agreed(info, "camera_names")


def _all_cameras(info: RoboticsInfo) -> list[str]:
    cameras: dict[str, None] = {}
    for dataset in info.sets:
        cameras |= dict.fromkeys(map(str, dataset.cameras))
    return list(cameras)


def _fields(config: RoboticsDataConfig, info: RoboticsInfo, key: str) -> list[str]:
    """Fields that the data sets name; with padding, the fields of all of them."""
    if config.pad_missing_fields:
        return list(info.options.get(key) or [])
    return _agreed(info, key)


def _agreed(info: RoboticsInfo, key: str) -> list[Any]:
    """Values of an option, which must be the same in all data sets."""
    first = list(info.sets[0].options.get(key) or [])
    for dataset in info.sets[1:]:
        values = list(dataset.options.get(key) or [])
        if values != first:
            hint = f"set data.{key}"
            if key != "image_indices":
                kind = "images" if key == "camera_names" else "fields"
                hint += f", data.rename (see `vlatool inspect A B`) or data.pad_missing_{kind}"
            raise DataError(
                f"your data sets have different {key}: {first} and {values}",
                hint=hint,
                code="data.mismatch",
            )
    return first


def _common_windows(info: RoboticsInfo) -> dict[str, Any]:
    """Keys of the windows of frames that are the same in all data sets."""
    common: dict[str, Any] | None = None
    for dataset in info.sets:
        if dataset.windows is not None:
            keys = dataset.windows.keys.model_dump()
            if common is None:
                common = keys
            common = {key: value for key, value in common.items() if keys[key] == value}
    return common or {}


def _check(derived: RoboticsDataConfig, config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    chunk = (derived.lowdim_future_timesteps or 0) + 1
    if derived.max_delay >= chunk:
        raise UsageError(
            f"data.max_delay is {derived.max_delay}, but a chunk has {counted(chunk, 'step')}",
            hint="set data.max_delay to at most half of the steps of a chunk",
            code="usage.bad_value",
        )
    if not derived.action_fields:
        raise _no_actions(info)
    _check_images(derived, info)
    for key, available in (
        ("lowdim_past_timesteps", info.past),
        ("lowdim_future_timesteps", info.future),
    ):
        if getattr(derived, key) > available:
            raise DataError(
                f"data.{key} is {getattr(derived, key)}, but the windows have {available}",
                hint=f"lower data.{key}, or make larger windows: with data.windows for frames, "
                "with `vlatool preprocess` for shards",
                code="data.mismatch",
            )
    for key in ("action_dim", "proprioception_dim"):
        configured = getattr(config, key)
        if configured not in (None, getattr(derived, key)):
            raise DataError(
                f"data.{key} is {configured}, but the fields have {getattr(derived, key)} "
                "dimensions",
                hint=f"remove data.{key}",
                code="data.mismatch",
            )


def _no_actions(info: RoboticsInfo) -> DataError:
    """Error with all fields, and a guess at the predicted and the observed ones."""
    widths = {name: field_width(name, entry) for name, entry in info.statistics.items()}
    listed = [f"{name} ({width})" for name, width in widths.items()]
    text = ", ".join(listed[:_MAX_LISTED])
    if len(listed) > _MAX_LISTED:
        text += f" and {len(listed) - _MAX_LISTED} more"
    actions = [name for name in widths if "action" in name] or [*named_commands(widths)]
    observed = [name for name in widths if name not in actions and "desired" not in name]
    options: list[str] = []
    for key, names in (
        ("data.action_fields", actions[:2]),
        ("data.proprioception_fields", observed[:2]),
    ):
        options.append(f"--{key} {','.join(names) if actions else 'NAME'}")
    return DataError(
        f"your data do not say which fields are actions; they have (dimensions): {text}",
        hint=f"name predicted and observed fields, such as {' '.join(options)}",
        code="data.missing",
        details={"known": widths},
    )


def _check_images(config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    """Raises an error if a data set lacks a configured camera or image index.

    With padding, it is enough if one data set has a camera. Padded validation data may lack some
    cameras, but not all.
    """
    cameras = [dataset.cameras for dataset in info.sets]
    if config.pad_missing_images:
        available = _all_cameras(info)
        if config.cameras_are_known and not set(config.cameras).isdisjoint(available):
            available = config.cameras
        # A data set that names no cameras may have any.
        cameras = [available if all(cameras) else []]
    indices = [list(dataset.options.get("image_indices") or []) for dataset in info.sets]
    names = [dataset.name for dataset in info.sets]
    _check_names("camera_names", config.cameras, cameras, names)
    _check_names("image_indices", config.image_indices, indices, names)

    shape = config.augmentation.crop_shape
    sizes: set[tuple[int, int]] = set()
    for dataset in info.sets:
        if dataset.image_size is not None:
            sizes.add(dataset.image_size)
    if shape is not None:
        for width, height in sizes:
            central_box((height, width), shape)
    if len(sizes) > 1 and (shape is None or max(shape) <= 1):
        listed = ", ".join(map(value_text, sorted(sizes, key=str)))
        raise DataError(
            f"your data sets have images of different sizes (width, height): {listed}",
            hint="preprocess them with the same --resize-images-size, or crop to a size in pixels "
            "with data.augmentation.image.crop",
            code="data.mismatch",
        )


def _check_names(
    key: str, values: Sequence[Any], available: Sequence[Sequence[Any]], names: Sequence[str]
) -> None:
    """Raises an error if a data set that lists its values of a key lacks one of `values`.

    Args:
        key: Key of the section.
        values: Its values.
        available: Values of each data set (empty: unknown), or the values of all together.
        names: Names of the data sets.
    """
    for number, present in enumerate(available):
        missing = [value for value in values if present and value not in present]
        if not missing:
            continue
        first = missing[0]
        if any(first in row for row in available):
            hint = f"remove it from data.{key}"
            if key == "camera_names":
                hint += ", or set data.pad_missing_images"
        else:
            hint = did_you_mean(str(first), [str(value) for value in present])
        if key == "camera_names":
            spare = [name for name in present if name not in values]
            alike = [name for name in spare if name_end(name) == name_end(first)] or spare
            if len(alike) == 1:
                hint = f"rename it with --data.rename cameras.{first}={alike[0]}, or {hint}"
        dataset = names[number] if len(available) == len(names) > 1 else "your training data"
        raise DataError(
            f"data.{key}: {first!r} is not in {dataset}, only {few_text(list(map(str, present)))}",
            hint=hint,
            code="data.unknown_field",
        )


def report_padding(config: RoboticsDataConfig, info: RoboticsInfo, reporter: Reporter) -> None:
    """Counts what is padded because whole data sets lack it, by their manifests."""
    lacking: dict[str, list[int]] = {}  # numbers of the data sets, by what they lack
    fields = {*config.action_fields, *config.proprioception_fields}
    for number, dataset in enumerate(info.sets):
        if dataset.options.get("camera_names") is not None:
            for camera in config.cameras:
                if camera not in dataset.cameras:
                    lacking.setdefault(f"black images of {camera}", []).append(number)
        for name in sorted(fields & dataset.padded):
            lacking.setdefault(f"zeros as {name}", []).append(number)
    for text, numbers in lacking.items():
        count = sum(info.datasets[number].size for number in numbers)
        sets = few_text([info.sets[number].name for number in numbers])
        reporter.note(f"{text} in {count} of {counted(info.num_samples, 'sample')}: {sets}")
