"""Findings of bags."""

from vlatool.findings import FindingCodes, error, info, warning

_AGAIN = "copy the bag again if the original is longer; what is whole is read"
_PROPOSE = "correct the reference; vlatool inspect BAG --propose mapping.yaml lists what is there"
_EXCLUDE = "exclude the episode with --exclude, or leave the topic out of a mapping"

MCAP = FindingCodes(
    "mcap",
    unreadable=error(
        "A file is no bag, or cannot be read at all.",
        "copy the bag again, or exclude the episode with --exclude",
    ),
    missing_part=error(
        "A file that metadata.yaml lists is not there.", "list the files anew: ros2 bag reindex BAG"
    ),
    cut_off=warning("A file ends early, or has a damaged record; the rest is read.", _AGAIN),
    damaged_chunk=warning("A chunk is damaged; its messages are left out.", _AGAIN),
    bad_index=warning(
        "The index is missing, or differs from what is in the file.",
        "nothing to do; reading is faster after mcap recover, or rosbag reindex for ROS 1",
    ),
    too_large=error("A chunk, a file or an image is larger than what is read at once.", _EXCLUDE),
    missing_schema=warning("The schema of a topic is missing or damaged.", _EXCLUDE),
    unknown_encoding=warning("Messages are neither CDR, ROS 1, protobuf nor JSON.", _EXCLUDE),
    two_types=warning("A topic has messages of two types.", _EXCLUDE),
    bad_message=error("A message does not fit its schema.", _EXCLUDE),
    missing_topic=error("A topic of the mapping has no message.", _PROPOSE),
    missing_field=error("A reference has no numbers, images or text.", _PROPOSE),
    mixed_frames=error("Messages of a reference are of different frames.", "name the frame"),
    bad_image=error("An image is damaged, or has an unknown encoding.", _EXCLUDE),
    empty_episode=error(
        "At no time there is a value of each topic.",
        "leave the topic that is silent out of a mapping, or exclude the episode with --exclude",
    ),
    stale_value=error("A value is too old.", "raise --max-age-s, or divide by --gap-s"),
    bad_marker=warning("A message of the marker topic starts or stops no episode."),
    no_stamp=warning("Messages have no header stamp; their log time is used."),
    gaps=warning("A topic is silent for a multiple of its interval."),
    out_of_order=warning("Messages of a topic were not in the order of their times."),
    skipped=info("Messages before all joints have a value, or before the first keyframe."),
    joined=info("Messages with some of the joints; the others have their last value."),
    late_joints=warning(
        "Joints without a value in the first second of their topic are left out.",
        "name all joints of the field in a mapping: joints: {FIELD: [JOINT, ...]}",
    ),
    color_order=warning(
        "The encoding of images does not say the order of their colors.",
        "if red and blue are swapped, set bgr: false for the camera in a mapping, else bgr: true",
    ),
    clock=info("Messages, intervals and unused messages of each topic."),
    rows_dropped=info("Rows where a topic has no value yet, or has ended."),
)
