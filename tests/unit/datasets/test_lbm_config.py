"""Options of the sink of shards."""

import pytest

from vlatool.datasets.lbm.writer import LbmConfig


@pytest.mark.parametrize(("compat", "default"), [(False, "lanczos_vips"), (True, "lanczos")])
def test_default_filter_typed_out_is_the_default(compat: bool, default: str) -> None:
    typed = LbmConfig.model_validate({"compat": compat, "image_resizing_filter": default})
    assert typed == LbmConfig(compat=compat)
    assert typed.resize_filter == default
