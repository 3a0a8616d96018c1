"""`curate` finds planted defects, and `preprocess` leaves them out."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.planted_defects import DEFECTS, record
from tests.builders.metaworld import skip_without_metaworld
from tests.builders.sink_checks import check_sink
from tests.builders.verifying import verified
from vlatool.config.resolve import Override, load_config
from vlatool.errors import ConfigError, DataError
from vlatool.recordings.curation.layout import CuratedEpisode, badness, read_curation
from vlatool.recordings.curation.writer import CurationSink
from vlatool.recordings.detect import detect_source
from vlatool.training.config import TrainConfig
from vlatool.workflows.curate import CurateConfig, CurateResult, KeepRule, curate, with_reasons
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.train import train
from vlatool.workflows.verify import InspectConfig, inspect

# The figure that has to be worst, or above its limit, for each defect.
FOUND_BY = {
    "early-release": "other_instruction",
    "wrong-object": "other_instruction",
    "wrong-instruction": "other_instruction",
    "tremor": "reversal",
    "late-actions": "action_lag",
    "pause": "idle_share",
    "truncated": "end_distance",
    "swapped-cameras": "swapped_cameras",
    "frozen-camera": "frozen_share",
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of which half have one of the defects."""
    folder = tmp_path_factory.mktemp("planted") / "raw"
    shares = [f"{name}:0.05" for name in DEFECTS]
    config = SampleConfig(layout="libero", output=str(folder), episodes=90, seed=3, size="small")
    record(config, shares)
    return folder


def curated(raw: Path, output: Path, *presets: str, **options: Any) -> CurateResult:
    keys = {"sources": [str(raw)], "output": str(output), "workers": 1, **options}
    overrides = [Override(key.replace("__", "."), value, "test") for key, value in keys.items()]
    return curate(load_config(CurateConfig, presets=presets, overrides=overrides).config)


