"""The codes of findings in outputs, and the list of all codes."""

from collections.abc import Iterator
from functools import partial

from vlatool.building.episode import BUILD
from vlatool.findings import SEVERITIES, FindingCode, FindingCodes
from vlatool.plugins import FORMATS, SINKS
from vlatool.sources.rules import IMAGES, SOURCE

error, warning, info = (partial(FindingCode, severity) for severity in SEVERITIES)
_WRITE_AGAIN = "copy the output again, or write it again with --overwrite"
_WRITER = "write the data with vlatool preprocess, or repair the program that wrote them"

OUTPUT = FindingCodes(
    "output",
    {
        "incomplete": error(
            "The run that writes the output has not ended.", "run the same command again"
        ),
        "partial": warning(
            "Some episodes failed and are not in the output.",
            "repair them and run the same command again; .vlatool/run.json has the reasons",
        ),
        "broken_record": error(
            ".vlatool/run.json has another content than when it was written.", _WRITE_AGAIN
        ),
        "broken_metadata": error(
            "processing_metadata.json has another content than when it was written.", _WRITE_AGAIN
        ),
        "no_file_list": info("There is no .vlatool/files.jsonl: digests cannot be compared."),
        "not_listed": info("A web server lists no folders: files that no list names are not seen."),
        "broken_file_list": error(".vlatool/files.jsonl cannot be read.", _WRITE_AGAIN),
        "missing_file": error("A listed file is not there.", _WRITE_AGAIN),
        "size_mismatch": error("A file has another size than listed.", _WRITE_AGAIN),
        "digest_mismatch": error("A file has other bytes than when it was written.", _WRITE_AGAIN),
        "unlisted_file": warning(
            "A file was not written by the run.", "move it away if it is not yours"
        ),
        "unreadable_file": error("A file cannot be read.", "check the disk and the rights"),
    },
)

SHARDS = FindingCodes(
    "shards",
    {
        "no_manifest": error("There is no manifest.jsonl.", _WRITE_AGAIN),
        "broken_manifest": error("The manifest cannot be read or is empty.", _WRITE_AGAIN),
        "no_config": warning("preprocessing_config.yaml is missing or broken.", "copy it there"),
        "missing_shard": error("A shard of the manifest is not there.", _WRITE_AGAIN),
        "unlisted_shard": warning(
            "A tar file is not in the manifest.", "move it away; it is not read"
        ),
        "index_mismatch": error(
            "The index of a shard does not fit it.", "write the data again or remove the index"
        ),
        "listed_twice": error("The manifest lists a shard twice.", _WRITE_AGAIN),
        "count_mismatch": error("num_sequences is not the number of samples.", _WRITE_AGAIN),
        "broken_tar": error("A tar file is cut off or damaged.", _WRITE_AGAIN),
        "not_a_file": error("A tar member is a folder, a link or a device.", _WRITER),
        "unsafe_name": error("A tar member's name is absolute or has `..`.", _WRITER),
        "meta_name": error("A tar member is named __x__.", _WRITER),
        "dotted_key": error("The key of a sample has a dot.", _WRITER),
        "upper_case_member": warning(
            "A member's suffix has capitals.", "rename the camera in lower case"
        ),
        "duplicate_member": error("A sample has a member twice.", _WRITER),
        "duplicate_sample": error("A sample is there more than once.", _WRITER),
        "scattered_sample": error("Members of a sample are not side by side.", _WRITER),
        "incomplete_sample": error("A sample lacks a picture, its numbers or facts.", _WRITE_AGAIN),
        "huge_sample": error("A sample is larger than 1 GiB; it is not read.", _WRITER),
        "only_in_shards": error("A sample is in shards/ but not in episodes/.", _WRITE_AGAIN),
        "only_in_episodes": error("A sample is in episodes/ but not in shards/.", _WRITE_AGAIN),
        "digest_mismatch": error("A sample differs between shards/ and episodes/.", _WRITE_AGAIN),
        "broken_npz": error("lowdim.npz cannot be read.", _WRITE_AGAIN),
        "object_array": error(
            "lowdim.npz holds pickled Python objects, which are never loaded.", _WRITER
        ),
        "field_mismatch": error("Samples differ in fields, shapes or types.", _WRITER),
        "window_length": error("A field is not past + 1 + future long.", _WRITER),
        "bad_mask": error("past_mask or future_mask is missing or not bool [T].", _WRITER),
        "not_finite": error("A field holds NaN or infinity.", "repair and preprocess again"),
        "nan_kept": warning("A field holds NaN or infinity, as --no-fail-on-nan allows."),
        "bad_metadata": error("metadata.json lacks or contradicts what readers need.", _WRITER),
        "bad_language": warning("language_instructions.json is no object of kinds.", _WRITER),
        "broken_picture": error("A picture cannot be decoded.", _WRITE_AGAIN),
        "picture_size": warning("A picture has another size than configured.", "preprocess again"),
    },
)

