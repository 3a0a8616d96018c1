"""Recordings whose rows are several episodes."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.builders.folder import image, write_video
from vlatool.episode import Episode
from vlatool.errors import DataError
from vlatool.media.images import encode_png
from vlatool.plugins import FORMATS
from vlatool.recordings.cuts import find_cuts
from vlatool.recordings.detect import detect_source

ROWS = 12


def cut(**columns: Any) -> Any:
    return find_cuts({name: np.asarray(values) for name, values in columns.items()}, ROWS)


@pytest.mark.parametrize("name", ["episode", "episode_id", "episode_index", "traj", "demo"])
def test_a_column_with_the_name_of_the_episode(name: str) -> None:
    cuts = cut(**{name: [3] * 5 + [4] * 4 + [9] * 3})
    assert (cuts.stops, cuts.names, cuts.by) == ((5, 9, 12), ("3", "4", "9"), (name,))


def test_names_may_be_texts() -> None:
    assert cut(episode_id=["b"] * 6 + ["a"] * 6).names == ("b", "a")


def test_a_name_comes_before_flags() -> None:
    flags = np.zeros(ROWS, bool)
    flags[[3, 7, 11]] = True
    assert cut(done=flags, episode=[0] * 6 + [1] * 6).stops == (6, 12)


def test_a_name_that_comes_back_is_an_error() -> None:
    with pytest.raises(ValueError, match="again"):
        cut(episode=[0] * 4 + [1] * 4 + [0] * 4)


@pytest.mark.parametrize(
    "columns",
    [
        {"episode": [2] * ROWS},
        {"episode": list(range(ROWS))},  # counts the rows
        {"done": [True] * ROWS},
        {"done": [False] * ROWS},
        {"done": [False] * 11 + [True]},
        {"done": [False] * 8 + [True] * 4},  # stays set until the end
        {"q": [0] * 6 + [1] * 6},
    ],
)
def test_one_episode(columns: dict[str, Any]) -> None:
    assert cut(**columns) is None


def test_flags_at_the_ends_join() -> None:
    terminals, timeouts = np.zeros((2, ROWS))
    terminals[3] = timeouts[7] = timeouts[11] = 1
    cuts = cut(terminals=terminals, timeouts=timeouts)
    assert (cuts.stops, cuts.by) == ((4, 8, 12), ("terminals", "timeouts"))


def test_flags_at_the_starts() -> None:
    assert cut(is_first=[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).stops == (4, 12)


def test_a_list_of_ends() -> None:
    assert cut(episode_ends=[5, 9, 12]).stops == (5, 9, 12)


def episodes(source: Path) -> list[Episode]:
    found = detect_source(source, None)
    return [found.reader.read(ref) for ref in found.refs]


def states(rows: int = ROWS) -> np.ndarray[Any, Any]:
    return np.sin(np.arange(rows)[:, None] * 0.3 + np.arange(3))


def write_csv(path: Path, names: list[int], times: list[float]) -> None:
    lines = ["timestamp,episode,q0,q1,q2,action0,action1,action2"]
    for row, (time, name) in enumerate(zip(times, names, strict=True)):
        numbers = ",".join(f"{value:.6f}" for value in (*states()[row], *states()[row]))
        lines.append(f"{time:.3f},{name},{numbers}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def test_a_csv_with_a_video_of_all_its_rows(tmp_path: Path) -> None:
    times = [number % 6 / 10 for number in range(ROWS)]
    write_csv(tmp_path / "session/data.csv", [0] * 6 + [1] * 6, times)
    write_video(tmp_path / "session/front.mp4", ROWS, fps=10)

    first, second = episodes(tmp_path)

    assert [episode.id.rpartition("_")[2] for episode in (first, second)] == ["0", "1"]
    assert [episode.num_frames for episode in (first, second)] == [6, 6]
    assert np.allclose(second.lowdim["q"], states()[6:], atol=1e-6)
    assert "episode" not in second.lowdim
    distance = np.abs(second.cameras["front"].read([0])[0].astype(int) - image(6)).mean()
    assert distance < 12


def test_times_without_names_that_run_backwards_are_an_error(tmp_path: Path) -> None:
    times = [number % 6 / 10 for number in range(ROWS)]
    write_csv(tmp_path / "data.csv", [0] * ROWS, times)
    with pytest.raises(DataError) as raised:
        episodes(tmp_path)
    assert raised.value.details["finding"] == "times_backwards"


def test_a_name_that_comes_back_is_named_with_its_table(tmp_path: Path) -> None:
    write_csv(tmp_path / "data.csv", [0] * 4 + [1] * 4 + [0] * 4, [*range(ROWS)])
    with pytest.raises(DataError, match=r"data.csv/episode") as raised:
        episodes(tmp_path)
    assert raised.value.details["finding"] == "mixed_episodes"


def test_images_in_the_cells_of_a_parquet_table(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for row in range(ROWS):
        cell = {"bytes": encode_png(image(row)), "path": None}
        state = states()[row].tolist()
        rows.append({"episode_id": row // 6, "image": cell, "state": state, "action": state})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")

    first, second = episodes(tmp_path)

    assert np.array_equal(second.cameras["image"].read([5])[0], image(11))
    assert second.cameras["image"].encoded(0) == encode_png(image(6))
    assert first.action_fields == ("action",)


def test_flat_transitions_of_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        file["actions"] = states()
        file["observations"] = states() + 1
        file["terminals"] = np.arange(ROWS) % 4 == 3
    several = episodes(tmp_path)
    assert [episode.num_frames for episode in several] == [4, 4, 4]
    assert np.array_equal(several[1].lowdim["actions"], states()[4:8])
    assert several[1].proprioception_fields == ("observations",)


def test_an_episode_across_two_tables_is_broken(tmp_path: Path) -> None:
    for number, names in enumerate(([0, 0, 1, 1], [1, 1, 2, 2])):
        rows = [{"episode_index": name, "action": [name, 1.0]} for name in names]
        path = tmp_path / f"data/train-{number:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = detect_source(tmp_path, None)
    assert len(found.refs) == 4
    for ref in found.refs[1:3]:
        with pytest.raises(DataError, match="join"):
            found.reader.read(ref)
    assert found.reader.read(found.refs[3]).num_frames == 2


def test_a_mapping_is_proposed_for_times_that_run_backwards(tmp_path: Path) -> None:
    times = [number % 6 / 10 for number in range(ROWS)]
    write_csv(tmp_path / "in/e/data.csv", [0] * ROWS, times)
    write_video(tmp_path / "in/e/front.mp4", ROWS, fps=10)
    mapping = tmp_path / "map.yaml"
    mapping.write_text(FORMATS.get("folder").propose(tmp_path / "in") or "")
    found = detect_source(tmp_path / "in", None, {"mapping": str(mapping)})
    assert found.reader.read(found.refs[0]).num_frames == ROWS
