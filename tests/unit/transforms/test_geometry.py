import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlatool.transforms.geometry import ResizeMethod, make_geometry, published_intrinsics

METHODS: tuple[ResizeMethod, ...] = ("center_crop", "resize_no_crop", "resize_fit")


def matrix(fx: float, fy: float, cx: float, cy: float, skew: float = 0.0) -> np.ndarray:
    return np.array([[fx, skew, cx], [0, fy, cy], [0, 0, 1]])


def smooth_photo(height: int, width: int) -> np.ndarray:
    """Blurred noise and large shapes, uint8 [H, W, 3]: the spectrum of a photo, not of a chart."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3))
    blurred = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.BICUBIC)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 20 * np.sin(rows / 9.0)[..., None] + 20 * np.cos(columns / 7.0)[..., None]
    return np.clip(np.asarray(blurred) * 0.7 + 40 + waves, 0, 255).astype(np.uint8)


# Source: formats/lbm-preprocessing 4; sizes are (height, width)
@pytest.mark.parametrize(
    ("original", "target", "original_matrix", "expected"),
    [
        (
            (480, 640),
            (224, 224),
            (616.1290, 615.7580, 321.2690, 247.8640),
            (287.52688, 287.35373, 112.59221, 115.66987),
        ),
        (
            (600, 960),
            (224, 224),
            (416.31268, 415.36661, 484.25815, 304.04462),
            (155.42340, 155.07020, 113.58971, 113.50999),
        ),
        ((480, 640), (384, 384), (100, 100, 320, 240), (80, 80, 192, 192)),
        ((640, 480), (384, 384), (100, 100, 240, 320), (80, 80, 192, 192)),
    ],
)
def test_published_intrinsics_equal_the_published_numbers(
    original: tuple[int, int],
    target: tuple[int, int],
    original_matrix: tuple[float, ...],
    expected: tuple[float, ...],
) -> None:
    geometry = make_geometry(original, target, "center_crop")

    result = published_intrinsics(matrix(*original_matrix), geometry, "center_crop")

    np.testing.assert_allclose(result, matrix(*expected), atol=1e-4)


def test_published_intrinsics_drop_skew_and_exact_ones_keep_it() -> None:
    skewed = matrix(10, 10, 5, 5, skew=4)
    cropped = make_geometry((480, 640), (224, 224), "center_crop")
    resized = make_geometry((480, 640), (240, 320), "resize_no_crop")

    assert published_intrinsics(skewed, cropped, "center_crop")[0, 1] == 0
    assert resized.intrinsics(skewed)[0, 1] == 2


# Source: formats/lbm-preprocessing 2.5, 4; sizes are (height, width)
@pytest.mark.parametrize(
    ("original", "target", "scaled", "offset"),
    [
        ((480, 640), (384, 384), (384, 512), (0, 64)),
        ((480, 640), (256, 342), (256, 342), (0, 0)),
        ((600, 960), (224, 224), (224, 358), (0, 67)),
    ],
)
def test_center_crop_takes_the_published_pixels(
    original: tuple[int, int],
    target: tuple[int, int],
    scaled: tuple[int, int],
    offset: tuple[int, int],
) -> None:
    geometry = make_geometry(original, target, "center_crop")

    # The published size is truncated; where that would uncover the target it is the target.
    assert (geometry.scaled, geometry.offset) == (scaled, offset)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("original", "target"),
    [((96, 128), (64, 64)), ((60, 96), (44, 44)), ((111, 111), (224, 224)), ((120, 90), (70, 110))],
)
def test_exact_intrinsics_point_at_the_pixel_where_a_dot_lands(
    original: tuple[int, int], target: tuple[int, int], method: ResizeMethod, turns: int
) -> None:
    row, column = original[0] // 2 + 9, original[1] // 2 - 7
    image = np.zeros((*original, 3), np.uint8)
    image[row - 1 : row + 2, column - 1 : column + 2] = 255
    geometry = make_geometry(original, target, method, turns)

    light = geometry.apply(image).astype(float).sum(axis=2)

    rows, columns = np.mgrid[0 : target[0], 0 : target[1]] + 0.5
    center = (columns * light).sum() / light.sum(), (rows * light).sum() / light.sum()
    # The ray of the center of the pixel, in the frame of the rotated camera.
    rotation = np.linalg.inv(geometry.rotated_extrinsics(np.eye(4)))[:3, :3]
    ray = rotation @ (column + 0.5, row + 0.5, 1)
    projected = geometry.intrinsics(geometry.rotated_intrinsics(np.eye(3))) @ ray
    np.testing.assert_allclose(center, projected[:2], atol=0.3)


@pytest.mark.parametrize("size", [(111, 111), (113, 111), (223, 97)])
def test_center_crop_leaves_no_black_line(size: tuple[int, int]) -> None:
    geometry = make_geometry(size, (224, 224), "center_crop")

    image = geometry.apply(np.full((*size, 3), 200, np.uint8))

    assert image.shape == (224, 224, 3)
    assert image.min() > 190


def test_fit_puts_black_bars_on_both_sides() -> None:
    geometry = make_geometry((48, 64), (64, 64), "resize_fit")

    image = geometry.apply(np.full((48, 64, 3), 200, np.uint8))

    assert image[:8].max() == 0
    assert image[-8:].max() == 0
    assert image[8:-8].min() > 190


@pytest.mark.parametrize(
    ("original", "target"), [((480, 640), (224, 224)), ((600, 960), (224, 224))]
)
def test_resize_of_the_cropped_box_is_close_to_resize_then_crop(
    original: tuple[int, int], target: tuple[int, int]
) -> None:
    image = smooth_photo(*original)
    geometry = make_geometry(original, target, "center_crop")
    whole = Image.fromarray(image).resize(geometry.scaled[::-1], Image.Resampling.LANCZOS)
    top, left = geometry.offset
    published = whole.crop((left, top, left + target[1], top + target[0]))

    error = geometry.apply(image).astype(float) - np.asarray(published, float)

    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-12)) >= 38


def test_image_of_the_target_size_is_untouched() -> None:
    image = smooth_photo(60, 80)

    result = make_geometry((60, 80), (60, 80), "center_crop").apply(image)

    assert (result == image).all()


# int(164 * s) is 80 and not 81: one row to fill, nothing to center.
@example(original=(164, 604), target=(81, 298), method="resize_fit")
@settings(deadline=None, max_examples=60)
@given(
    original=st.tuples(st.integers(4, 300), st.integers(4, 300)),
    target=st.tuples(st.integers(4, 300), st.integers(4, 300)),
    method=st.sampled_from(METHODS),
)
def test_every_size_gives_the_target_size(
    original: tuple[int, int], target: tuple[int, int], method: ResizeMethod
) -> None:
    geometry = make_geometry(original, target, method)

    assert geometry.apply(np.zeros((*original, 3), np.uint8)).shape == (*target, 3)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_images_are_rotated_clockwise(turns: int) -> None:
    image = smooth_photo(40, 60)

    result = make_geometry((40, 60), None, "center_crop", turns).apply(image)

    assert (result == np.rot90(image, -turns)).all()


@settings(deadline=None, max_examples=60)
@given(
    turns=st.integers(1, 3),
    method=st.sampled_from(METHODS),
    target=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    ray=st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4)),
)
def test_point_stays_on_its_scene_pixel_through_turns_and_resize(
    turns: int, method: ResizeMethod, target: tuple[int, int], ray: tuple[float, float]
) -> None:
    size = (48, 64)
    original_matrix, pose = matrix(50, 55, 30, 22), np.eye(4)
    pose[:3, 3] = (0.3, -0.2, 0.1)
    point = pose @ (*ray, 1, 1)
    before = original_matrix @ (*ray, 1)
    geometry = make_geometry(size, target, method, turns)

    k = geometry.intrinsics(geometry.rotated_intrinsics(original_matrix))
    seen = k @ (np.linalg.inv(geometry.rotated_extrinsics(pose)) @ point)[:3]

    # The same pixel by hand: rotate the image, then scale and shift.
    x, y, (height, width) = before[0], before[1], size
    for _ in range(turns):
        x, y, height, width = height - y, x, width, height
    scale_y, scale_x = (s / o for s, o in zip(geometry.scaled, (height, width), strict=True))
    by_hand = (x * scale_x - geometry.offset[1], y * scale_y - geometry.offset[0])
    np.testing.assert_allclose(seen[:2] / seen[2], by_hand, atol=1e-9)
    assert seen[2] == pytest.approx(1)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_values_are_never_interpolated(method: ResizeMethod, turns: int) -> None:
    values = np.random.default_rng(0).integers(1, 2**16, (40, 60)).astype(np.uint16)

    resized = make_geometry((40, 60), (33, 27), method, turns).apply_to_values(values)

    assert resized.shape == (33, 27)
    assert set(np.unique(resized)) <= {0, *np.unique(values).tolist()}
