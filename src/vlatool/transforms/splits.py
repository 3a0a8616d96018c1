"""Validation split of the shards of a data set."""


def validation_positions(count: int, ratio: float) -> list[int]:
    """Evenly spaced positions of the validation shards among `count` sorted shards; at least one.

    The others are for training; a single shard leaves none. Deterministic, without a seed.
    Source: reference/future-vla 2.2, the numbers included.
    """
    num_validation = max(1, int(count * ratio + 0.999999))
    step = max(1, count // num_validation)
    return list(range(0, count, step))[:num_validation]
