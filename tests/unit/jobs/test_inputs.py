"""Digests of plans. Outputs on disk hold them: no release and no renaming may change them."""

import pytest

from vlatool.artifacts.profile import NormalizationProfile
from vlatool.episode import PoseGroup
from vlatool.jobs.inputs import digest_of
from vlatool.sources.selection import EpisodeSelection
from vlatool.sources.spartan.config import SpartanConfig

SELECTION = EpisodeSelection(("a",), {"f": 3}, True, False, True)
PROFILE = NormalizationProfile("n", (0.5, 0.5), (1.0, 1.0))


def spartan() -> SpartanConfig:
    config = SpartanConfig()
    config._pose_groups = (PoseGroup("n", "p", "r"),)
    return config


@pytest.mark.parametrize(
    ("value", "digest"),
    [
        (SELECTION, "d30fc8c3dac01be4f8efc19170119b03"),
        (PROFILE, "905b7e5b456669b47879c5e8d62684bf"),
        (spartan(), "1ddfb723cc9d5e4fc211c08497be355c"),
    ],
)
def test_digest_is_that_of_earlier_outputs(value: object, digest: str) -> None:
    assert digest_of(value) == digest
