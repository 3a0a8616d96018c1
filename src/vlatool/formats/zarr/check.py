"""Findings of Zarr recordings."""

from vlatool.findings import FindingCodes, error, warning

_EXCLUDE = "exclude the episode with --exclude"
_AGAIN = f"the store is damaged or incomplete: copy it again, or {_EXCLUDE}"
_LEAVE_OUT = (
    "leave the array out with a mapping (vlatool inspect SOURCE --propose mapping.yaml), "
    f"or {_EXCLUDE}"
)

ZARR = FindingCodes(
    "zarr",
    unreadable=error("A store, an array or a chunk is damaged.", _AGAIN),
    missing_chunk=error("A chunk of an array is not there.", _AGAIN),
    unsafe_codec=error(
        "An array uses a codec that may run code, or is not known.",
        "write the array again with blosc, zstd or gzip",
    ),
    missing_codec=error(
        "The codec of an array is not installed.", "pip install imagecodecs (JPEG XL of UMI)"
    ),
    unknown_layout=error(
        "The store has no meta/episode_ends with data beside it.",
        "give the folder of a replay buffer, such as data.zarr or data.zarr.zip",
    ),
    bad_ends=error("meta/episode_ends does not ascend, or ends after the data.", _AGAIN),
    length_mismatch=error("Arrays differ in their number of rows.", _LEAVE_OUT),
    missing_array=error("An array of the mapping is missing.", "change the mapping"),
    not_numeric=error(
        "A field has no numbers, or images are no whole levels from 0 to 255.",
        _LEAVE_OUT,
    ),
    too_large=error(
        "A chunk, an image or a field is larger than what is read at once.", _LEAVE_OUT
    ),
    empty_episode=error("An episode has no rows.", _EXCLUDE),
    rows_without_episode=warning(
        "Rows after the last episode belong to none.", "none if they were dropped"
    ),
)
