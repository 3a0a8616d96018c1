"""Finding codes of outputs, and the list of all codes."""

from collections.abc import Iterator
from functools import partial

from vlatool.findings import SEVERITIES, FindingCode, FindingCodes
from vlatool.plugins import FORMATS, SINKS
from vlatool.sources.rules import IMAGES, SOURCE
from vlatool.tokens.build import BUILD

error, warning, info = (partial(FindingCode, severity) for severity in SEVERITIES)
_WRITE_AGAIN = "copy the output again, or write it again with --overwrite"
_WRITER = "write the data with vlatool preprocess, or fix the program that wrote them"

OUTPUT = FindingCodes(
    "output",
    {
        "incomplete": error(
            "The run that writes the output has not finished.", "run the same command again"
        ),
        "partial": warning(
            "Some episodes failed and are missing from the output.",
            "see .vlatool/run.json for the errors, fix the episodes, and run the same command "
            "again",
        ),
        "broken_record": error(".vlatool/run.json was changed after it was written.", _WRITE_AGAIN),
        "broken_metadata": error(
            "processing_metadata.json was changed after it was written.", _WRITE_AGAIN
        ),
        "no_file_list": info(".vlatool/files.jsonl is missing: digests cannot be compared."),
        "not_listed": info(
            "A web server does not list folders: files outside the file list are not found."
        ),
        "broken_file_list": error(".vlatool/files.jsonl cannot be read.", _WRITE_AGAIN),
        "missing_file": error("A file of the file list is missing.", _WRITE_AGAIN),
        "size_mismatch": error("The size of a file differs from the file list.", _WRITE_AGAIN),
        "digest_mismatch": error("A file was changed after it was written.", _WRITE_AGAIN),
        "unlisted_file": warning(
            "A file is not in the file list of the run.", "move it out of the output"
        ),
        "unreadable_file": error("A file cannot be read.", "check the disk and the permissions"),
    },
)

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
        "huge_sample": error("A sample is larger than 1 GiB and is not read.", _WRITER),
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

FAST = FindingCodes(
    "fast",
    {
        "broken": error(
            "A file of an action tokenizer is missing, broken or has unsupported values.",
            "copy the folder again, or fit the tokenizer again with --overwrite",
        ),
        "remote_code": error(
            "The folder requires its own code to be executed.",
            "use a tokenizer of the published class",
        ),
        "code": info("The folder of the tokenizer contains code, which is never executed."),
        "missing_bytes": warning(
            "Some bytes have no id: a chunk with a rare coefficient cannot be encoded.",
            "fit the tokenizer with --alphabet bytes",
        ),
        "broken_profile": error("profile.yaml is not a valid profile.", "copy the folder again"),
        "broken_report": warning(
            "fit_report.json is broken or belongs to another tokenizer.", "copy the folder again"
        ),
    },
)

_OTHER_CHECKPOINT = "use another checkpoint, or train the run again"

RUN = FindingCodes(
    "run",
    {
        "broken_config": error("config.yaml is missing, broken or invalid.", "copy the run again"),
        "broken_record": error(
            ".vlatool/run.json was changed after it was written.", "copy the run again"
        ),
        "broken_statistics": error(
            "stats.json of the run is missing or broken.", "copy the run again"
        ),
        "broken_kept": error(
            "An asset of the run (normalization, tokenizer, ...) is missing, broken or changed.",
            "copy the run again, or run its train command again",
        ),
        "broken_options": error(
            "preprocessing_config.yaml of the run is missing or broken.",
            "copy the file from the training data next to config.yaml",
        ),
        "not_listed": info(
            "A web server does not list folders: only the latest checkpoint is found."
        ),
        "no_metrics": warning("metrics.jsonl is missing.", "copy the run again"),
        "broken_metrics": error(
            "A line of metrics.jsonl is not the row of a step.", "copy the run again"
        ),
        "cut_metrics": info(
            "The last line of metrics.jsonl is truncated; a resumed run removes it."
        ),
        "no_checkpoint": warning("There is no complete checkpoint yet."),
        "broken_latest": error(
            "latest.json is missing or broken, or names no complete checkpoint.",
            "start the run again; it resumes from the newest complete checkpoint",
        ),
        "stale_latest": warning(
            "latest.json does not name the newest checkpoint.", "start the run again"
        ),
        "unfinished_checkpoint": warning(
            "A checkpoint has no manifest.json and is not used.", "remove it"
        ),
        "broken_manifest": error(
            "manifest.json of a checkpoint is missing, broken or of another checkpoint.",
            _OTHER_CHECKPOINT,
        ),
        "missing_file": error("A file of a checkpoint is missing.", _OTHER_CHECKPOINT),
        "size_mismatch": error(
            "The size of a checkpoint file differs from its manifest.", _OTHER_CHECKPOINT
        ),
        "digest_mismatch": error(
            "A file of a checkpoint was changed after it was written.", _OTHER_CHECKPOINT
        ),
        "unreadable_file": error("A file cannot be read.", "check the disk and the permissions"),
        "broken_weights": error(
            "The header of a weights file does not match the file.", _OTHER_CHECKPOINT
        ),
        "unlisted_file": warning(
            "A file in the folder of a checkpoint is not in its manifest.", "move it away"
        ),
    },
)

