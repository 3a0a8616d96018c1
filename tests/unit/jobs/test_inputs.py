"""Digests of plans. Outputs on disk hold them: no release and no renaming may change them."""

import pytest

from vlatool.datasets.samples.profile import NormalizationProfile
from vlatool.episode import PoseGroup
from vlatool.jobs.job import digest_of
from vlatool.recordings.select import EpisodeSelection
from vlatool.recordings.spartan.config import SpartanConfig

SELECTION = EpisodeSelection(("a",), {"f": 3}, True, False, True)
PROFILE = NormalizationProfile("n", (0.5, 0.5), (1.0, 1.0))


def spartan() -> SpartanConfig:
    config = SpartanConfig()
    config._pose_groups = (PoseGroup("n", "p", "r"),)
    return config


@pytest.mark.parametrize(
    ("value", "digest"),
    [
        (SELECTION, "c50354559f340fe3b6362113d9e05be4"),
        (PROFILE, "81949ddc1b7a6cc6f430e566ba9563a9"),
        (spartan(), "28e12c31c52c2f7561ec69bbe26e2585"),
    ],
)
def test_digest_does_not_change(value: object, digest: str) -> None:
    assert digest_of(value) == digest
