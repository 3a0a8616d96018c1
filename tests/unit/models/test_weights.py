"""Files of tensors."""

import resource
from pathlib import Path

import pytest
import torch

from vlatool.errors import StorageError
from vlatool.models.weights import write_pickled_weights


def test_tensors_that_do_not_fit_are_a_storage_error_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(StorageError) as caught:
            write_pickled_weights(path, {"weight": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    assert caught.value.code == "storage.write"
    assert caught.value.details["path"] == str(path)
    assert list(tmp_path.iterdir()) == []
