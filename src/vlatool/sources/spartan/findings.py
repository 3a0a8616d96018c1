"""The codes of findings in raw Spartan episodes."""

from vlatool.findings import FindingCode, FindingCodes

_AGAIN = "download or record the episode again"
_LOOK = "look at the recording; leave the episode out with --episodes"

SPARTAN = FindingCodes(
    "spartan",
    {
        "missing_file": FindingCode("error", "A required file of the episode is missing.", _AGAIN),
        "unreadable_file": FindingCode("error", "A yaml or npz file cannot be read.", _AGAIN),
        "unreadable_array": FindingCode("error", "An array of an npz file cannot be read.", _AGAIN),
        "broken_member": FindingCode(
            "error", "An npz member is cut off or fails its checksum (--full).", _AGAIN
        ),
        "object_array": FindingCode(
            "error",
            "An observation holds pickled Python objects, which are never loaded.",
            "leave the field out with --data-discard-keys",
        ),
        "ignored_objects": FindingCode(
            "info", "An array that nobody reads, such as skill_type, holds pickled objects."
        ),
        "unread_array": FindingCode(
            "warning", "An array that is not used is broken or of another length."
        ),
        "length_mismatch": FindingCode(
            "error", "An array has another number of frames than most.", _AGAIN
        ),
        "empty_episode": FindingCode("error", "The episode has no frames.", _AGAIN),
        "not_finite": FindingCode(
            "error", "A field holds NaN or infinity.", "repair it, or discard field or episode"
        ),
        "no_cameras": FindingCode(
            "error", "metadata.yaml names no camera that has pictures.", _AGAIN
        ),
        "camera_without_pictures": FindingCode(
            "warning",
            "metadata.yaml names a camera that has no pictures.",
            "use the other cameras, or record the episode again",
        ),
        "bad_pictures": FindingCode(
            "error", "Pictures of a camera are not uint8 [frames, height, width, 3].", _AGAIN
        ),
        "bad_camera_name": FindingCode(
            "error",
            "A camera's name cannot be a file name in a shard.",
            "use lower-case letters, digits, dots, dashes and underscores",
        ),
        "camera_name_case": FindingCode(
            "warning", "A camera's name has capitals; it is used in lower case."
        ),
        "missing_calibration": FindingCode(
            "warning", "A camera has no intrinsics or extrinsics.", "samples will lack them too"
        ),
        "bad_calibration": FindingCode(
            "error", "A calibration matrix has another shape, or NaN.", _AGAIN
        ),
        "zero_focal_length": FindingCode(
            "warning", "Intrinsics have a focal length that is not positive.", _LOOK
        ),
        "odd_extrinsics": FindingCode(
            "warning", "The rotation of extrinsics is not orthonormal.", _LOOK
        ),
        "missing_actions": FindingCode("error", "actions.npz has no array `actions`.", _AGAIN),
        "narrow_actions": FindingCode(
            "error",
            "The action vector is narrower than its parts.",
            "set --action-key-fields and --action-index-fields to what it holds",
        ),
        "wide_actions": FindingCode("info", "The action vector has columns that no part names."),
        "action_not_next_desired": FindingCode(
            "warning",
            "Actions differ from the desired poses of the next frame.",
            "check that actions and observations start at the same frame",
        ),
        "degenerate_rot_6d": FindingCode("warning", "A 6D rotation stands for no rotation.", _LOOK),
        "rot_6d_not_unit": FindingCode(
            "warning", "A 6D rotation has rows that are not unit and orthogonal.", _LOOK
        ),
        "no_motion": FindingCode(
            "warning", "No measured pose changes in the whole episode.", _LOOK
        ),
        "timestamps_not_ascending": FindingCode("warning", "A time stamp does not ascend.", _LOOK),
        "no_instruction": FindingCode(
            "warning",
            "language_instruction is missing or empty.",
            "give --language-annotations-path, or the task's name in words is used",
        ),
        "bad_field": FindingCode(
            "error",
            "An observation holds neither numbers nor texts.",
            "leave the field out with --data-discard-keys",
        ),
        "success_unreadable": FindingCode(
            "warning", "summary.npz does not say whether the episode was a success.", _AGAIN
        ),
        "validation_episode_missing": FindingCode(
            "warning",
            "An episode to be held out is not in the source.",
            "correct the file of --validation-episodes-path",
        ),
        "not_successful": FindingCode("info", "summary.npz says that the episode was no success."),
        "missing_depth_or_label": FindingCode(
            "info", "Depth or label pictures are there for some cameras only, or one without other."
        ),
        "duplicate_episode": FindingCode(
            "warning", "Two episodes have equal actions.", "leave one of them out"
        ),
        "misnamed_episode": FindingCode(
            "warning",
            "A folder beside the episodes looks like one but is not read.",
            "rename it to episode_<number> with a folder processed, or move it away",
        ),
        "unlistable_folder": FindingCode(
            "warning", "A folder cannot be listed.", "make it readable, then verify again"
        ),
    },
    error_codes={
        "broken_yaml": "unreadable_file",
        "broken_npz": "unreadable_array",
        "missing_field": "no_cameras",
        "missing_array": "missing_actions",
        "not_pictures": "bad_pictures",
    },
)
