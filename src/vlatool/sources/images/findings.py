"""Finding codes for folders of images."""

from vlatool.findings import FindingCode, FindingCodes

_AGAIN = "get or record the image again, or exclude the episode with --episodes"
_CONVERTED = "none if the colors are right: the image is converted to RGB"

IMAGES = FindingCodes(
    "images",
    {
        "no_pictures": FindingCode(
            "error", "The folder of an episode has no images.", "exclude it with --episodes"
        ),
        "picture_unreadable": FindingCode(
            "error", "An image is truncated, damaged or not an image.", _AGAIN
        ),
        "picture_too_large": FindingCode("error", "An image file is larger than 256 MiB.", _AGAIN),
        "missing_file": FindingCode("error", "An image is a broken link.", _AGAIN),
        "not_rgb": FindingCode(
            "warning",
            "An image is grayscale, transparent, interlaced, or not 8 bits per channel.",
            _CONVERTED,
        ),
        "several_frames": FindingCode(
            "warning", "An image is an animation.", "none if the first frame is wanted"
        ),
        "mixed_sizes": FindingCode(
            "warning",
            "Images of an episode differ in size.",
            "resize them with --resize-images-size",
        ),
        "hidden_files": FindingCode("info", "Hidden or temporary files are ignored."),
        "other_files": FindingCode("info", "Files without the suffix of an image are ignored."),
    },
)
