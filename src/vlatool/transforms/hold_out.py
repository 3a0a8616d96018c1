"""Which episodes are held out for evaluation: by the digest of their names, not by their order."""

import hashlib
from collections.abc import Mapping

# Fewest episodes of a task of which one is always held out.
_LEAST_PER_TASK = 5
_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation", "test", "eval")


def split_of(name: str) -> str:
    """`train` or `val` for the name that a recording gives to a split; empty for other names."""
    name = name.lower()
    if name in _TRAIN:
        return "train"
    if name in _VAL:
        return "val"
    return ""


def held_out(tasks: Mapping[str, str], share: float, seed: int) -> frozenset[str]:
    """Chooses the episodes to hold out.

    An episode is held out if the digest of its id with the seed, as a number from 0 to 1, is below
    the share. So an episode stays where it is when others are added. Of a task with five episodes
    or more, and of all episodes together, the one with the smallest number is held out in any case;
    an added episode with a smaller one takes its place.

    Args:
        tasks: Map from the id of each episode to its task.
        share: Share of the episodes to hold out, from 0 to below 1; 0 holds out none.
        seed: Seed of the choice.

    Returns:
        Ids of the episodes that are held out.
    """
    if not share or not tasks:
        return frozenset()
    numbers = {episode: _number(episode, seed) for episode in tasks}
    ids = {episode for episode, number in numbers.items() if number < share}
    episodes_by_task: dict[str, list[str]] = {}
    for episode, task in tasks.items():
        episodes_by_task.setdefault(task, []).append(episode)
    for episodes in episodes_by_task.values():
        if len(episodes) >= _LEAST_PER_TASK:
            ids.add(min(episodes, key=numbers.__getitem__))
    if not ids:
        ids.add(min(tasks, key=numbers.__getitem__))
    return frozenset(ids)


def _number(episode: str, seed: int) -> float:
    """A number from 0 to 1 that depends only on the id of an episode and the seed."""
    digest = hashlib.blake2b(f"{episode} {seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
