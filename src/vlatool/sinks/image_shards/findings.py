"""Codes of findings in image shards, while writing and checking them."""

from vlatool.findings import FindingCode, FindingCodes

_REWRITE = "copy the shards again, or write them again with --overwrite"
_RESPLIT = "write the lists again with `vlatool split`"

IMAGE_SHARDS = FindingCodes(
    "image_shards",
    {
        "converted": FindingCode(
            "warning",
            "Images were not plain 8-bit RGB and were converted.",
            "nothing, if their colors are correct",
        ),
        "several_frames": FindingCode(
            "warning",
            "Images were animations; only their first frames were used.",
            "nothing, if the first frames are intended",
        ),
        "mixed_sizes": FindingCode(
            "warning",
            "Images of an episode differ in size.",
            "resize all to one size with --resize-images-size",
        ),
        "not_split": FindingCode(
            "warning",
            "There are too few shards for a validation split; no lists were written.",
            "write shards of more episodes, then run `vlatool split`",
        ),
        "broken_manifest": FindingCode("error", "manifest.json cannot be read.", _REWRITE),
        "no_manifest": FindingCode("info", "manifest.json is missing; counts cannot be compared."),
        "no_shards": FindingCode("error", "The folder has no shards.", _REWRITE),
        "missing_shard": FindingCode("error", "A shard of the manifest is missing.", _REWRITE),
        "count_mismatch": FindingCode(
            "error", "The number of images in a shard differs from the manifest.", _REWRITE
        ),
        "bad_key": FindingCode(
            "error", "Keys of a shard are not consecutive numbers from 00000000.", _REWRITE
        ),
        "no_picture": FindingCode("error", "A sample has no image, or several.", _REWRITE),
        "bad_metadata": FindingCode("error", "The JSON metadata of an image is broken.", _REWRITE),
        "duplicate_picture": FindingCode("error", "Two images have the same global key.", _REWRITE),
        "broken_picture": FindingCode("error", "An image cannot be decoded.", _REWRITE),
        "picture_size": FindingCode(
            "error", "The size of an image differs from the manifest.", _REWRITE
        ),
        "one_list": FindingCode("error", "Only one of the two lists exists.", _RESPLIT),
        "broken_list": FindingCode("error", "A list cannot be read.", _RESPLIT),
        "empty_list": FindingCode("warning", "A list names no shard.", _RESPLIT),
        "listed_missing": FindingCode(
            "error", "A list names a shard that does not exist.", _RESPLIT
        ),
        "listed_twice": FindingCode(
            "error", "A shard is in both lists, or twice in one.", _RESPLIT
        ),
        "unlisted": FindingCode("warning", "A shard is in neither list.", _RESPLIT),
    },
)
