"""The codes of findings in LeRobot data sets. Source: lerobot-format 11, 12."""

from vlatool.findings import Family, Kind

_AGAIN = "get the data set again from its origin"
_LEAVE_OUT = "get the file again, or leave the episode out with --episodes"
_BY_ROW = "nothing, if the pictures fit: vlatool pairs rows and pictures by number"
_META_SHAPE = "correct its shape in meta/info.json, or name other columns"
_META = "correct the number in meta/info.json; vlatool does not rely on it"

LEROBOT = Family(
    "lerobot",
    {
        "missing_file": Kind("error", "A file of the data set or an episode is missing.", _AGAIN),
        "lfs_pointer": Kind(
            "error", "A Git LFS pointer stands for a file.", "run `git lfs pull` in the data set"
        ),
        "bad_metadata": Kind("error", "A file in meta/ is not what it should be.", _AGAIN),
        "bad_modality": Kind(
            "warning",
            "meta/modality.json is not what it should be; its names are not used.",
            _AGAIN,
        ),
        "bad_parquet": Kind("error", "A parquet file cannot be read or has no rows.", _LEAVE_OUT),
        "length_mismatch": Kind(
            "error", "A file has another number of rows than the list of episodes says.", _LEAVE_OUT
        ),
        "missing_column": Kind("error", "A feature has no column in the file.", _LEAVE_OUT),
        "feature_without_column": Kind(
            "warning", "A declared feature is in no file.", "correct `features` in meta/info.json"
        ),
        "undeclared_column": Kind("info", "A column is no feature in meta/info.json."),
        "ragged_rows": Kind("error", "Rows of a vector differ in width.", _LEAVE_OUT),
        "missing_value": Kind("error", "A row has no value.", _LEAVE_OUT),
        "non_finite": Kind("error", "A row holds NaN or infinity.", _LEAVE_OUT),
        "not_a_vector": Kind("error", "A numeric column has rows of rows.", _LEAVE_OUT),
        "not_numeric": Kind("error", "A numeric feature holds something else.", _LEAVE_OUT),
        "frame_index_gap": Kind(
            "error", "frame_index does not count 0, 1, 2, ...: rows are lost or double.", _LEAVE_OUT
        ),
        "rows_unsorted": Kind("info", "Rows are not in the order of frame_index."),
        "index_gap": Kind(
            "warning", "index does not count on through the data set.", "vlatool does not use it"
        ),
        "episode_index": Kind("warning", "Rows claim to belong to another episode.", _LEAVE_OUT),
        "timestamps": Kind("warning", "Timestamps are not row / fps.", _BY_ROW),
        "unknown_task": Kind(
            "error", "task_index is missing or not in the list of tasks.", "get meta/tasks again"
        ),
        "several_tasks": Kind("warning", "Rows of one episode name several tasks."),
        "no_motion": Kind("warning", "No number changes in the whole episode.", _LEAVE_OUT),
        "missing_video": Kind("error", "A camera has no video of the episode.", _LEAVE_OUT),
        "video_unreadable": Kind("error", "A video cannot be opened.", _LEAVE_OUT),
        "video_too_short": Kind("error", "A video has fewer frames than rows.", _LEAVE_OUT),
        "extra_frames": Kind("warning", "A video has more frames than rows.", _BY_ROW),
        "video_fps": Kind("warning", "A video runs at another rate than the data.", _BY_ROW),
        "picture_size": Kind("warning", "Pictures have another size than meta/info.json says."),
        "stats_contradict": Kind(
            "warning",
            "Published statistics contradict the rows.",
            "nothing: vlatool computes its own from the rows",
        ),
        "totals_mismatch": Kind("warning", "A total in meta/info.json is wrong.", _META),
        "chunks": Kind("info", "total_chunks or chunks_size do not fit the files.", _META),
        "splits": Kind("info", "A split reaches beyond the episodes.", _META),
        "names_mismatch": Kind("info", "A feature has more or fewer names than values."),
        "version_mismatch": Kind("warning", "The files follow another version than stated."),
        "template_mismatch": Kind("warning", "A path template leads nowhere; files were searched."),
        "no_episode_list": Kind("warning", "The list of episodes is missing."),
        "unlisted_episodes": Kind("warning", "Episodes on disk are not in the list."),
        "field_left_out": Kind("warning", "A feature cannot be used and is left out."),
        "depth_camera": Kind("info", "A depth camera is left out."),
        "camera_without_files": Kind("warning", "A camera has no pictures in any episode."),
        "tasks_unreadable": Kind(
            "warning",
            "The list of tasks cannot be read; the list of episodes has the sentences.",
            _AGAIN,
        ),
        "unused_column": Kind("warning", "A column that is not used has a defect."),
        "unusable_feature": Kind(
            "error", "An action or observation cannot be used as it is declared.", _META_SHAPE
        ),
        "stats_unreadable": Kind(
            "warning", "Published statistics cannot be read; vlatool computes its own.", _AGAIN
        ),
    },
)