@pytest.fixture(scope="module")
def output(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated") / "out"
    curated(raw, folder)
    return folder


def test_the_sink_fulfills_its_contract() -> None:
    check_sink(CurationSink, {})


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_figure_tells_episodes_with_a_defect_from_others(
    raw: Path, output: Path, defect: str
) -> None:
    name = FOUND_BY[defect]
    truth = json.loads((raw / "defects.json").read_text())["episodes"]
    bad, good = [], []
    for number, episode in enumerate(read_curation(output).episodes):
        if name not in episode.figures:  # too few frames for a lag
            continue
        value = badness(name, episode.figures[name])
        planted = truth[str(number)]
        (bad if planted == defect else good if not planted else []).append(value)
    assert bad
    pairs = np.array(bad)[:, None] - np.array(good)
    assert (pairs > 0).mean() + (pairs == 0).mean() / 2 > 0.9  # AUROC


def test_rules_are_applied_without_reading_again(raw: Path, tmp_path: Path, output: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(output, folder)
    measured = (folder / "figures.json").read_bytes()
    rules = tmp_path / "rules.yaml"
    rules.write_text("idle_share: {above: 0.1}\n")
    result = curated(raw, folder, keep=str(rules), rules__reversal__worst=0.1)
    assert result.status == "already complete"
    assert result.reasons == {"idle_share": len(over(folder, "idle_share", 0.1)), "reversal": 9}
    assert result.selected == result.episodes - len(result.left_out)
    assert (folder / "figures.json").read_bytes() == measured
    names = read_curation(folder).selected()
    made = preprocess(
        load_config(
            PreprocessConfig,
            presets=["future-vla-tiny-data"],
            overrides=[
                Override(key, value, "test")
                for key, value in {
                    "format": "libero",
                    "sources": [str(raw)],
                    "output": str(tmp_path / "windows"),
                    "episodes": f"@{folder}",
                    "max_episodes": "3",
                    "workers": "1",
                }.items()
            ],
        ).config
    )
    assert made.episodes == 3
    record = json.loads((tmp_path / "windows/.vlatool/run.json").read_text())
    numbers = [int(name.rpartition("_")[2]) for name in names]
    assert expanded(record["options"]["episodes"]) == numbers


def over(folder: Path, name: str, limit: float) -> list[str]:
    return [e.id for e in read_curation(folder).episodes if e.figures.get(name, 0) > limit]


def expanded(ranges: str) -> list[int]:
    pairs = [part.split(":") for part in ranges.split(",")]
    return [number for first, stop in pairs for number in range(int(first), int(stop))]


def test_pages_and_checks_know_a_curation(output: Path) -> None:
    assert inspect(InspectConfig(location=str(output))).document()["episodes"] == 90
    assert verified(output).whole
    page = (output / "curation.html").read_text()
    assert "Worst idle_share" in page
    assert page.count("data:image/jpeg") > 20


def test_length_is_at_most_a_part_of_a_figure() -> None:
    with pytest.raises(ConfigError, match=r'unknown key "rules\.frames"'):
        load_config(CurateConfig, overrides=[Override("rules.frames.above", "3", "test")])
    with pytest.raises(ConfigError, match=r"did you mean .*idle_share"):
        load_config(CurateConfig, overrides=[Override("rules.idle_shar.above", "3", "test")])
    with pytest.raises(ConfigError, match="give above, below, worst or deviations"):
        load_config(CurateConfig, overrides=[Override("rules.reversal.above", "null", "test")])


def test_worst_are_those_at_the_bad_end_and_ties_keep_their_order() -> None:
    values = [-3.0, -1.0, -2.0, -2.0]
    episodes = [
        CuratedEpisode(
            str(number),
            10,
            "",
            {"duplicate_distance": value, "idle_share": -value},
            {"duplicate_distance": 2 * value, "idle_share": -2 * value},
        )
        for number, value in enumerate(values)
    ]
    for name in ("duplicate_distance", "idle_share"):
        judged = with_reasons(episodes, {name: KeepRule(worst=0.5)})
        assert [e.id for e in judged if e.reasons] == ["0", "2"]
    judged = with_reasons(
        episodes, {"duplicate_distance": KeepRule(below=-2.5), "idle_share": KeepRule(above=1.5)}
    )
    assert [len(episode.reasons) for episode in judged] == [2, 0, 1, 1]
    for name in ("duplicate_distance", "idle_share"):
        judged = with_reasons(episodes, {name: KeepRule(deviations=4)})
        assert [e.id for e in judged if e.reasons] == ["0"]
    # An episode without the figure is kept.
    assert not any(e.reasons for e in with_reasons(episodes, {"reversal": KeepRule(worst=0.5)}))


def test_a_selection_of_another_curation_is_refused(
    output: Path, raw: Path, tmp_path: Path
) -> None:
    def select(place: Path) -> None:
        words = {"format": "libero", "sources": [str(raw)], "output": str(tmp_path / "windows")}
        keys = {**words, "episodes": f"@{place}", "dry_run": "true"}
        overrides = [Override(key, value, "test") for key, value in keys.items()]
        preprocess(load_config(PreprocessConfig, overrides=overrides).config)

    with pytest.raises(DataError, match="does not exist"):
        select(tmp_path)
    with pytest.raises(DataError, match="has no rules yet"):
        select(output / "figures.json")
    document = json.loads((output / "curation.json").read_text())
    document["episodes"][0]["id"] = "other"
    (tmp_path / "curation.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="other is not in the source"):
        select(tmp_path)
    (tmp_path / "curation.json").write_text(json.dumps(document | {"episodes": [{}]}))
    with pytest.raises(DataError, match="Field required"):
        select(tmp_path)


def test_what_the_data_lack_is_absent_and_named(raw: Path, tmp_path: Path) -> None:
    result = curated(raw, tmp_path / "one", episodes="0", camera_names="none")
    assert "swapped_cameras" in result.absent
    assert "fewer than two cameras" in result.absent["swapped_cameras"]
    assert "frozen_share" in result.absent
    assert "instruction" in result.absent["other_instruction"]
    assert "idle_share" not in result.absent
    assert not (tmp_path / "one/strips").exists()


@pytest.mark.slow  # trains two policies
def test_errors_of_policies_that_were_not_trained_on_an_episode(tmp_path: Path) -> None:
    raw, data, run = (str(tmp_path / name) for name in ("raw", "data", "run"))
    sample(SampleConfig(layout="spartan", output=raw, episodes=6, frames=24, workers=1))
    windows = {"sources": [raw], "output": data, "workers": "1", "sink.type": "frames"}
    preprocess(
        load_config(PreprocessConfig, presets=["world-windows"], overrides=typed(windows)).config
    )
    steps = {"total_train_steps": "2", "save_path": str(tmp_path), "name": "run"}
    overrides = typed({"data.dataset_manifest": [data], **steps})
    train(load_config(TrainConfig, presets=["world-pick"], overrides=overrides).config)
    output = tmp_path / "out"
    result = curated(Path(raw), output, model=run, folds="2", rules__model_error__worst="0.5")
    assert result.reasons == {"model_error": 3}
    episodes = read_curation(output).episodes
    assert all(episode.figures["model_error"] > 0 for episode in episodes)
    assert verified(output).whole
    with pytest.raises(DataError, match="no training run"):
        curated(Path(raw), output, model=raw)


def typed(keys: dict[str, Any]) -> list[Override]:
    return [Override(key, value, "test") for key, value in keys.items()]


@pytest.mark.slow
def test_defects_of_meta_world_have_the_length_of_the_episode_without(tmp_path: Path) -> None:
    skip_without_metaworld()

    def recorded(name: str, *defects: str) -> dict[str, np.ndarray]:
        keys = {"layout": "lerobot", "world": "metaworld", "task": ["reach-v3", "drawer-open-v3"]}
        folder = tmp_path / name
        config = SampleConfig.model_validate(
            {**keys, "output": str(folder), "episodes": 1, "workers": 1}
        )
        record(config, defects)
        source = detect_source(folder, None)
        episode = source.reader.read(source.refs[0])
        images = {
            camera: frames.read([0, len(frames) // 2, len(frames) - 1]).astype(int)
            for camera, frames in episode.cameras.items()
        }
        return {**episode.lowdim, **images, "text": np.array([episode.instruction_at(0)])}

    clean = recorded("clean")
    changed = {name: recorded(name, f"{name}:1") for name in DEFECTS if name != "wrong-object"}
    lengths = {name: len(fields["action"]) for name, fields in changed.items()}
    frames = len(clean["action"])
    assert lengths.pop("truncated") == round(0.75 * frames)
    assert {*lengths.values()} == {frames}
    late = changed["late-actions"]["action"]
    assert any(np.array_equal(late[n:], clean["action"][:-n]) for n in (1, 2, 3))
    assert changed["wrong-instruction"]["text"] != clean["text"]
    shaken = np.diff(changed["tremor"]["action"][:, :3], axis=0)
    assert np.abs(shaken).mean() > 3 * np.abs(np.diff(clean["action"][:, :3], axis=0)).mean()
    assert (changed["pause"]["action"][:, :3] == 0).all(axis=1).sum() >= frames // 5
    front, *_, last = (name for name in clean if "images" in name)
    assert np.abs(changed["swapped-cameras"][front] - clean[last]).mean() < 10
    still = changed["frozen-camera"]
    assert np.abs(still[front] - clean[front]).mean() < 5
    assert np.abs(still[last][1] - still[last][2]).mean() < 5
