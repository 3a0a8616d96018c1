"""Which shards of a data set are kept for validation."""


def validation_positions(count: int, ratio: float) -> list[int]:
    """Positions among `count` sorted shards that are for validation, evenly spread; one at least.

    The others are for training; of one shard none is left. No seed: the same every time.
    Source: reference/future-vla 2.2, the numbers included.
    """
    num_validation = max(1, int(count * ratio + 0.999999))
    step = max(1, count // num_validation)
    return list(range(0, count, step))[:num_validation]
