import numpy as np
import pytest

from vlatool.world.recording import expert_action, expert_episode
from vlatool.world.scene import (
    BIN_HALF,
    CLOSED,
    MAX_STEP,
    MAX_STEPS,
    OPEN,
    Scene,
    next_pose,
    random_scene,
    step,
)


def scene_at(x: float, y: float, z: float, opening: float = OPEN) -> Scene:
    blocks = np.array([[0.3, 0.3, 0.045], [0.7, 0.3, 0.045], [0.3, 0.7, 0.045]])
    return Scene(np.array([x, y, z, opening]), blocks, np.array([0.7, 0.7]))


def run(scene: Scene, *commands: tuple[float, float, float, float]) -> Scene:
    for command in commands:
        scene = step(scene, np.array(command))
    return scene


def test_expert_succeeds_under_disturbance_on_every_start() -> None:
    episodes = [expert_episode(3, index) for index in range(40)]
    assert all(episode.success for episode in episodes)
    lengths = [*map(len, episodes)]
    assert 25 < np.mean(lengths) < 45
    assert max(lengths) <= 75


@pytest.mark.parametrize("policy", ["nothing", "random"])
def test_baseline_never_succeeds(policy: str) -> None:
    rng = np.random.default_rng(0)
    for index in range(20):
        scene = random_scene(np.random.default_rng(index))
        for _ in range(MAX_STEPS):
            command = rng.uniform(0, [1, 1, 0.3, OPEN]) if policy == "random" else scene.gripper
            scene = step(scene, command)
            assert not scene.is_in_bin(index % 3)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_target_decides_which_block_ends_in_the_bin(target: int) -> None:
    scene = random_scene(np.random.default_rng(5))
    for _ in range(MAX_STEPS):
        scene = step(scene, expert_action(scene, target))
    # The block is reported for every target, and a success for its own.
    assert scene.placed(0) == target
    assert [scene.is_in_bin(block) for block in range(3)] == [block == target for block in range(3)]


def test_hand_moves_at_most_one_step() -> None:
    moved = next_pose(np.array([0.5, 0.5, 0.2, OPEN]), np.array([0.9, 0.1, 0.05, OPEN]))
    assert np.linalg.norm(moved[:3] - [0.5, 0.5, 0.2]) == pytest.approx(MAX_STEP)


def test_closing_low_and_near_grasps_and_lifts() -> None:
    lifted = run(scene_at(0.31, 0.3, 0.04), (0.31, 0.3, 0.04, CLOSED), (0.31, 0.3, 0.08, CLOSED))
    assert lifted.held == 0
    assert lifted.blocks[0, 2] > 0.08


@pytest.mark.parametrize(
    ("x", "z", "opening"),
    [(0.31, 0.06, OPEN), (0.34, 0.04, OPEN), (0.3, 0.03, CLOSED)],
    ids=["high", "beside", "arrives closed"],
)
def test_closing_out_of_reach_grasps_nothing(x: float, z: float, opening: float) -> None:
    assert run(scene_at(x, 0.3, z, opening), (x, 0.3, z, CLOSED)).held is None


def test_opening_drops_the_block() -> None:
    held = run(scene_at(0.3, 0.3, 0.03), (0.3, 0.3, 0.03, CLOSED), (0.3, 0.3, 0.07, CLOSED))
    dropped = run(held, (0.3, 0.3, 0.07, OPEN))
    assert dropped.held is None
    assert dropped.blocks[0, 2] == pytest.approx(0.045)


def test_block_over_the_bin_counts_only_when_released() -> None:
    scene = Scene(
        np.array([0.7, 0.7, 0.1, 0.04]), scene_at(0, 0, 0).blocks, np.array([0.7, 0.7]), 0
    )
    over = run(scene, (0.7, 0.7, 0.1, CLOSED))
    assert not over.is_in_bin(0)
    assert run(over, (0.7, 0.7, 0.1, OPEN)).is_in_bin(0)


def test_starts_keep_their_distances() -> None:
    for index in range(50):
        scene = random_scene(np.random.default_rng(index))
        gaps = [
            np.linalg.norm(scene.blocks[a] - scene.blocks[b]) for a, b in ((0, 1), (1, 2), (0, 2))
        ]
        assert min(gaps) >= 0.15
        assert np.linalg.norm(scene.blocks[:, :2] - scene.bin, axis=1).min() >= 0.2 > BIN_HALF
