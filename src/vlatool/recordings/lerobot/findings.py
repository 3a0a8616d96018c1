"""Finding codes for LeRobot data sets. Source: formats/lerobot 11, 12."""

from vlatool.findings import FindingCodes, error, info, warning

_AGAIN = "download the data set again"
_LEAVE_OUT = "download the file again, or leave the episode out with `preprocess --exclude`"
# For files that are whole: another download has the same values.
_CORRECT = "correct the column, or leave the episode out with `preprocess --exclude`"
_LIST = (
    "download meta/ again: it may be from another revision; or leave the episode out with "
    "`preprocess --exclude`"
)
_ROWS = "leave the episode out with `preprocess --exclude`, and tell the publisher of the data set"
METADATA = "correct the value, or download the file again if it is damaged"
_BY_ROW = "nothing, if row N belongs to image N: vlatool pairs them by number"
_META_SHAPE = "correct its shape in meta/info.json, or name the columns to use yourself"
_META = "nothing: vlatool does not use this number; correct it in meta/info.json for others"

LEROBOT = FindingCodes(
    "lerobot",
    missing_file=error(
        "A file of the data set or an episode is missing.",
        "complete the download, or leave the episode out with `preprocess --exclude`",
    ),
    lfs_pointer=error("A file is only a Git LFS pointer.", "run `git lfs pull` in the data set"),
    bad_metadata=error("A file in meta/ is invalid.", METADATA),
    bad_modality=warning(
        "An entry of meta/modality.json is invalid or does not fit the features; it is ignored.",
        "correct the entry in meta/modality.json",
    ),
    bad_parquet=error(
        "A parquet file cannot be read or has no rows.",
        f"{_LEAVE_OUT}; `vlatool repair` recovers a file that was cut off",
    ),
    length_mismatch=error("A file has another number of rows than the list of episodes.", _LIST),
    empty_episode=error(
        "With this mapping, an episode has no frames.",
        "leave the episode out with `preprocess --exclude`",
    ),
    missing_column=error("The file has no column for a feature.", _CORRECT),
    feature_without_column=warning(
        "meta/info.json declares a feature that no file has.",
        "correct `features` in meta/info.json",
    ),
    ragged_rows=error("The rows of a vector have different widths.", _CORRECT),
    missing_value=error("A row has no value.", _CORRECT),
    non_finite=error("A row has NaN or infinity.", _CORRECT),
    not_a_vector=error("The rows of a numeric column are nested lists.", _CORRECT),
    not_numeric=error("A numeric feature has values that are not numbers.", _CORRECT),
    frame_index_gap=error("frame_index is not 0, 1, 2, ...: rows are missing or repeated.", _ROWS),
    rows_deleted=warning("Rows at the start were deleted; images are found by frame_index."),
    rows_unsorted=info("Rows are not in the order of frame_index."),
    index_gap=warning(
        "The column index is not continuous over the data set.",
        "nothing: vlatool does not use this column",
    ),
    episode_index=error("Rows have the episode_index of another episode.", _ROWS),
    timestamps=warning("Timestamps do not fit the frame rate.", _BY_ROW),
    unknown_task=error(
        "task_index is missing or not in the list of tasks.",
        "add its sentence to meta/tasks, name another column with --task-column, or leave the "
        "episode out with `preprocess --exclude`",
    ),
    several_tasks=info("The rows of an episode name several tasks."),
    bad_language=warning(
        "Annotations have an unknown form, or no time.", "annotate the data set again"
    ),
    language_left_out=info("Annotations that are no sentences are left out, such as tool calls."),
    split_rows=error("The rows of an episode are in several places of a file.", _ROWS),
    rows_outside=error("The list of episodes names rows that a file does not have.", _LIST),
    row_offsets=warning(
        "The row numbers in the list of episodes are wrong.",
        "nothing: vlatool finds rows by their episode_index",
    ),
    rows_elsewhere=warning(
        "The rows of an episode are in another data file than the list of episodes says.",
        "nothing: vlatool finds rows by their episode_index; to repair the set for other readers, "
        "write it again with --sink lerobot",
    ),
    clip_outside=error("The list of episodes gives times outside of a video.", _LIST),
    clips_overlap=error("Two episodes use the same frames of a video.", _LIST),
    clip_gap=info("Some frames of a video belong to no episode."),
    list_gap=warning(
        "The list of episodes skips numbers.",
        "nothing: vlatool reads by number; for other readers, write the set again",
    ),
    file_sizes=info("A file is larger than the limit in meta/info.json."),
    constant_dimensions=warning(
        "Some dimensions of an observation or action never change.",
        "nothing, if these parts of the robot did not move; else check the recording",
    ),
    duplicate_episode=warning(
        "Two episodes have the same rows.", "leave one of them out with `preprocess --exclude`"
    ),
    no_motion=warning(
        "Nothing moves in the whole episode.", "leave it out with `preprocess --exclude`"
    ),
    missing_video=error("A camera has no video of the episode.", _LEAVE_OUT),
    no_videos=error(
        "All videos of the data set are missing.",
        "run `git lfs pull` in the data set, or download it again; --camera-names none reads it "
        "without images",
    ),
    video_unreadable=error(
        "A video cannot be opened.",
        f"{_LEAVE_OUT}; `untrunc` mends one without its index",
    ),
    video_too_short=error("A video has fewer frames than rows.", _LEAVE_OUT),
    rows_cut=warning("A video has a few frames fewer than rows; the last rows are left out."),
    extra_frames=warning("A video has more frames than rows.", _BY_ROW),
    video_fps=warning("A video has another frame rate than the data.", _BY_ROW),
    picture_size=warning("Images have another size than meta/info.json says."),
    totals_mismatch=warning("A total in meta/info.json is wrong.", _META),
    chunks=info("total_chunks or chunks_size do not match the files.", _META),
    splits=info(
        "A split names episodes that do not exist, or is not a range.",
        "correct the range in meta/info.json: --split reads these episodes",
    ),
    names_mismatch=info("A feature has more or fewer names than values."),
    version_mismatch=warning(
        "The files have the layout of another version than meta/info.json states."
    ),
    template_mismatch=warning(
        "A path template in meta/info.json does not lead to the files; they were found by name."
    ),
    no_episode_list=warning("The list of episodes is missing."),
    unlisted_episode=error(
        "A file belongs to an episode that is not in the list of episodes.",
        "download meta/ again, or leave the episode out with `preprocess --exclude`",
    ),
    camera_without_files=warning("A camera has no images in any episode."),
    tasks_unreadable=warning(
        "The list of tasks cannot be read; the sentences of the list of episodes are used.", _AGAIN
    ),
    unused_column=warning(
        "A column that is not used has a defect.", "nothing, unless you need this column"
    ),
    unusable_feature=error(
        "An action or observation cannot be used as meta/info.json declares it.", _META_SHAPE
    ),
    stats_unreadable=warning(
        "The published statistics cannot be read; vlatool computes its own.", _AGAIN
    ),
    no_statistics=warning(
        "The data set has no statistics.",
        "nothing: vlatool computes its own; for other readers, write the set again with "
        "--sink lerobot",
    ),
)
