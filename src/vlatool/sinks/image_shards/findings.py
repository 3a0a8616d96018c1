"""The codes of findings in image shards: of what is written, and of what is there."""

from vlatool.findings import FindingCode, FindingCodes

_REWRITE = "copy the shards again, or write them again with --overwrite"
_RESPLIT = "write the lists again with `vlatool split`"

IMAGE_SHARDS = FindingCodes(
    "image_shards",
    {
        "converted": FindingCode(
            "warning",
            "Pictures were not plain 8-bit RGB and were converted.",
            "nothing, if their colours are right",
        ),
        "several_frames": FindingCode(
            "warning", "Pictures were animations.", "nothing, if their first frames are meant"
        ),
        "mixed_sizes": FindingCode(
            "warning",
            "Pictures of an episode differ in size.",
            "give all one size with --resize-images-size",
        ),
        "not_split": FindingCode(
            "warning",
            "Too few shards to keep some for validation: there are no lists.",
            "make shards of more episodes, then `vlatool split`",
        ),
        "broken_manifest": FindingCode("error", "manifest.json cannot be read.", _REWRITE),
        "no_manifest": FindingCode("info", "There is no manifest.json: counts cannot be compared."),
        "no_shards": FindingCode("error", "There is no shard.", _REWRITE),
        "missing_shard": FindingCode("error", "A shard of the manifest is not there.", _REWRITE),
        "count_mismatch": FindingCode(
            "error", "A shard does not hold as many pictures as the manifest says.", _REWRITE
        ),
        "bad_key": FindingCode(
            "error", "Keys do not count from 00000000 in their shard.", _REWRITE
        ),
        "no_picture": FindingCode("error", "A sample has no picture, or several.", _REWRITE),
        "bad_metadata": FindingCode("error", "The JSON beside a picture is broken.", _REWRITE),
        "duplicate_picture": FindingCode("error", "Two pictures have one global key.", _REWRITE),
        "broken_picture": FindingCode("error", "A picture cannot be decoded.", _REWRITE),
        "picture_size": FindingCode(
            "error", "A picture has another size than the manifest says.", _REWRITE
        ),
        "one_list": FindingCode("error", "Of the two lists only one is there.", _RESPLIT),
        "broken_list": FindingCode("error", "A list cannot be read.", _RESPLIT),
        "empty_list": FindingCode("warning", "A list names no shard.", _RESPLIT),
        "listed_missing": FindingCode("error", "A list names a shard that is not there.", _RESPLIT),
        "listed_twice": FindingCode(
            "error", "A shard stands on both lists, or twice on one.", _RESPLIT
        ),
        "unlisted": FindingCode("warning", "A shard stands on no list.", _RESPLIT),
    },
)
