"""Finding codes for LeRobot data sets. Source: formats/lerobot 11, 12."""

from vlatool.findings import FindingCodes, error, info, warning

_AGAIN = "download the data set again"
_LEAVE_OUT = "download the file again, or exclude the episode with `preprocess --exclude`"
# Of files that are whole: another download has the same values.
_CORRECT = "correct the column, or exclude the episode with `preprocess --exclude`"
_LIST = (
    "download meta/ again if it is of another revision, else correct the list of episodes, or "
    "exclude the episode with `preprocess --exclude`"
)
_ROWS = "exclude the episode with `preprocess --exclude`, or get the set from its publisher"
METADATA = "correct the value, or download the file again if it is damaged"
_BY_ROW = "none if the images match the rows: vlatool pairs them by number"
_META_SHAPE = "correct its shape in meta/info.json, or name other columns"
_META = "correct the number in meta/info.json; vlatool does not use it"

LEROBOT = FindingCodes(
    "lerobot",
    missing_file=error(
        "A file of the data set or an episode is missing.",
        "complete the download, or exclude the episode with `preprocess --exclude`",
    ),
    lfs_pointer=error("A file is a Git LFS pointer.", "run `git lfs pull` in the data set"),
    bad_metadata=error("A file in meta/ is invalid.", METADATA),
    bad_modality=warning(
        "meta/modality.json is invalid, or does not fit the features; these names are not used.",
        "correct the entry in meta/modality.json",
    ),
    bad_parquet=error(
        "A parquet file cannot be read or has no rows.",
        f"{_LEAVE_OUT}, or save what is whole: vlatool repair",
    ),
    length_mismatch=error("A file has another number of rows than the list of episodes.", _LIST),
    empty_episode=error(
        "A mapping leaves an episode without frames.",
        "exclude the episode with `preprocess --exclude`",
    ),
    missing_column=error("A feature has no column in the file.", _CORRECT),
    feature_without_column=warning(
        "No file has a declared feature.", "correct `features` in meta/info.json"
    ),
    ragged_rows=error("Rows of a vector differ in width.", _CORRECT),
    missing_value=error("A row has no value.", _CORRECT),
    non_finite=error("A row holds NaN or infinity.", _CORRECT),
    not_a_vector=error("A numeric column has nested rows.", _CORRECT),
    not_numeric=error("A numeric feature has values that are not numbers.", _CORRECT),
    frame_index_gap=error("frame_index is not 0, 1, 2, ...: rows are missing or repeated.", _ROWS),
    rows_unsorted=info("Rows are not in the order of frame_index."),
    index_gap=warning(
        "index is not continuous over the data set.", "none: vlatool does not use it"
    ),
    episode_index=error("Rows have the episode_index of another episode.", _ROWS),
    timestamps=warning("Timestamps differ from row / fps.", _BY_ROW),
    unknown_task=error(
        "task_index is missing or not in the list of tasks.",
        "add its sentence to meta/tasks, name another column with --task-column, or exclude the "
        "episode with `preprocess --exclude`",
    ),
    several_tasks=info("Rows of one episode name several tasks."),
    bad_language=warning(
        "Annotations have another form, or no time.", "annotate the data set again"
    ),
    language_left_out=info(
        "Annotations that are no sentences are left out: tool calls, those of an image."
    ),
    split_rows=error("Rows of an episode are in several places of a file.", _ROWS),
    rows_outside=error("The list of episodes names rows that a file does not have.", _LIST),
    row_offsets=warning(
        "Row numbers in the list of episodes do not fit the rows.",
        "none: vlatool takes rows by their episode_index",
    ),
    rows_elsewhere=warning(
        "Rows of an episode are in another data file than the list of episodes says.",
        "none: vlatool takes rows by their episode_index; for other readers, write the set again "
        "with --sink lerobot",
    ),
    clip_outside=error("The times of a clip are outside its video.", _LIST),
    clips_overlap=error("Two episodes have the same frames of a video.", _LIST),
    clip_gap=info("Frames of a video belong to no episode."),
    list_gap=warning(
        "The list of episodes lacks numbers.",
        "none: vlatool reads by number; for other readers, write the set again",
    ),
    file_sizes=info("A file is larger than meta/info.json says."),
    constant_dimensions=warning(
        "Dimensions of an observation or action never change.",
        "none if these parts of the robot rested; else check the recording",
    ),
    duplicate_episode=warning(
        "Two episodes have the same rows.", "leave one of them out with `preprocess --exclude`"
    ),
    no_motion=warning(
        "No value changes in the whole episode.", "exclude it with `preprocess --exclude`"
    ),
    missing_video=error("A camera has no video of the episode.", _LEAVE_OUT),
    no_videos=error(
        "No video of the data set is here.",
        "run `git lfs pull` in the data set or download it again; without images, "
        "`preprocess --camera-names '[]'` reads it as it is",
    ),
    video_unreadable=error("A video cannot be opened.", _LEAVE_OUT),
    video_too_short=error("A video has fewer frames than rows.", _LEAVE_OUT),
    extra_frames=warning("A video has more frames than rows.", _BY_ROW),
    video_fps=warning("A video has another frame rate than the data.", _BY_ROW),
    picture_size=warning("Images have another size than in meta/info.json."),
    stats_contradict=warning(
        "Published statistics differ from those of the rows.",
        "none: vlatool computes its own from the rows",
    ),
    totals_mismatch=warning("A total in meta/info.json is wrong.", _META),
    chunks=info("total_chunks or chunks_size do not match the files.", _META),
    splits=info(
        "A split exceeds the number of episodes, or is no range of them.",
        "correct the range in meta/info.json; --split reads the episodes in it",
    ),
    names_mismatch=info("A feature has more or fewer names than values."),
    version_mismatch=warning("The files have another version than stated."),
    template_mismatch=warning("A path template does not match the files, which were searched."),
    no_episode_list=warning("The list of episodes is missing."),
    unlisted_episode=error(
        "The list of episodes does not have the episode of a file.",
        "download meta/ again, or exclude the episode with `preprocess --exclude`",
    ),
    mixed_units=warning(
        "Values of some episodes are 57.3 times those of the others: radians and degrees.",
        "convert one part, or preprocess the parts separately with --episodes",
    ),
    camera_without_files=warning("A camera has no images in any episode."),
    tasks_unreadable=warning(
        "The list of tasks cannot be read; the list of episodes has the sentences.", _AGAIN
    ),
    unused_column=warning(
        "An unused column has a defect.", "none: vlatool does not use it; else correct the column"
    ),
    unusable_feature=error("An action or observation is not usable as declared.", _META_SHAPE),
    stats_unreadable=warning(
        "Published statistics cannot be read; vlatool computes its own.", _AGAIN
    ),
    no_statistics=warning(
        "The data set has no statistics.",
        "none: vlatool computes its own; for other readers, write the set again with "
        "--sink lerobot",
    ),
)
