"""Files of tensors."""

import resource
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch

from tests.builders.errors import fails
from vlatool.errors import StorageError
from vlatool.models.weights import (
    read_external_weights,
    read_pickled_weights,
    write_pickled_weights,
)

VALUES = torch.arange(16.0).reshape(4, 4)
OTHER_TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: VALUES.to_sparse(),
    "rows": lambda: VALUES.to_sparse_csr(),
    "columns": lambda: VALUES.to_sparse_csc(),
    "blocks": lambda: VALUES.to_sparse_bsr((2, 2)),
    "meta": lambda: VALUES.to("meta"),
    "quantized": lambda: torch.quantize_per_tensor(VALUES, 0.1, 0, torch.qint8),
    "quantized channels": lambda: torch.quantize_per_channel(
        VALUES, torch.ones(4), torch.zeros(4, dtype=torch.long), 0, torch.qint8
    ),
    "nested": lambda: torch.nested.nested_tensor([VALUES, VALUES[:2]]),
    "jagged": lambda: torch.nested.nested_tensor([VALUES, VALUES[:2]], layout=torch.jagged),
    "complex": lambda: VALUES.to(torch.complex64),
}


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


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch: prototypes, and deprecated kinds
@pytest.mark.parametrize("kind", OTHER_TENSORS)
def test_tensors_that_are_not_dense_numbers_are_a_data_error(kind: str, tmp_path: Path) -> None:
    torch.save({"weight": OTHER_TENSORS[kind]()}, tmp_path / "weights.pt")

    with fails("data.broken") as caught:
        read_external_weights(tmp_path / "weights.pt")
    assert "weight" in caught.value.message


def test_a_compressed_archive_is_read(tmp_path: Path) -> None:
    torch.save({"weight": VALUES}, tmp_path / "stored.pt")
    with (
        ZipFile(tmp_path / "stored.pt") as stored,
        ZipFile(tmp_path / "weights.pt", "w", ZIP_DEFLATED) as compressed,
    ):
        for name in stored.namelist():
            compressed.writestr(name, stored.read(name))
    assert torch.equal(read_external_weights(tmp_path / "weights.pt")["weight"], VALUES)


def test_content_that_contains_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, object] = {"step": torch.tensor(1.0)}
    content["again"] = content
    torch.save(content, tmp_path / "weights.pt")

    assert read_pickled_weights(tmp_path / "weights.pt").keys() == {"step", "again"}
