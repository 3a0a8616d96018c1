"""Codes of findings in training shards and their statistics."""

from vlatool.findings import FindingCodes, error, warning

_WRITE_AGAIN = "copy the output again, or write it again with --overwrite"
_WRITER = "write the data with vlatool preprocess, or fix the program that wrote them"

SHARDS = FindingCodes(
    "shards",
    {
        "no_manifest": error("manifest.jsonl is missing.", _WRITE_AGAIN),
        "broken_manifest": error("The manifest cannot be read or is empty.", _WRITE_AGAIN),
        "no_config": warning(
            "preprocessing_config.yaml is missing or broken.", "copy the file again"
        ),
        "missing_shard": error("A shard of the manifest is missing.", _WRITE_AGAIN),
        "unlisted_shard": warning(
            "A tar file is not in the manifest.", "move it away: it is never read"
        ),
        "index_mismatch": error(
            "The index of a shard does not match the shard.",
            "write the data again or remove the index",
        ),
        "listed_twice": error("The manifest lists a shard twice.", _WRITE_AGAIN),
        "count_mismatch": error("num_sequences is not the number of samples.", _WRITE_AGAIN),
        "broken_tar": error("A tar file is truncated or damaged.", _WRITE_AGAIN),
        "not_a_file": error("A tar member is a folder, a link or a device.", _WRITER),
        "unsafe_name": error(
            "The name of a tar member is an absolute path or contains `..`.", _WRITER
        ),
        "meta_name": error("The name of a tar member has the form __x__.", _WRITER),
        "dotted_key": error("The key of a sample contains a dot.", _WRITER),
        "upper_case_member": warning(
            "The suffix of a tar member has upper-case letters.", "rename the camera in lower case"
        ),
        "duplicate_member": error("A sample has two members of the same name.", _WRITER),
        "duplicate_sample": error("A sample occurs more than once.", _WRITER),
        "scattered_sample": error("The members of a sample are not contiguous.", _WRITER),
        "incomplete_sample": error(
            "A sample lacks an image, its arrays or its metadata.", _WRITE_AGAIN
        ),
        "huge_sample": error("A sample is larger than 256 MiB and is not read.", _WRITER),
        "only_in_shards": error("A sample is in shards/ but not in episodes/.", _WRITE_AGAIN),
        "only_in_episodes": error("A sample is in episodes/ but not in shards/.", _WRITE_AGAIN),
        "digest_mismatch": error("A sample differs between shards/ and episodes/.", _WRITE_AGAIN),
        "broken_npz": error("lowdim.npz cannot be read.", _WRITE_AGAIN),
        "object_array": error(
            "lowdim.npz holds pickled Python objects, which are never loaded.", _WRITER
        ),
        "field_mismatch": error("Samples differ in fields, shapes or data types.", _WRITER),
        "window_length": error("The length of a field is not past + 1 + future.", _WRITER),
        "bad_mask": error("past_mask or future_mask is missing or not bool [T].", _WRITER),
        "not_finite": error(
            "A field holds NaN or infinity.", "fix the raw data and preprocess them again"
        ),
        "nan_kept": warning("A field holds NaN or infinity, which --no-fail-on-nan allows."),
        "bad_metadata": error("A key of metadata.json is missing or wrong.", _WRITER),
        "bad_language": warning("language_instructions.json is not a JSON object.", _WRITER),
        "broken_picture": error("An image cannot be decoded.", _WRITE_AGAIN),
        "picture_size": warning(
            "The size of an image differs from the configured size.", "preprocess the data again"
        ),
    },
)

STATS = FindingCodes(
    "stats",
    {
        "missing": error("stats.json is missing.", _WRITE_AGAIN),
        "broken": error(
            "stats.json is not a JSON object, or an entry is incomplete.", _WRITE_AGAIN
        ),
        "not_strict": warning(
            "stats.json holds NaN or Infinity, which is not valid JSON.",
            "nothing for vlatool, which reads them; other programs may fail",
        ),
        "missing_field": error("A numeric field has no statistics.", _WRITE_AGAIN),
        "extra_field": warning("A field with statistics is in no sample.", _WRITE_AGAIN),
        "wrong_shape": error("The shape of a statistic does not match the field.", _WRITE_AGAIN),
        "wrong_count": error("`count` does not match the number of samples.", _WRITE_AGAIN),
        "out_of_range": error("A value is outside the recorded minimum and maximum.", _WRITE_AGAIN),
        "wrong_value": error("A statistic differs from the recomputed one (--full).", _WRITE_AGAIN),
        "copies_differ": warning("Copies of the statistics differ.", _WRITE_AGAIN),
    },
)
