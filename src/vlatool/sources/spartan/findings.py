"""Finding codes for raw Spartan episodes."""

from vlatool.findings import FindingCode, FindingCodes

_AGAIN = "download or record the episode again"
_LOOK = "inspect the recording; exclude the episode with `preprocess --exclude`"

SPARTAN = FindingCodes(
    "spartan",
    {
        "missing_file": FindingCode("error", "A required file of the episode is missing.", _AGAIN),
        "unreadable_file": FindingCode("error", "A YAML or npz file cannot be read.", _AGAIN),
        "unreadable_array": FindingCode("error", "An array of an npz file cannot be read.", _AGAIN),
        "broken_member": FindingCode(
            "error", "An npz member is truncated or fails its checksum (--full).", _AGAIN
        ),
        "object_array": FindingCode(
            "error",
            "An observation holds pickled Python objects, which are never loaded.",
            "leave the field out with --data-discard-keys",
        ),
        "ignored_objects": FindingCode(
            "info", "An unused array, such as skill_type, holds pickled objects."
        ),
        "unread_array": FindingCode("warning", "An unused array is broken or has another length."),
        "length_mismatch": FindingCode(
            "error", "An array has another number of frames than most.", _AGAIN
        ),
        "empty_episode": FindingCode("error", "The episode has no frames.", _AGAIN),
        "not_finite": FindingCode(
            "error", "A field holds NaN or infinity.", "repair it, or drop the field or the episode"
        ),
        "no_cameras": FindingCode(
            "error", "metadata.yaml names no camera that has images.", _AGAIN
        ),
        "camera_without_pictures": FindingCode(
            "warning",
            "metadata.yaml names a camera that has no images.",
            "use the other cameras, or record the episode again",
        ),
        "bad_pictures": FindingCode(
            "error", "Images of a camera are not uint8 [frames, height, width, 3].", _AGAIN
        ),
        "bad_camera_name": FindingCode(
            "error",
            "A camera name cannot be a file name in a shard.",
            "use lower-case letters, digits, dots, dashes and underscores",
        ),
        "camera_name_case": FindingCode(
            "warning", "A camera name has upper-case letters; it is used in lower case."
        ),
        "missing_calibration": FindingCode(
            "warning", "A camera has no intrinsics or extrinsics.", "samples will lack them too"
        ),
        "bad_calibration": FindingCode(
            "error", "A calibration matrix has another shape, NaN or infinity.", _AGAIN
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
            "The action vector is narrower than its fields.",
            "set --action-key-fields and --action-index-fields to the fields of the vector",
        ),
        "wide_actions": FindingCode("info", "The action vector has columns without a field."),
        "action_not_next_desired": FindingCode(
            "warning",
            "Actions differ from the desired poses of the next frame.",
            "check that actions and observations start at the same frame",
        ),
        "degenerate_rot_6d": FindingCode("warning", "A 6D rotation is not a rotation.", _LOOK),
        "rot_6d_not_unit": FindingCode(
            "warning", "A 6D rotation has rows that are not unit and orthogonal.", _LOOK
        ),
        "no_motion": FindingCode(
            "warning", "No measured pose changes in the whole episode.", _LOOK
        ),
        "timestamps_not_ascending": FindingCode("warning", "A timestamp does not ascend.", _LOOK),
        "no_instruction": FindingCode(
            "warning",
            "language_instruction is missing or empty.",
            "set --language-annotations-path; otherwise the task name is the instruction",
        ),
        "bad_field": FindingCode(
            "error",
            "An observation holds neither numbers nor text.",
            "leave the field out with --data-discard-keys",
        ),
        "success_unreadable": FindingCode(
            "warning", "summary.npz does not state the success of the episode.", _AGAIN
        ),
        "validation_episode_missing": FindingCode(
            "warning",
            "An episode to exclude is not in the source.",
            "correct the file of --validation-episodes-path",
        ),
        "not_successful": FindingCode("info", "summary.npz says that the episode failed."),
        "missing_depth_or_label": FindingCode(
            "info", "Some cameras have depth or label images and others do not."
        ),
        "duplicate_episode": FindingCode(
            "warning",
            "Two episodes have equal actions.",
            "exclude one of them with `preprocess --exclude`",
        ),
        "misnamed_episode": FindingCode(
            "warning",
            "A folder beside the episodes has a similar name but is not read.",
            "rename it to episode_<number> with a folder processed, or move it away",
        ),
        "unlistable_folder": FindingCode(
            "warning", "A folder cannot be listed.", "grant read permission and verify again"
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
