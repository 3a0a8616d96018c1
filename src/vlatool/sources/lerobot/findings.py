"""The codes of findings in LeRobot data sets. Source: formats/lerobot 11, 12."""

from vlatool.findings import FindingCode, FindingCodes

_AGAIN = "get the data set again from its origin"
_LEAVE_OUT = "get the file again, or leave the episode out with --episodes"
_BY_ROW = "nothing, if the pictures fit: vlatool pairs rows and pictures by number"
_META_SHAPE = "correct its shape in meta/info.json, or name other columns"
_META = "correct the number in meta/info.json; vlatool does not rely on it"

LEROBOT = FindingCodes(
    "lerobot",
    {
        "missing_file": FindingCode(
            "error", "A file of the data set or an episode is missing.", _AGAIN
        ),
        "lfs_pointer": FindingCode(
            "error", "A Git LFS pointer stands for a file.", "run `git lfs pull` in the data set"
        ),
        "bad_metadata": FindingCode("error", "A file in meta/ is not what it should be.", _AGAIN),
        "bad_modality": FindingCode(
            "warning",
            "meta/modality.json is not what it should be; its names are not used.",
            _AGAIN,
        ),
        "bad_parquet": FindingCode(
            "error", "A parquet file cannot be read or has no rows.", _LEAVE_OUT
        ),
        "length_mismatch": FindingCode(
            "error", "A file has another number of rows than the list of episodes says.", _LEAVE_OUT
        ),
        "missing_column": FindingCode("error", "A feature has no column in the file.", _LEAVE_OUT),
        "feature_without_column": FindingCode(
            "warning", "A declared feature is in no file.", "correct `features` in meta/info.json"
        ),
        "undeclared_column": FindingCode("info", "A column is no feature in meta/info.json."),
        "ragged_rows": FindingCode("error", "Rows of a vector differ in width.", _LEAVE_OUT),
        "missing_value": FindingCode("error", "A row has no value.", _LEAVE_OUT),
        "non_finite": FindingCode("error", "A row holds NaN or infinity.", _LEAVE_OUT),
        "not_a_vector": FindingCode("error", "A numeric column has rows of rows.", _LEAVE_OUT),
        "not_numeric": FindingCode("error", "A numeric feature holds something else.", _LEAVE_OUT),
        "frame_index_gap": FindingCode(
            "error", "frame_index does not count 0, 1, 2, ...: rows are lost or double.", _LEAVE_OUT
        ),
        "rows_unsorted": FindingCode("info", "Rows are not in the order of frame_index."),
        "index_gap": FindingCode(
            "warning", "index does not count on through the data set.", "vlatool does not use it"
        ),
        "episode_index": FindingCode(
            "warning", "Rows claim to belong to another episode.", _LEAVE_OUT
        ),
        "timestamps": FindingCode("warning", "Timestamps are not row / fps.", _BY_ROW),
        "unknown_task": FindingCode(
            "error", "task_index is missing or not in the list of tasks.", "get meta/tasks again"
        ),
        "several_tasks": FindingCode("warning", "Rows of one episode name several tasks."),
        "no_motion": FindingCode("warning", "No number changes in the whole episode.", _LEAVE_OUT),
        "missing_video": FindingCode("error", "A camera has no video of the episode.", _LEAVE_OUT),
        "video_unreadable": FindingCode("error", "A video cannot be opened.", _LEAVE_OUT),
        "video_too_short": FindingCode("error", "A video has fewer frames than rows.", _LEAVE_OUT),
        "extra_frames": FindingCode("warning", "A video has more frames than rows.", _BY_ROW),
        "video_fps": FindingCode("warning", "A video runs at another rate than the data.", _BY_ROW),
        "picture_size": FindingCode(
            "warning", "Pictures have another size than meta/info.json says."
        ),
        "stats_contradict": FindingCode(
            "warning",
            "Published statistics contradict the rows.",
            "nothing: vlatool computes its own from the rows",
        ),
        "totals_mismatch": FindingCode("warning", "A total in meta/info.json is wrong.", _META),
        "chunks": FindingCode("info", "total_chunks or chunks_size do not fit the files.", _META),
        "splits": FindingCode("info", "A split reaches beyond the episodes.", _META),
        "names_mismatch": FindingCode("info", "A feature has more or fewer names than values."),
        "version_mismatch": FindingCode("warning", "The files follow another version than stated."),
        "template_mismatch": FindingCode(
            "warning", "A path template leads nowhere; files were searched."
        ),
        "no_episode_list": FindingCode("warning", "The list of episodes is missing."),
        "unlisted_episodes": FindingCode("warning", "Episodes on disk are not in the list."),
        "field_left_out": FindingCode("warning", "A feature cannot be used and is left out."),
        "depth_camera": FindingCode("info", "A depth camera is left out."),
        "camera_without_files": FindingCode("warning", "A camera has no pictures in any episode."),
        "tasks_unreadable": FindingCode(
            "warning",
            "The list of tasks cannot be read; the list of episodes has the sentences.",
            _AGAIN,
        ),
        "unused_column": FindingCode("warning", "A column that is not used has a defect."),
        "unusable_feature": FindingCode(
            "error", "An action or observation cannot be used as it is declared.", _META_SHAPE
        ),
        "stats_unreadable": FindingCode(
            "warning", "Published statistics cannot be read; vlatool computes its own.", _AGAIN
        ),
    },
)
