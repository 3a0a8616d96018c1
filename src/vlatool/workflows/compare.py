"""Compares the content of two data sets; their layouts may differ."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from vlatool.config.base import ConfigModel, check_required, option, required_field
from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, PartialFailure
from vlatool.events import NULL, Reporter, counted
from vlatool.recordings.base import FormatReader
from vlatool.recordings.choice import select
from vlatool.recordings.detect import detect_source, with_mapping
from vlatool.recordings.differences import DataComparison, Difference
from vlatool.results import Result
from vlatool.storage.uri import require_existing

_MOST_LISTED = 100
_MOST_SHOWN = 20
_HINTS = {
    "fields": "--shared true ignores fields and cameras that only one has",
    "cameras": "--shared true ignores fields and cameras that only one has",
    "images": "raise --tolerance if the images were encoded again",
}


class CompareDataConfig(ConfigModel):
    """Options of `vlatool compare`."""

    a: str = required_field("", "First data set.")
    b: str = required_field("", "Second data set, such as one that was made from the first.")
    format_a: str | None = option(None, "Format of A; null: detect it.")
    format_b: str | None = option(None, "Format of B; null: detect it.")
    mapping_a: str | None = option(None, "Mapping of A, as for `preprocess`.")
    mapping_b: str | None = option(None, "Mapping of B, as for `preprocess`.")
    format_keys_a: dict[str, Any] = option({}, "Keys of the format of A.")
    format_keys_b: dict[str, Any] = option({}, "Keys of the format of B.")
    episodes: str | None = option(None, "Episodes to compare, such as 0:4,7; null: all.")
    images: int | None = option(
        5, "Images to compare per camera and episode, evenly spaced; null: all, 0: none.", ge=0
    )
    tolerance: float = option(
        10.0,
        "Images count as equal if the means of all blocks of 8 x 8 pixels differ by at most this, "
        "in levels of 0 to 255; 0 for copied images, more for videos that were encoded again.",
        ge=0,
    )
    shared: bool = option(False, "Ignore fields and cameras that only one of the data sets has.")


@dataclass(frozen=True)
class CompareDataResult(Result):
    """Differences between two data sets."""

    rows_key: ClassVar[str] = "differences"

    a: str
    b: str
    equal: bool
    episodes: tuple[int, int]  # of both
    compared: int  # pairs of episodes
    frames: int  # of these, equal in number
    counts: Mapping[str, int]  # differences by kind
    fields: Mapping[str, str]  # columns of the first, to columns of the second
    cameras: Mapping[str, str]
    differences: tuple[Difference, ...]  # the first 100

    @property
    def exit_code(self) -> int:
        if self.equal:
            return 0
        return PartialFailure.exit_code

    def lines(self) -> Iterator[str]:
        alike: dict[str, list[str]] = {}  # message to episodes
        for difference in self.differences:
            alike.setdefault(difference.message, []).append(difference.episode)
        for message, episodes in islice(alike.items(), _MOST_SHOWN):
            others = f" and {len(episodes) - 1} more" if len(episodes) > 1 else ""
            yield f"{episodes[0]}{others}: {message}"
        if len(alike) > _MOST_SHOWN:
            yield f"... and {len(alike) - _MOST_SHOWN} more, with --json"
        pairs = f"{counted(self.compared, 'pair')} of episodes, {counted(self.frames, 'frame')}"
        others = sum(name != other for name, other in self.fields.items())
        names = f", {counted(others, 'column')} with another name" if others else ""
        kinds = ", ".join(f"{count} of {kind}" for kind, count in self.counts.items())
        state = "equal"
        if not self.equal:
            state = f"different ({kinds})"
        yield f"{state}: {pairs}{names}"
        hints: dict[str, None] = {}
        for kind in self.counts:
            if kind in _HINTS:
                hints[f"hint: {_HINTS[kind]}"] = None
        yield from hints


def compare_data(config: CompareDataConfig, *, reporter: Reporter = NULL) -> CompareDataResult:
    """Compares the episodes of two data sets in their order: rows, texts, images.

    Raises:
        UsageError: A location is not given, or several formats find episodes there.
        DataError: A location has no episodes.
    """
    check_required(config, "vlatool compare A B")
    keys_a = with_mapping(config.format_keys_a, config.mapping_a)
    keys_b = with_mapping(config.format_keys_b, config.mapping_b)
    sources = [
        detect_source(require_existing(config.a), config.format_a, keys_a),
        detect_source(require_existing(config.b), config.format_b, keys_b),
    ]
    first = select(sources[0].refs, config.episodes)
    second = select(sources[1].refs, config.episodes)
    comparison = DataComparison(config.images, config.tolerance, config.shared)
    differences: list[Difference] = []
    for ref in first[len(second) :]:
        differences.append(Difference("episodes", ref.id, "only in the first"))
    for ref in second[len(first) :]:
        differences.append(Difference("episodes", ref.id, "only in the second"))
    frames = 0
    readers = (sources[0].reader, sources[1].reader)
    pairs = list(zip(first, second, strict=False))
    with reporter.progress("episodes", len(pairs), "episodes") as bar:
        for pair in pairs:
            count, others = _compared(comparison, readers, pair)
            frames += count
            differences += others
            bar.advance(differences=len(differences))
    return CompareDataResult(
        a=config.a,
        b=config.b,
        equal=not differences,
        episodes=(len(first), len(second)),
        compared=len(pairs),
        frames=frames,
        counts=Counter(difference.kind for difference in differences),
        fields=comparison.matches,
        cameras=comparison.cameras,
        differences=tuple(differences[:_MOST_LISTED]),
    )


def _compared(
    comparison: DataComparison,
    readers: tuple[FormatReader, FormatReader],
    refs: tuple[EpisodeRef, EpisodeRef],
) -> tuple[int, list[Difference]]:
    """Compares a pair of episodes; returns its number of frames and its differences."""
    try:
        first, second = (reader.read(ref) for reader, ref in zip(readers, refs, strict=True))
    except DataError as error:
        return 0, [Difference("episodes", refs[0].id, error.message)]
    return min(first.num_frames, second.num_frames), [*comparison.differences(first, second)]
