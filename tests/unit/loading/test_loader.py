"""Shards to micro-batches. Source: reference/order 1-10; formats/lbm 6.2."""

import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
import yaml
from torch.autograd.profiler import profile
from torch.utils.data import DataLoader, default_collate

import vlatool
from tests.builders.errors import fails
from tests.builders.loading import (
    SAMPLES,
    Named,
    RefsReader,
    batches,
    dummy_batch,
    loader_of,
    names,
    opened,
    write_shards,
)
from tests.builders.shards import (
    SIZE,
    Members,
    arrays,
    jpeg,
    members,
    npz,
    shard_output,
    write_tar,
)
from tests.builders.spartan import spartan_task
from tests.builders.toys import NUMBERS, WIDTH, write_numbers
from vlatool.datasets.lbm.layout import read_manifest
from vlatool.errors import DataError
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.loading.loader import LoaderPlan, build_loader
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.media.tar import index_by_headers, index_path, read_index
from vlatool.media.tar_sample import read_members

FIELDS: dict[str, Any] = {"action_fields": ["action"], "proprioception_fields": ["state"]}
PLAN = LoaderPlan(6, drop_reasons=RoboticsKind.drop_reasons)

BIG = DataSet("big", tuple(ShardInfo(Path(str(index)), 1000) for index in range(2000)))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("raw"), 2, SAMPLES // 2)