STATS = FindingCodes(
    "stats",
    {
        "missing": error("stats.json is missing.", _WRITE_AGAIN),
        "broken": error("stats.json is no JSON object, or an entry is incomplete.", _WRITE_AGAIN),
        "not_strict": warning(
            "stats.json has NaN or Infinity, which is not JSON.", "vlatool reads it"
        ),
        "missing_field": error("A numeric field has no statistics.", _WRITE_AGAIN),
        "extra_field": warning("Statistics of a field that samples lack.", _WRITE_AGAIN),
        "wrong_shape": error("Statistics have another shape than the field.", _WRITE_AGAIN),
        "wrong_count": error("`count` does not fit the number of samples.", _WRITE_AGAIN),
        "out_of_range": error("A value lies outside the published range.", _WRITE_AGAIN),
        "wrong_value": error("A recomputed statistic differs (--full).", _WRITE_AGAIN),
        "copies_differ": warning("Copies of the statistics differ.", _WRITE_AGAIN),
    },
)

FAST = FindingCodes(
    "fast",
    {
        "broken": error(
            "A file of an action tokenizer is missing, broken or says what ours cannot do.",
            "copy the folder again, or fit the tokenizer again with --overwrite",
        ),
        "remote_code": error(
            "The folder wants code of its own to be run.", "use a tokenizer of the published class"
        ),
        "code": info("A file of code lies beside the tokenizer; it is never run."),
        "missing_bytes": warning(
            "Not every byte has an id: a chunk with a rare coefficient is refused.",
            "fit it with --alphabet bytes",
        ),
        "broken_profile": error("profile.yaml is no profile.", "copy the folder again"),
        "broken_report": warning(
            "fit_report.json is broken, or of another tokenizer.", "copy the folder again"
        ),
    },
)

_OTHER_CHECKPOINT = "use another checkpoint, or train the run again"

RUN = FindingCodes(
    "run",
    {
        "broken_config": error(
            "config.yaml is missing, broken or not valid.", "copy the run again"
        ),
        "broken_record": error(
            ".vlatool/run.json has another content than when it was written.", "copy the run again"
        ),
        "broken_statistics": error(
            "stats.json of the run is missing or broken.", "copy the run again"
        ),
        "broken_kept": error(
            "A file beside the checkpoints (scales, tokenizer, ...) is missing, broken or changed.",
            "copy the run again, or give the command that trained it once more",
        ),
        "broken_options": error(
            "preprocessing_config.yaml of the run is missing or broken.",
            "copy it from the data beside config.yaml",
        ),
        "not_listed": info("A web server lists no folders: only the latest checkpoint is seen."),
        "no_metrics": warning("There is no metrics.jsonl.", "copy the run again"),
        "broken_metrics": error(
            "A line of metrics.jsonl is no row of a step.", "copy the run again"
        ),
        "cut_metrics": info(
            "The last line of metrics.jsonl is cut off; a run that goes on drops it."
        ),
        "no_checkpoint": warning("There is no whole checkpoint yet."),
        "broken_latest": error(
            "latest.json is missing or broken, or names no whole checkpoint.",
            "start the run again; it goes on with the newest whole one",
        ),
        "stale_latest": warning(
            "latest.json does not name the newest checkpoint.", "start the run again"
        ),
        "unfinished_checkpoint": warning(
            "A checkpoint has no manifest.json and is not used.", "remove it"
        ),
        "broken_manifest": error(
            "manifest.json of a checkpoint is missing, broken or another's.", _OTHER_CHECKPOINT
        ),
        "missing_file": error("A file of a checkpoint is not there.", _OTHER_CHECKPOINT),
        "size_mismatch": error("A file of a checkpoint has another size.", _OTHER_CHECKPOINT),
        "digest_mismatch": error(
            "A file of a checkpoint has other bytes than when it was written.", _OTHER_CHECKPOINT
        ),
        "unreadable_file": error("A file cannot be read.", "check the disk and the rights"),
        "broken_weights": error("The header of weights does not fit the file.", _OTHER_CHECKPOINT),
        "unlisted_file": warning("A file of a checkpoint is not in its manifest.", "move it away"),
    },
)

