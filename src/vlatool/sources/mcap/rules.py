"""Findings of bags."""

from vlatool.findings import FindingCodes, error, info, warning

_AGAIN = "copy the bag again, or exclude the episode with --exclude"
_CHANGE = "change the mapping: vlatool inspect BAG --propose mapping.yaml writes one"

MCAP = FindingCodes(
    "mcap",
    unreadable=error("A file is no bag, or cannot be read at all.", _AGAIN),
    missing_part=error("A file that metadata.yaml lists is not there.", _AGAIN),
    cut_off=warning("A file ends early, or has a damaged record; the rest is read.", _AGAIN),
    damaged_chunk=warning("A chunk is damaged; its messages are left out.", _AGAIN),
    bad_index=warning("The index is missing, or differs from what is in the file."),
    too_large=error("A chunk or an image is larger than what is read at once.", _AGAIN),
    missing_schema=warning("The schema of a topic is missing or damaged.", _CHANGE),
    unknown_encoding=warning("Messages are neither CDR, ROS 1, protobuf nor JSON.", _CHANGE),
    two_types=warning("A topic has messages of two types.", _CHANGE),
    bad_message=error("A message does not fit its schema.", _AGAIN),
    missing_topic=error("A topic of the mapping has no message.", _CHANGE),
    missing_field=error("A reference has no numbers, images or text.", _CHANGE),
    bad_image=error("An image is damaged, or has an unknown encoding.", _CHANGE),
    unread_images=warning("Images of a topic cannot be decoded; it is no camera.", _CHANGE),
    empty_episode=error("At no time there is a value of each topic.", _CHANGE),
    stale_value=error("A value is too old.", "raise --max-age-s, or divide by --gap-s"),
    bad_marker=warning("A message of the marker topic starts or stops no episode."),
    no_stamp=warning("Messages have no header stamp; their log time is used."),
    gaps=warning("A topic is silent for a multiple of its interval."),
    out_of_order=warning("Messages of a topic were not in the order of their times."),
    skipped=warning("Messages without the joints, or before the first keyframe."),
    clock=info("Messages, intervals and unused messages of each topic."),
    rows_dropped=info("Rows where a topic has no value yet, or has ended."),
    left_out=info("Topics, attachments and metadata that are not read."),
)
