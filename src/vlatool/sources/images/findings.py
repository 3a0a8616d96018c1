"""The codes of findings in folders of pictures."""

from vlatool.findings import FindingCode, FindingCodes

_AGAIN = "get or record the picture again, or leave the episode out with --episodes"
_CONVERTED = "nothing, if the colours are right: it is converted to RGB"

IMAGES = FindingCodes(
    "images",
    {
        "no_pictures": FindingCode(
            "error", "The folder of an episode holds no picture.", "leave it out with --episodes"
        ),
        "picture_unreadable": FindingCode(
            "error", "A picture is cut off, damaged or none.", _AGAIN
        ),
        "picture_too_large": FindingCode(
            "error", "The file of a picture is larger than 256 MiB.", _AGAIN
        ),
        "missing_file": FindingCode("error", "A picture is a link that leads nowhere.", _AGAIN),
        "not_rgb": FindingCode(
            "warning",
            "A picture is grey, transparent, interlaced, or not of 8 bits per colour.",
            _CONVERTED,
        ),
        "several_frames": FindingCode(
            "warning", "A picture is an animation.", "nothing, if its first frame is meant"
        ),
        "mixed_sizes": FindingCode(
            "warning",
            "Pictures of an episode differ in size.",
            "give all one size with --resize-images-size",
        ),
        "hidden_files": FindingCode("info", "Hidden or temporary files are passed over."),
        "other_files": FindingCode(
            "info", "Files that are no pictures by their names are passed over."
        ),
    },
)