CODES = FindingCodes(
    "codes",
    {
        "no_manifest": info("There is no manifest.json, as in published folders."),
        "broken_manifest": error("manifest.json cannot be read.", _WRITE_AGAIN),
        "broken": error(
            "Codes of a picture are too few, out of range or no numbers.",
            "encode the pictures of the episode again",
        ),
        "other_tokenizer": error(
            "Codes of an episode are those of another tokenizer than manifest.json says.",
            "encode the pictures again, all with one tokenizer",
        ),
        "missing": error("A picture has no codes.", "encode the pictures of the episode again"),
        "no_picture": warning("There are codes of a picture that is not there.", _WRITE_AGAIN),
        "count_mismatch": error("Other numbers of codes than manifest.json says.", _WRITE_AGAIN),
        "digest_mismatch": error("Other codes than manifest.json has the digest of.", _WRITE_AGAIN),
    },
)

_BUILD_AGAIN = "copy the samples again, or build them again with --overwrite"

SAMPLES = FindingCodes(
    "samples",
    {
        "broken_manifest": error("manifest.json cannot be read.", _BUILD_AGAIN),
        "missing_file": error("A file of samples is not there.", _BUILD_AGAIN),
        "broken_file": error("A file of samples cannot be read.", _BUILD_AGAIN),
        "broken_line": error(
            "A line is no sample, or a number in it is out of range.", _BUILD_AGAIN
        ),
        "other_spelling": error(
            "A line has the content of a sample, but other bytes than it is written with.",
            _BUILD_AGAIN,
        ),
        "other_shape": error("A sample has other numbers of pictures than the rest.", _BUILD_AGAIN),
        "unknown_action_id": error("An action id is none of the action tokenizer.", _BUILD_AGAIN),
        "count_mismatch": error("Other numbers of samples than manifest.json says.", _BUILD_AGAIN),
        "index_mismatch": error("The index of a file does not fit it.", _BUILD_AGAIN),
        "missing_picture": error(
            "A picture of a sample is not there.", "copy the pictures again, or write them again"
        ),
        "no_pictures": error(
            "The folder of the pictures is not where it was.",
            "put it back beside the samples, or build them again where it is",
        ),
    },
)


WINDOWS = FindingCodes(
    "windows",
    {
        "no_manifest": info(
            "There is no manifest.json: the published form is assumed, counts are not compared."
        ),
        "broken_manifest": error("manifest.json cannot be read.", _WRITE_AGAIN),
        "count_mismatch": error(
            "There are not as many files or lines as the manifest says.", _WRITE_AGAIN
        ),
        "broken_lines": error("A file of lines cannot be read to its end.", _WRITE_AGAIN),
        "bad_line": error("A line is no window.", _WRITER),
        "wrong_line": error(
            "A line has other pictures, actions or words than its frame has.", _WRITER
        ),
        "index_mismatch": error(
            "The index of a file of lines does not fit it.",
            "write the data again or remove the index",
        ),
        "missing_picture": error("A picture that lines name is not there.", _WRITE_AGAIN),
        "unused_picture": warning("A picture is not named by any line.", "move it away"),
        "broken_picture": error("A picture cannot be decoded or has another size.", _WRITE_AGAIN),
    },
)


def code_rows() -> Iterator[dict[str, str]]:
    """Every known code, those of plugins included."""
    own = (OUTPUT, SHARDS, WINDOWS, CODES, SAMPLES, BUILD, STATS, FAST, RUN, SOURCE, IMAGES)
    owners = (registry.get(name) for registry in (FORMATS, SINKS) for name in registry.names())
    families = (getattr(owner, "findings", None) for owner in owners)
    named = {one.name: one for one in (*own, *families) if isinstance(one, FindingCodes)}
    for family in named.values():  # formats of one kind share theirs
        yield from family.rows()
