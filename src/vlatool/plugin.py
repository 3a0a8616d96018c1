"""Everything that you import to write a reader or a model type; these names stay stable.

A reader may be a single file: `vlatool preprocess ./reader.py:Reader SOURCE`
(docs/guides/plugins.md). Names that need torch are in `vlatool.models.policy` (`RoboticsPolicy`)
and `vlatool.models.weights`.
"""

from pathlib import Path

from vlatool.config.base import (
    ConfigModel,
    Violation,
    derivation_rules,
    derived_field,
    option,
)
from vlatool.datasets.image_shards.images_reader import ImageFiles as ImageFrames
from vlatool.episode import (
    Array,
    Clip,
    Episode,
    EpisodeRef,
    FieldSpec,
    FrameSource,
    LanguageSpan,
    StoredPart,
    Survey,
)
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsAssets, assets_of
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.media.frames import VideoFrames, probe_video
from vlatool.models.base import (
    Batch,
    Loss,
    ModelType,
    Objective,
    OptimizerSpec,
    Part,
    StepContext,
)
from vlatool.models.published import Layout, PublishedFiles, PublishedModel, WeightsOrigin
from vlatool.recordings.base import FormatReader, merge_surveys, no_episodes, survey_by_reading
from vlatool.storage.cache import local_copy
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import as_native_file

__all__ = [
    "Array",
    "Batch",
    "Clip",
    "ConfigModel",
    "DataError",
    "DecodedSample",
    "Episode",
    "EpisodeRef",
    "FieldSpec",
    "Finding",
    "FindingCodes",
    "FormatReader",
    "FrameSource",
    "ImageFrames",
    "LanguageSpan",
    "Layout",
    "Loss",
    "ModelType",
    "Objective",
    "OptimizerSpec",
    "Part",
    "PublishedFiles",
    "PublishedModel",
    "RoboticsAssets",
    "RoboticsDataConfig",
    "StepContext",
    "StoredPart",
    "Survey",
    "VideoFrames",
    "Violation",
    "WeightsOrigin",
    "assets_of",
    "derivation_rules",
    "derived_field",
    "local_copy",
    "merge_surveys",
    "natural_key",
    "no_episodes",
    "option",
    "probe_video",
    "read_table",
    "survey_by_reading",
    "video",
]


def read_table(path: Path) -> dict[str, Array]:
    """Reads a CSV or parquet file; returns its columns by name, as numbers [F] or texts [F].

    Raises:
        DataError: The file cannot be read, or a column has neither numbers nor texts.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(as_native_file(path))
        else:
            table = csv.read_csv(as_native_file(path))
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError.at(
            path,
            f"cannot be read as a table: {error}",
            hint="write the table as CSV with a header line, or as parquet",
            code="data.broken",
        ) from error
    columns: dict[str, Array] = {}
    for name in table.column_names:
        values = table[name].to_numpy()
        columns[name] = values.astype(str) if values.dtype == object else values
    return columns


def video(path: Path) -> VideoFrames:
    """Opens a video file as the images of a camera; DataError if it is no video.

    Frames are decoded when they are asked for.
    """
    clip = Clip(path)
    return VideoFrames(clip, probe_video(clip).num_frames)