CODES = FindingCodes(
    "codes",
    {
        "no_manifest": info("manifest.json is missing, as in published folders."),
        "broken_manifest": error("manifest.json cannot be read.", _WRITE_AGAIN),
        "broken": error(
            "The codes of an image are too few, out of range or not integers.",
            "encode the images of the episode again",
        ),
        "other_tokenizer": error(
            "The codes of an episode are not from the tokenizer that manifest.json names.",
            "encode all images again with one tokenizer",
        ),
        "missing": error("An image has no codes.", "encode the images of the episode again"),
        "no_picture": warning("An image that has codes is missing.", _WRITE_AGAIN),
        "count_mismatch": error(
            "The number of images with codes differs from manifest.json.", _WRITE_AGAIN
        ),
        "digest_mismatch": error(
            "The digest of the codes differs from manifest.json.", _WRITE_AGAIN
        ),
    },
)

_BUILD_AGAIN = "copy the samples again, or build them again with --overwrite"

SAMPLES = FindingCodes(
    "samples",
    {
        "no_manifest": info("manifest.json is missing, as in published folders."),
        "broken_manifest": error("manifest.json cannot be read.", _BUILD_AGAIN),
        "missing_file": error("A file of samples is missing.", _BUILD_AGAIN),
        "broken_file": error("A file of samples cannot be read.", _BUILD_AGAIN),
        "broken_line": error(
            "A line is not a sample, or a number in it is out of range.", _BUILD_AGAIN
        ),
        "other_spelling": error(
            "A line holds a valid sample, but its bytes differ from the standard form.",
            _BUILD_AGAIN,
        ),
        "other_shape": error("The number of images differs between samples.", _BUILD_AGAIN),
        "unknown_action_id": error(
            "An action id is outside the range of the action tokenizer.", _BUILD_AGAIN
        ),
        "count_mismatch": error("The number of samples differs from manifest.json.", _BUILD_AGAIN),
        "index_mismatch": error(
            "The index of a file of samples does not match the file.", _BUILD_AGAIN
        ),
        "missing_picture": error(
            "An image of a sample is missing.", "copy the images again, or write them again"
        ),
        "no_pictures": error(
            "The folder of the images is missing.",
            "move it back to where it was, or build the samples again",
        ),
    },
)


WINDOWS = FindingCodes(
    "windows",
    {
        "no_manifest": info(
            "manifest.json is missing: the published layout is assumed, counts are not compared."
        ),
        "broken_manifest": error("manifest.json cannot be read.", _WRITE_AGAIN),
        "count_mismatch": error(
            "The number of files or lines differs from the manifest.", _WRITE_AGAIN
        ),
        "broken_lines": error("A file of lines cannot be read to its end.", _WRITE_AGAIN),
        "bad_line": error("A line is not a window.", _WRITER),
        "wrong_line": error(
            "The images, actions or texts of a line do not belong to its frame.", _WRITER
        ),
        "index_mismatch": error(
            "The index of a file of lines does not match the file.",
            "write the data again or remove the index",
        ),
        "missing_picture": error("An image that a line names is missing.", _WRITE_AGAIN),
        "unused_picture": warning("No line names an image.", "move it away"),
        "broken_picture": error("An image cannot be decoded or has a wrong size.", _WRITE_AGAIN),
    },
)


def code_rows() -> Iterator[dict[str, str]]:
    """Rows of all known codes, those of plugins included."""
    outputs = (OUTPUT, SHARDS, WINDOWS, CODES, SAMPLES, BUILD, STATS, FAST, RUN, SOURCE, IMAGES)
    owners = (registry.get(name) for registry in (FORMATS, SINKS) for name in registry.names())
    of_plugins = (getattr(owner, "findings", None) for owner in owners)
    by_name = {c.name: c for c in (*outputs, *of_plugins) if isinstance(c, FindingCodes)}
    for codes in by_name.values():  # related formats share their codes
        yield from codes.rows()
