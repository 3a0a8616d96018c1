"""Training that continues from the files of a run or of a published program."""

from pathlib import Path

import pytest

from vlatool.datasets.base_model import WEIGHTS
from vlatool.models.future_vla import published as future_vla
from vlatool.models.published import WeightsOrigin
from vlatool.models.titok import published as titok


@pytest.mark.parametrize(
    ("names", "config"),
    [
        ((future_vla.CONFIG, WEIGHTS), f'{{"model_type": "{future_vla.FAMILY}"}}'),
        ((titok.CONFIG, titok.WEIGHTS), "{}"),
    ],
)
def test_published_weights_have_no_state_of_training(
    names: tuple[str, str], config: str, tmp_path: Path
) -> None:
    (tmp_path / names[0]).write_text(config)
    (tmp_path / names[1]).touch()
    assert WeightsOrigin.find(str(tmp_path)).run is None
