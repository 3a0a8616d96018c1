"""Findings of bags."""

from vlatool.findings import FindingCodes, error, info, warning

_AGAIN = "nothing: the whole part is read; copy the bag again if the original is longer"
_PROPOSE = "correct the mapping; `vlatool inspect BAG --propose mapping.yaml` lists what is there"
_EXCLUDE = "leave the topic out with a mapping, or the episode with --exclude"

MCAP = FindingCodes(
    "mcap",
    unreadable=error(
        "A file is no bag, or cannot be read at all.",
        "copy the bag again, or leave the episode out with --exclude; if it was cut off, "
        "`mcap recover`, or `rosbag reindex` for ROS 1, on a copy may help",
    ),
    missing_part=error(
        "metadata.yaml lists a file that is missing.",
        "complete the folder, or list the files anew: ros2 bag reindex BAG",
    ),
    cut_off=warning("A file ends early, or has a damaged record; the rest is read.", _AGAIN),
    damaged_chunk=warning("A chunk is damaged; its messages are left out.", _AGAIN),
    bad_index=warning(
        "The index is missing or wrong, so the whole file is read to find its messages.",
        "nothing; `mcap recover`, or `rosbag reindex` for ROS 1, makes reading faster",
    ),
    too_large=error("A chunk, a file or an image is too large to be read at once.", _EXCLUDE),
    missing_schema=warning("The schema of a topic is missing or damaged.", _EXCLUDE),
    unknown_encoding=warning("Messages are neither CDR, ROS 1, protobuf nor JSON.", _EXCLUDE),
    two_types=warning("A topic has messages of two types.", _EXCLUDE),
    bad_message=error("A message does not fit its schema.", _EXCLUDE),
    missing_topic=error("A topic has no message in a bag, or in an episode of one.", _PROPOSE),
    missing_field=error("A mapping names a part without numbers, images or text.", _PROPOSE),
    mixed_frames=error(
        "The transforms of a topic are between different frames.", "name the frame in the mapping"
    ),
    bad_image=error("An image is damaged, or has an unknown encoding.", _EXCLUDE),
    empty_episode=error(
        "There is no time at which all topics have a value.",
        "leave the silent topic out with a mapping, or the episode with --exclude",
    ),
    stale_value=error("A value is older than --max-age-s.", "raise --max-age-s, or add --gap-s"),
    bad_marker=warning("A message of the marker topic starts or stops no episode."),
    no_stamp=warning("Messages have no header stamp; their log time is used."),
    gaps=warning("A topic pauses for several of its intervals."),
    out_of_order=warning("The messages of a topic are not in the order of their times."),
    skipped=info("Messages are skipped until all joints have a value, or until a keyframe."),
    joined=info("Messages name some of the joints only; the other joints keep their last value."),
    late_joints=warning(
        "Joints that have no value in the first second of their topic are left out.",
        "name all joints of the field in a mapping: joints: {FIELD: [JOINT, ...]}",
    ),
    color_order=warning(
        "The encoding of images does not say the order of their colors.",
        "if red and blue are swapped, set bgr: false for the camera in a mapping, else bgr: true",
    ),
    clock=info("Number, interval and jitter of the messages of each topic."),
    rows_dropped=info("Rows are left out while a topic has no value yet, or no longer."),
)
