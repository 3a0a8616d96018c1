"""The codes of findings in raw Spartan episodes."""

from vlatool.findings import Family, Kind

_AGAIN = "download or record the episode again"
_LOOK = "look at the recording; leave the episode out with --episodes"

SPARTAN = Family(
    "spartan",
    {
        "missing_file": Kind("error", "A required file of the episode is missing.", _AGAIN),
        "unreadable_file": Kind("error", "A yaml or npz file cannot be read.", _AGAIN),
        "unreadable_array": Kind("error", "An array of an npz file cannot be read.", _AGAIN),
        "broken_member": Kind(
            "error", "An npz member is cut off or fails its checksum (--full).", _AGAIN
        ),
        "object_array": Kind(
            "error",
            "An observation holds pickled Python objects, which are never loaded.",
            "leave the field out with --data-discard-keys",
        ),
        "ignored_objects": Kind(
            "info", "An array that nobody reads, such as skill_type, holds pickled objects."
        ),
        "unread_array": Kind(
            "warning", "An array that is not used is broken or of another length."
        ),
        "length_mismatch": Kind(
            "error", "An array has another number of frames than most.", _AGAIN
        ),
        "empty_episode": Kind("error", "The episode has no frames.", _AGAIN),
        "not_finite": Kind(
            "error", "A field holds NaN or infinity.", "repair it, or discard field or episode"
        ),
        "no_cameras": Kind("error", "metadata.yaml names no camera that has pictures.", _AGAIN),
        "camera_without_pictures": Kind(
            "warning",
            "metadata.yaml names a camera that has no pictures.",
            "use the other cameras, or record the episode again",
        ),
        "bad_pictures": Kind(
            "error", "Pictures of a camera are not uint8 [frames, height, width, 3].", _AGAIN
        ),
        "bad_camera_name": Kind(
            "error",
            "A camera's name cannot be a file name in a shard.",
            "use lower-case letters, digits, dots, dashes and underscores",
        ),
        "camera_name_case": Kind(
            "warning", "A camera's name has capitals; it is used in lower case."
        ),
        "missing_calibration": Kind(
            "warning", "A camera has no intrinsics or extrinsics.", "samples will lack them too"
        ),
        "bad_calibration": Kind("error", "A calibration matrix has another shape, or NaN.", _AGAIN),
        "zero_focal_length": Kind(
            "warning", "Intrinsics have a focal length that is not positive.", _LOOK
        ),
        "odd_extrinsics": Kind("warning", "The rotation of extrinsics is not orthonormal.", _LOOK),
        "missing_actions": Kind("error", "actions.npz has no array `actions`.", _AGAIN),
        "narrow_actions": Kind(
            "error",
            "The action vector is narrower than its parts.",
            "set --action-key-fields and --action-index-fields to what it holds",
        ),
        "wide_actions": Kind("info", "The action vector has columns that no part names."),
        "action_not_next_desired": Kind(
            "warning",
            "Actions differ from the desired poses of the next frame.",
            "check that actions and observations start at the same frame",
        ),
        "degenerate_rot_6d": Kind("warning", "A 6D rotation stands for no rotation.", _LOOK),
        "rot_6d_not_unit": Kind(
            "warning", "A 6D rotation has rows that are not unit and orthogonal.", _LOOK
        ),
        "no_motion": Kind("warning", "No measured pose changes in the whole episode.", _LOOK),
        "timestamps_not_ascending": Kind("warning", "A time stamp does not ascend.", _LOOK),
        "no_instruction": Kind(
            "warning",
            "language_instruction is missing or empty.",
            "give --language-annotations-path, or the task's name in words is used",
        ),
        "bad_field": Kind(
            "error",
            "An observation holds neither numbers nor texts.",
            "leave the field out with --data-discard-keys",
        ),
        "success_unreadable": Kind(
            "warning", "summary.npz does not say whether the episode was a success.", _AGAIN
        ),
        "validation_episode_missing": Kind(
            "warning",
            "An episode to be held out is not in the source.",
            "correct the file of --validation-episodes-path",
        ),
        "not_successful": Kind("info", "summary.npz says that the episode was no success."),
        "missing_depth_or_label": Kind(
            "info", "Depth or label pictures are there for some cameras only, or one without other."
        ),
        "duplicate_episode": Kind(
            "warning", "Two episodes have equal actions.", "leave one of them out"
        ),
        "misnamed_episode": Kind(
            "warning",
            "A folder beside the episodes looks like one but is not read.",
            "rename it to episode_<number> with a folder processed, or move it away",
        ),
        "unlistable_folder": Kind(
            "warning", "A folder cannot be listed.", "make it readable, then verify again"
        ),
    },
    refusals={
        "broken_yaml": "unreadable_file",
        "broken_npz": "unreadable_array",
        "missing_field": "no_cameras",
        "missing_array": "missing_actions",
        "not_pictures": "bad_pictures",
    },
)
