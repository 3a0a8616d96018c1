"""Findings of Zarr recordings."""

from vlatool.findings import FindingCodes, error, warning

_EXCLUDE = "leave the episode out with --exclude"
_AGAIN = f"the store is damaged or incomplete: copy it again, or {_EXCLUDE}"
_LEAVE_OUT = (
    "leave the array out with a mapping (vlatool inspect SOURCE --propose mapping.yaml), "
    f"or {_EXCLUDE}"
)

ZARR = FindingCodes(
    "zarr",
    unreadable=error("A store, an array or a chunk is damaged.", _AGAIN),
    missing_chunk=error("A chunk of an array is missing.", _AGAIN),
    unsafe_codec=error(
        "An array uses a codec that is unknown, or that can run code.",
        "write the array again with blosc, zstd or gzip",
    ),
    missing_codec=error(
        "The codec of an array is not installed.",
        "pip install imagecodecs, which has JPEG XL, as UMI uses it",
    ),
    unknown_layout=error(
        "The store has no meta/episode_ends, or no data beside it.",
        "give the folder of a replay buffer, such as data.zarr or data.zarr.zip",
    ),
    bad_ends=error("meta/episode_ends does not ascend, or ends after the data.", _AGAIN),
    length_mismatch=error("The arrays have different numbers of rows.", _LEAVE_OUT),
    missing_array=error("The store lacks an array of the mapping.", "name another in the mapping"),
    not_numeric=error(
        "A field has no numbers, or images have values other than 0 to 255.",
        _LEAVE_OUT,
    ),
    too_large=error("A chunk, an image or a field is too large to be read at once.", _LEAVE_OUT),
    empty_episode=error("An episode has no rows.", _EXCLUDE),
    rows_without_episode=warning(
        "Rows after the end of the last episode belong to no episode; they are not read.",
        "nothing, if you dropped them on purpose",
    ),
)