@pytest.fixture(scope="module")
def folders(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of shards to a shard folder; all have the same samples."""
    root = tmp_path_factory.mktemp("lbm")
    return {count: write_shards(raw, root / str(count), SAMPLES // count) for count in (1, 3, 6)}


@pytest.fixture
def copy(folders: dict[int, Path], tmp_path: Path) -> Path:
    """A shard folder that a test may modify."""
    shutil.copytree(folders[3], tmp_path / "shards")
    return tmp_path / "shards"


def stored_keys(folder: Path) -> list[str]:
    """The keys of the samples in stored order, as webdataset reads them."""
    urls = [str(shard.location) for shard in read_manifest(folder / "manifest.jsonl")]
    return [sample["__key__"] for sample in wds.WebDataset(urls, shardshuffle=False)]


def refs_of(
    plan: LoaderPlan, count: int, reader: RefsReader | None = None, seed: int = 1
) -> list[list[str]]:
    """Sample names of micro-batches over data without files."""
    order = SampleOrder([BIG], OrderOptions(seed))
    loader = build_loader(plan, order, reader or RefsReader(), named, dummy_batch)
    return [list(batch.samples) for batch, _ in zip(loader, range(count), strict=False)]


def named(samples: Sequence[Named]) -> dict[str, Any]:
    return {"keys": list(samples)}


def error_of(data: Any, *, workers: int = 0) -> DataError:
    with pytest.raises(DataError) as caught:
        batches(data, LoaderPlan(SAMPLES, num_workers=workers), 1)
    return caught.value


# order


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [None, 9])
def test_loader_workers_do_not_change_the_order(workers: int, count: int | None) -> None:
    plan = LoaderPlan(4, rank=1, world_size=2, first=7 if count is None else 0, count=count)

    assert refs_of(replace(plan, num_workers=workers), 9) == refs_of(plan, 9)


def test_loader_ends_its_workers_with_its_context_or_when_it_is_deleted() -> None:
    """The workers exit by themselves: a killed one may hold the lock of the others."""
    plan, order = LoaderPlan(2, num_workers=2), SampleOrder([BIG], OrderOptions())
    for with_context in (True, False):
        before = set(multiprocessing.active_children())
        loader = build_loader(plan, order, RefsReader(), named, dummy_batch)
        iterator = iter(loader)
        next(iterator)
        started = set(multiprocessing.active_children()) - before
        if with_context:
            with loader:
                pass
        del loader, iterator
        assert len(started) == 2
        assert [process.exitcode for process in started] == [0, 0]


def with_header(change: Callable[[bytearray, int], None]) -> Callable[[str, Members], None]:
    """Changes the size in the header of an image of one sample."""

    def changed(key: str, content: Members) -> None:
        if key == "sample-0002":
            data = bytearray(content["front_t0.jpg"])
            change(data, data.index(b"\xff\xc0") + 5)
            content["front_t0.jpg"] = bytes(data)

    return changed


def flip_a_bit(data: bytearray, start: int) -> None:
    data[start + 1] ^= 1


def enlarge(side: int, data: bytearray, start: int) -> None:
    data[start : start + 4] = side.to_bytes(2, "big") * 2


# resume


@pytest.mark.parametrize("position", [1, 5, 1_000_003])
def test_resumed_loader_continues_the_order(position: int) -> None:
    plan = LoaderPlan(2, first=max(0, position - 5))
    before = position - plan.first

    assert refs_of(replace(plan, first=position), 6) == refs_of(plan, before + 6)[before:]


def test_resumed_loader_reads_nothing_that_was_consumed() -> None:
    reader = RefsReader()

    refs_of(LoaderPlan(8, first=10**6 // 8), 1, reader)

    # The loader reads one micro-batch in advance.
    assert len(reader.requested) <= 16
    assert len({ref.shard for ref in reader.requested}) <= 16


def test_resumed_loader_draws_the_same_instructions(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "language_dict: {PutCupOnSaucer: {original: [a, b, c, d, e, f, g, h]}}"
    )
    section = {"language_annotations_path": str(tmp_path / "a.yaml")}
    data = opened(write_shards(raw, tmp_path / "out", 4, source=section))

    whole, resumed = (batches(data, LoaderPlan(2, first=first), 9) for first in (0, 3))

    assert [micro_batch.batch for micro_batch in resumed[:6]] == [
        micro_batch.batch for micro_batch in whole[3:]
    ]
    assert len({text for micro_batch in whole for text in micro_batch.batch["instructions"]}) > 1


# finite passes


@pytest.mark.parametrize(
    ("count", "world", "batch"), [(10, 1, 4), (10, 3, 2), (1, 3, 2), (7, 2, 1)]
)
def test_finite_pass_has_equally_many_micro_batches_on_every_rank(
    count: int, world: int, batch: int
) -> None:
    order = SampleOrder([BIG], OrderOptions(shuffle=False))
    ranks = [
        list(build_loader(plan, order, RefsReader(), named, dummy_batch))
        for micro_batches in range(world)
        for plan in [LoaderPlan(batch, micro_batches, world, count=count)]
    ]

    refs = [name.rpartition("/")[0] for micro_batches in ranks for name in names(micro_batches)]
    assert sorted(refs) == sorted(f"0/0/{index}" for index in range(count))
    assert {len(micro_batches) for micro_batches in ranks} == {-(-count // (world * batch))}
    assert all(
        micro_batch.is_dummy == (not micro_batch.samples)
        for micro_batches in ranks
        for micro_batch in micro_batches
    )


LEFT_OPEN = """
from tests.builders.loading import RefsReader
from tests.unit.loading.test_loader import BIG
from vlatool.loading.loader import LoaderPlan, build_loader
from vlatool.loading.order import OrderOptions, SampleOrder

order = SampleOrder([BIG], OrderOptions())
plan = LoaderPlan(2, num_workers=1)
iterator = iter(build_loader(plan, order, RefsReader(), dict.fromkeys, dict))
next(iterator)
"""


def test_program_ends_with_an_open_loader() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], check=False, timeout=60)

    assert done.returncode == 0


# broken samples


def truncate_image(*keys: str) -> Callable[[str, Members], None]:
    """Truncates an image of some samples."""

    def change(key: str, content: Members) -> None:
        if key in keys:
            content["front_t0.jpg"] = content["front_t0.jpg"][:40]

    return change


def test_broken_sample_is_dropped_and_counted_and_an_error_of_a_dataset(tmp_path: Path) -> None:
    folder = shard_output(tmp_path / "out", change=truncate_image("sample-0002"))
    (batch,) = batches(opened(folder, **FIELDS), PLAN, 1)

    assert sorted(batch.samples) == [f"sample-000{number}" for number in (0, 1, 3, 4, 5)]
    assert batch.dropped == (1, 0)
    assert "sample-0002" in batch.drops[0].message
    assert not batch.is_dummy
    with pytest.raises(DataError) as caught:
        list(vlatool.open_dataset(folder, **FIELDS))
    assert caught.value.details["sample"] == "sample-0002"


@pytest.mark.parametrize(
    ("change", "size"),
    [
        (flip_a_bit, list(SIZE)),
        (partial(enlarge, 40_000), list(SIZE)),
        (partial(enlarge, 40_000), None),
        (partial(enlarge, 9_000), None),  # Pillow alone reports no error
    ],
)
def test_image_with_a_wrong_header_is_a_broken_sample(
    change: Callable[[bytearray, int], None], size: list[int] | None, tmp_path: Path
) -> None:
    folder = shard_output(tmp_path / "out", change=with_header(change))
    _set_size(folder, size)

    (batch,) = batches(opened(folder, **FIELDS), PLAN, 1)

    assert batch.dropped == (1, 0)
    assert "sample-0002" in batch.drops[0].message


def lowdim(**values: Any) -> dict[str, bytes]:
    return {"lowdim.npz": npz({**arrays(2), **values})}


@pytest.mark.parametrize(
    "broken",
    [
        lowdim(state=np.zeros((4, 5))),
        lowdim(state=np.zeros((4, 2, 2))),
        lowdim(state=np.zeros(())),
        lowdim(state=np.array([True] * 4)),
        lowdim(state=np.zeros((4, 2), complex)),
        lowdim(past_mask=np.ones(4)),
        lowdim(past_mask=np.ones((4, 2), bool)),
        {"language_instructions.json": b'{"original": "\\ud800"}'},
    ],
    ids=["wide", "deep", "scalar", "narrow", "complex", "float-mask", "wide-mask", "no-text"],
)
def test_member_of_another_shape_or_type_is_a_broken_sample(
    broken: dict[str, bytes], tmp_path: Path
) -> None:
    def change(key: str, content: Members) -> None:
        content |= broken if key == "sample-0002" else {}

    data = opened(shard_output(tmp_path / "out", change=change), **FIELDS)
    assert batches(data, PLAN, 1)[0].dropped == (1, 0)


def _set_size(folder: Path, size: list[int] | None) -> None:
    path = folder / "shards/preprocessing_config.yaml"
    path.write_text(
        yaml.safe_dump({**yaml.safe_load(path.read_text()), "resize_images_size": size})
    )


def test_images_of_different_sizes_are_an_error_of_the_run(tmp_path: Path) -> None:
    def change(_key: str, content: Members) -> None:
        content["front_t0.jpg"] = jpeg(1, (20, 10))

    folder = shard_output(tmp_path / "out", change=change)
    _set_size(folder, None)
    assert error_of(opened(folder, **FIELDS)).code == "data.mismatch"


def test_micro_batch_of_broken_samples_is_a_dummy() -> None:
    order = SampleOrder([BIG], OrderOptions())
    plan = LoaderPlan(3, drop_reasons=("other", "broken"))

    batch = next(iter(build_loader(plan, order, RefsReader(broken=1), named, dummy_batch)))

    assert (batch.is_dummy, batch.samples, batch.dropped) == (True, (), (0, 3))
    assert batch.batch == dummy_batch()


def test_sample_with_a_broken_header_is_dropped_only_with_an_index(copy: Path) -> None:
    shard = copy / "shard_000001.tar"
    shard.write_bytes(b"\xaa" * 512 + shard.read_bytes()[512:])
    plan = LoaderPlan(SAMPLES, drop_reasons=RoboticsKind.drop_reasons)
    (batch,) = batches(opened(copy), plan, 1)
    assert batch.dropped == (1, 0)
    assert "shard_000001.tar" in batch.drops[0].message
    index_path(shard).unlink()
    with fails("data.broken"):
        batches(opened(copy), plan, 1)


def test_error_of_a_loader_worker_keeps_its_details(copy: Path) -> None:
    data = opened(copy)
    (copy / "shard_000001.tar").unlink()

    error = error_of(data, workers=1)

    assert error.code == "data.missing"
    assert error.details["shard"].endswith("shard_000001.tar")
    assert error.hint


@pytest.mark.parametrize("index", [True, False])
def test_shard_with_another_count_than_its_manifest_raises_an_error(
    copy: Path, index: bool
) -> None:
    rows = [json.loads(line) for line in (copy / "manifest.jsonl").read_text().splitlines()]
    rows[1]["num_sequences"] -= 1
    (copy / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if not index:
        index_path(copy / "shard_000001.tar").unlink()

    error = error_of(opened(copy))

    assert error.code == "data.mismatch"
    assert error.details["samples"] == SAMPLES // 3


INDEXES: dict[str, Callable[[Any], bytes | None]] = {
    "missing": lambda _: None,
    "broken": lambda _: b"PK",
    "of another length": lambda index: replace(
        index, offsets=index.offsets + 512, shard_bytes=1
    ).content(),
    "reversed": lambda index: replace(
        index, offsets=index.offsets[::-1], lengths=index.lengths[::-1]
    ).content(),
    "equal": lambda index: replace(index, offsets=index.offsets * 0).content(),
    "long": lambda index: replace(index, lengths=index.lengths * 10**9).content(),
    "negative": lambda index: replace(index, offsets=index.offsets - 10**6).content(),
}


@pytest.mark.parametrize("damage", INDEXES)
def test_shard_without_a_fitting_index_is_scanned(copy: Path, damage: str) -> None:
    expected = batches(opened(copy), LoaderPlan(SAMPLES), 1)
    for path in copy.glob("*.index.npz"):
        content = INDEXES[damage](read_index(path))
        path.write_bytes(content) if content else path.unlink()

    assert batches(opened(copy), LoaderPlan(SAMPLES), 1) == expected


def test_index_with_wrong_offsets_drops_its_samples(copy: Path) -> None:
    path = index_path(copy / "shard_000001.tar")
    stored = read_index(path)
    assert stored is not None
    path.write_bytes(replace(stored, offsets=stored.offsets + 512).content())

    data = opened(copy)
    (batch,) = batches(data, LoaderPlan(SAMPLES, drop_reasons=RoboticsKind.drop_reasons), 1)
    assert batch.dropped[0] == len(stored.offsets)


def test_more_shards_than_the_limit_of_open_files_are_read(tmp_path: Path) -> None:
    folder = shard_output(tmp_path / "out", samples=3) / "shards"
    contents = {f"s{number}": members(number % 9) for number in range(300)}
    for number, key in enumerate(contents):
        write_tar(folder / f"shard_{number:06d}.tar", [key], contents)
    rows = [{"shard": f"shard_{number:06d}", "num_sequences": 1} for number in range(300)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = opened(folder, **FIELDS)
    before = len(os.listdir("/proc/self/fd"))

    with loader_of(data, LoaderPlan(100)) as loader:
        micro_batches = [batch for batch, _ in zip(loader, range(6), strict=False)]
        assert len(os.listdir("/proc/self/fd")) - before <= 200

    assert sorted(names(micro_batches[:3])) == sorted(contents)


def assert_read_like_webdataset(shard: Path) -> None:
    """Key, suffixes in order and contents of every sample."""
    expected = [
        (sample["__key__"], {name: sample[name] for name in sample if not name.startswith("__")})
        for sample in wds.WebDataset(str(shard), shardshuffle=False)
    ]
    data = shard.read_bytes()
    ranges = index_by_headers(shard).ranges()

    samples = [tuple(read_members(data[start : start + length])) for start, length in ranges]

    assert samples == expected
    assert [list(contents) for _, contents in samples] == [list(sample) for _, sample in expected]


def test_samples_are_those_that_webdataset_reads(folders: dict[int, Path], tmp_path: Path) -> None:
    shard_output(tmp_path / "out")  # of another writer
    # Members that webdataset ignores, upper case, long names, folders.
    members: list[tuple[str, bytes, bytes]] = [
        ("__meta__", tarfile.REGTYPE, b"x"),
        ("a.JPG", tarfile.REGTYPE, b"1" * 600),
        ("a.lowdim.npz", tarfile.REGTYPE, b""),
        ("b.txt", tarfile.AREGTYPE, b"2"),
        (f"b.{'long' * 40}.txt", tarfile.REGTYPE, b"3"),
        ("folder", tarfile.DIRTYPE, b""),
        ("folder/c.d.txt", tarfile.REGTYPE, b"4" * 512),
        ("folder/c.txt", tarfile.REGTYPE, "ä".encode()),
    ]
    with tarfile.open(tmp_path / "odd.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            tar.addfile(info, io.BytesIO(content))
    for folder in (folders[3], tmp_path / "out/shards", tmp_path):
        for shard in folder.glob("*.tar"):
            assert_read_like_webdataset(shard)


def test_fingerprint_depends_on_data_and_fields(folders: dict[int, Path]) -> None:
    original = opened(folders[3])[1].fingerprint
    for path in (folders[3].parent, folders[3] / "manifest.jsonl"):
        assert opened(path)[1].fingerprint == original
    other_shards = opened(folders[6])[1].fingerprint
    other_fields = opened(folders[3], proprioception_fields=["robot__version"])[1].fingerprint

    assert original["data set 1"] != other_shards["data set 1"]
    assert original["data set 1"] == other_fields["data set 1"]
    assert original["statistics"] == other_shards["statistics"] != other_fields["statistics"]
    first, second = (
        opened(folders[3], dataset_statistics=[str(path)])[1].statistics
        for path in (folders[6], folders[6] / "stats.json")
    )
    assert first == second


def test_validation_is_the_same_section_in_stored_order(folders: dict[int, Path]) -> None:
    kind = RoboticsKind()
    config, _ = opened(folders[3], dataset_weighting=[1], val_dataset_manifest=[str(folders[6])])

    section = kind.validation(config)

    assert section is not None
    assert section.dataset_manifest == [str(folders[6])]
    assert (section.shuffle, section.dataset_weighting) == (False, [])
    assert section.camera_names == config.camera_names
    assert kind.validation(opened(folders[3])[0]) is None


# custom loops


@pytest.mark.parametrize("channels_first", [True, False])
def test_dataset_in_a_custom_loop(folders: dict[int, Path], channels_first: bool) -> None:
    keys: dict[str, Any] = {"image_indices": [0], "normalize": True}
    data = vlatool.open_dataset(folders[3].parent, channels_first=channels_first, **keys)
    raw = vlatool.open_dataset(folders[3].parent, raw=True, **keys)
    anchor, cameras = data.config.lowdim_past_timesteps, data.config.camera_names
    seen: list[list[str]] = []
    for epoch in range(2):
        batches = DataLoader(data.epoch(epoch), batch_size=SAMPLES, num_workers=2 * (epoch == 0))
        batch = next(iter(batches))
        samples = list(raw.epoch(epoch))
        seen.append(batch["key"])

        assert list(batch) == list(data[0])
        for number, camera in enumerate(cameras):
            images = np.stack([sample.images[number :: len(cameras)] for sample in samples])
            expected = images.transpose(0, 1, 4, 2, 3) if channels_first else images
            np.testing.assert_array_equal(batch[f"observation.images.{camera}"], expected)
        for name in data.config.proprioception_fields:
            past = np.stack([sample.fields[name][: anchor + 1] for sample in samples])
            np.testing.assert_array_equal(batch[f"observation.{name}"], past)
        actions = [
            np.concatenate([s.fields[name][anchor:] for name in data.config.action_fields], axis=1)
            for s in samples
        ]
        np.testing.assert_array_equal(batch["action"], np.stack(actions))
        padded = np.stack([~sample.future_mask[anchor:] for sample in samples])
        np.testing.assert_array_equal(batch["action_is_pad"], padded)
        before = np.stack([~sample.past_mask[:anchor] for sample in samples])
        np.testing.assert_array_equal(batch["observation_is_pad"][:, :-1], before)
        assert not batch["observation_is_pad"][:, -1].any()
        assert {*padded.ravel(), *before.ravel()} == {True, False}
        assert batch["task"] == [sample.instruction for sample in samples]
        assert batch["key"] == [sample.key for sample in samples]

    assert sorted(seen[0]) == sorted(seen[1]) == sorted(stored_keys(folders[3]))
    assert seen[0] != seen[1]


def test_one_thread_stacks_the_batches_of_a_loop_without_workers(folders: dict[int, Path]) -> None:
    data = vlatool.open_dataset(folders[3])
    with profile() as operations:
        batch = next(iter(DataLoader(data, batch_size=SAMPLES)))
    assert operations is not None
    assert "aten::stack" not in {event.key for event in operations.key_averages()}

    expected = default_collate([dict(data[number]) for number in range(SAMPLES)])
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        if isinstance(values, torch.Tensor):
            torch.testing.assert_close(batch[name], values, rtol=0, atol=0)
        else:
            assert batch[name] == values


def test_dataset_of_a_kind_without_plain_samples_is_raw(tmp_path: Path) -> None:
    folder = write_numbers(tmp_path)
    with fails("usage.unsupported"):
        vlatool.open_dataset(folder, kind=NUMBERS)
    assert len(vlatool.open_dataset(folder, kind=NUMBERS, raw=True)[0].values) == WIDTH


def test_dataset_is_a_sequence_in_the_order_of_the_loader(folders: dict[int, Path]) -> None:
    data = vlatool.open_dataset(folders[3], shuffle=False)
    assert [sample["key"] for sample in data] == stored_keys(folders[3])
    assert data[-1]["key"] == data[len(data) - 1]["key"]
    with pytest.raises(IndexError):
        data[len(data)]

    data = vlatool.open_dataset(folders[3], seed=1)
    loaded = names(batches(opened(folders[3]), LoaderPlan(12), 1))
    assert [sample["key"] for sample in data] == loaded
    with fails("config.unknown_key"):
        vlatool.open_dataset(folders[3], camera_name=["front"])
