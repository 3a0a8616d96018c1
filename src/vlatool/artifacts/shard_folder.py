"""A folder of training data as `vlatool preprocess` writes it: where its files are."""

# What makes an output look whole: taken away first, written last.
CLOSING_FILES = (
    "shards/manifest.jsonl",
    "shards/stats.json",
    "shards/stats_compact.json",
    "episodes/manifest.jsonl",
    "episodes/stats.json",
)
LISTED_FILES = ("shards/preprocessing_config.yaml", *CLOSING_FILES)
UNLISTED_FILES = ("shards/processing_metadata.json",)
DATA_FILES = ("shards/shard_*.tar", "shards/shard_*.index.npz", "episodes/episode_*.tar")
# Patterns of everything that is written there; what others put beside it is left alone.
OWNED_FILES = (*DATA_FILES, *LISTED_FILES, *UNLISTED_FILES)


def episode_tar_name(episode: str) -> str:
    """Where the samples of an episode are, relative to the output."""
    return f"episodes/episode_{episode}.tar"


def shard_name(number: int) -> str:
    """Where a shard is, relative to the output."""
    return f"shards/shard_{number:06d}.tar"
