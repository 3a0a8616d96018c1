import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlatool.transforms.geometry import ResizeMethod, make_geometry, resize

SIZES = [
    # Published cameras and images, then unusual sizes; sizes are (height, width).
    ((480, 640), (384, 384)),
    ((600, 960), (384, 384)),
    ((480, 640), (224, 224)),
    ((600, 960), (224, 224)),
    ((1080, 1920), (256, 256)),
    ((96, 96), (64, 64)),
    ((97, 131), (64, 61)),
    ((60, 80), (12, 16)),
    ((400, 333), (9, 7)),
    ((64, 64), (96, 96)),
    ((40, 200), (60, 60)),
]
DIGEST = """
import hashlib, numpy as np
from vlatool.transforms.geometry import resize
digest = hashlib.sha256()
for size, target in (((480, 640), (384, 384)), ((600, 960), (224, 224)), ((97, 131), (64, 61))):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    for method in ("center_crop", "resize_no_crop", "resize_fit"):
        digest.update(resize(image, target, method, "lanczos_vips").tobytes())
print(digest.hexdigest())
"""
FORKED = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from vlatool.transforms.geometry import resize
image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
def small(_):
    return resize(image, (33, 27), "center_crop", "lanczos_vips").tobytes()
with ThreadPoolExecutor(2) as pool:
    before = set(pool.map(small, range(20)))
    child = os.fork()
    if child == 0:
        with ThreadPoolExecutor(2) as mine:
            os._exit(0 if set(mine.map(small, range(20))) == before and len(before) == 1 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def photo(height: int, width: int) -> np.ndarray:
    """Large shapes, waves and the noise of a camera, uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (max(height // 20, 2), max(width // 20, 2), 3)).astype(np.uint8)
    shapes = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 20 * np.sin(rows / 9.0)[..., None] + 20 * np.cos(columns / 7.0)[..., None]
    noise = rng.normal(0, 4, (height, width, 3))
    return np.clip(shapes * 0.7 + 40 + waves + noise, 0, 255).astype(np.uint8)


def output_of(program: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@pytest.mark.parametrize("method", ["center_crop", "resize_no_crop", "resize_fit"])
@pytest.mark.parametrize(("original", "target"), SIZES)
def test_default_filter_is_within_38_db_of_the_published_one(
    original: tuple[int, int], target: tuple[int, int], method: ResizeMethod
) -> None:
    image = photo(*original)

    fast = resize(image, target, method, "lanczos_vips").astype(float)

    error = ((fast - resize(image, target, method, "lanczos")) ** 2).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-12)) >= 38


def test_published_filter_is_that_of_pillow_and_not_the_default_one() -> None:
    image = photo(96, 144)
    box = (24, 0, 120, 96)
    theirs = Image.fromarray(image).resize((64, 64), Image.Resampling.LANCZOS, box=box)

    assert (resize(image, (64, 64), "center_crop", "lanczos") == np.asarray(theirs)).all()
    assert (resize(image, (64, 64), "center_crop", "lanczos_vips") != np.asarray(theirs)).any()


@pytest.mark.parametrize("target", [(96, 96), (30, 200)])
def test_enlarged_image_is_that_of_pillow_with_the_default_filter(target: tuple[int, int]) -> None:
    image = photo(64, 64)

    fast = resize(image, target, "resize_no_crop", "lanczos_vips")

    assert (fast == resize(image, target, "resize_no_crop", "lanczos")).all()


def test_crop_equals_the_crop_of_the_whole_resized_image() -> None:
    image = photo(97, 131)
    geometry = make_geometry((97, 131), (64, 61), "center_crop")
    whole = resize(image, geometry.scaled, "resize_no_crop", "lanczos_vips")
    top, left = geometry.offset

    part = resize(image, (64, 61), "center_crop", "lanczos_vips")

    assert (part == whole[top : top + 64, left : left + 61]).all()


def test_strided_image_is_resized_like_its_copy() -> None:
    image = photo(96, 128)[::2, ::-1]

    part = resize(image, (24, 24), "center_crop", "lanczos_vips")

    assert (part == resize(image.copy(), (24, 24), "center_crop", "lanczos_vips")).all()


@pytest.fixture(scope="module")
def digest() -> str:
    return output_of(DIGEST)


@pytest.mark.parametrize(
    "variables",
    [{"VIPS_NOVECTOR": "1"}, *({"VIPS_CONCURRENCY": number} for number in "127")],
    ids=["no vector instructions", "1 thread", "2 threads", "7 threads"],
)
def test_bytes_are_the_same_with(variables: dict[str, str], digest: str) -> None:
    assert output_of(DIGEST, **variables) == digest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_can_resize_after_its_parent() -> None:
    assert output_of(FORKED) == ""


def test_resizing_starts_no_threads_and_keeps_nothing() -> None:
    import pyvips

    before = set(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else set()
    for _ in range(3):
        resize(photo(60, 80), (20, 20), "center_crop", "lanczos_vips")

    now = set(os.listdir("/proc/self/task")) if before else set()
    assert (now - before, pyvips.cache_get_size()) == (set(), 0)


def test_libvips_is_not_loaded_where_images_keep_their_size() -> None:
    program = """
import sys, numpy as np
import vlatool.datasets.lbm.writer
from vlatool.transforms.geometry import resize
resize(np.zeros((6, 8, 3), np.uint8), (6, 8), "center_crop", "lanczos_vips")
print("pyvips" in sys.modules)
"""
    assert output_of(program) == "False\n"


@pytest.mark.parametrize("error", ["OSError", "ModuleNotFoundError"])
def test_missing_libvips_is_no_bug_and_no_damaged_episode(error: str, tmp_path: Path) -> None:
    (tmp_path / "pyvips.py").write_text(f"raise {error}('libvips.so.42')")
    program = f"""
import sys, numpy as np
from vlatool.errors import EnvironmentProblem
from vlatool.transforms.geometry import resize
sys.path.insert(0, {str(tmp_path)!r})
try:
    resize(np.zeros((6, 8, 3), np.uint8), (3, 4), "center_crop", "lanczos_vips")
except EnvironmentProblem as problem:
    print(problem.code)
"""
    assert output_of(program) == "environment.missing_dependency\n"
