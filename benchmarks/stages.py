"""CPU seconds of each stage of `preprocess spartan`, for one episode.

    python benchmarks/stages.py RAW [--size 384,384]

RAW is a folder of Spartan episodes, such as that of `vlatool sample spartan RAW --size published
--cameras 6 --frames 60 --depth`. Stages run one after the other in one thread, each on the result
of the previous one.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe

from vlatool.datasets.stats.layout import compact, write_stats
from vlatool.jobs.journal import Journal, Receipt
from vlatool.media.images import encode_jpeg
from vlatool.media.npz import write_arrays
from vlatool.media.tar import TarWriter, member_bytes
from vlatool.media.tar_sample import sample_members
from vlatool.recordings.spartan.config import SpartanConfig
from vlatool.recordings.spartan.reader import SpartanReader
from vlatool.transforms.statistics import StatisticsAccumulator, field_entries, to_arrays
from vlatool.transforms.windows import EpisodeSampler, SampleSpec, WindowSpec

CAMERAS = ("scene_right_0", "scene_left_0", "wrist_left_plus", "wrist_right_minus")


class Stages:
    """CPU seconds by name, in the order of their first use."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Runs the work and adds its CPU time to the stage."""
        started = time.process_time()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started
        return result


def main(raw: Path, size: tuple[int, int]) -> None:
    """Runs all stages for one episode and prints a table."""
    stages = Stages()
    reader = SpartanReader(SpartanConfig())
    ref = next(iter(stages.run("discover", lambda: list(reader.discover([raw])))))
    episode = stages.run("read numbers", lambda: reader.read(ref))
    spec = SampleSpec(WindowSpec(1, 14, 1, 3, 15), (-1, 0), (size[1], size[0]), "center_crop")
    cameras = [name for name in CAMERAS if name in episode.cameras]
    sampler = stages.run("cut windows", lambda: EpisodeSampler(episode, cameras, spec))
    encoded = _images(sampler, stages)
    with tempfile.TemporaryDirectory() as folder:
        _samples(sampler, encoded, stages, Path(folder))
        part = stages.run("statistics of the episode", sampler.statistics)
        total = StatisticsAccumulator()
        total.add(part)
        stages.run("journal", lambda: Journal(Path(folder)).store(_receipt(part)))
        entries = stages.run(
            "statistics: entries", lambda: dict(field_entries(total.total(), sampler.widths()))
        )
        full, small = Path(folder, "full.json"), Path(folder, "compact.json")
        stages.run("statistics: file", lambda: write_stats(full, entries))
        stages.run("statistics: compact file", lambda: write_stats(small, compact(entries)))
    print(describe())
    total_s = sum(stages.seconds.values())
    print(f"{len(sampler)} samples of {len(cameras)} cameras; {total_s:.2f} CPU seconds")
    for name, seconds in stages.seconds.items():
        print(f"{name:28} {seconds:6.3f} s {100 * seconds / total_s:5.1f} %")


def _images(sampler: EpisodeSampler, stages: Stages) -> dict[tuple[str, int], bytes]:
    encoded: dict[tuple[str, int], bytes] = {}
    for name in sampler.cameras:
        source, geometry = sampler.episode.cameras[name], sampler.geometries[name]
        for frame in sorted(sampler.needed_frames()):
            pixels = stages.run("decode images", lambda s=source, f=frame: s.read([f])[0])
            image = stages.run("resize images", lambda g=geometry, p=pixels: g.apply(p))
            encoded[name, frame] = stages.run("encode JPEG", lambda p=image: encode_jpeg(p, 95))
    return encoded


def _samples(
    sampler: EpisodeSampler,
    encoded: dict[tuple[str, int], bytes],
    stages: Stages,
    folder: Path,
) -> None:
    samples = stages.run("make samples", lambda: list(sampler))
    for sample in samples:
        stages.run("deflate numbers", lambda s=sample: write_arrays(s.lowdim))
    with (folder / "episode.tar").open("wb") as file:
        tar = TarWriter(file)
        for sample in samples:
            images = {
                f"{name}_t{offset}.jpg": encoded[name, frame]
                for offset, frame in sample.image_frames.items()
                for name in sampler.cameras
            }
            # The numbers are deflated already: their bytes come from a cache.
            members = list(sample_members(sample, images))
            stages.run(
                "write tar with digest",
                lambda m=members, t=tar: t.append(b"".join(member_bytes(*member) for member in m)),
            )


def _receipt(statistics: Any) -> Receipt:
    return Receipt("episode", arrays=to_arrays(statistics))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("raw", type=Path)
    parser.add_argument("--size", default="384,384")
    arguments = parser.parse_args()
    width, height = (int(part) for part in arguments.size.split(","))
    main(arguments.raw, (width, height))
