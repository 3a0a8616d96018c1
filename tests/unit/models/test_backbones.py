import pytest
import torch
from torch import Tensor

from vlatool.models.backbones.config import (
    ByteTextConfig,
    KeypointBackboneConfig,
    ViTBackboneConfig,
)
from vlatool.models.backbones.from_scratch import (
    ByteTextEncoder,
    KeypointBackbone,
    ViTBackbone,
    spatial_softmax,
)
from vlatool.models.backbones.text import encode_text

TEXT = ByteTextConfig(hidden_dim=8)


def keypoints(
    text: ByteTextConfig | None = TEXT, cameras: int = 2, times: int = 2, group_norm: bool = False
) -> KeypointBackbone:
    torch.manual_seed(0)
    config = KeypointBackboneConfig(
        hidden_dim=16,
        channels=(4, 8),
        num_keypoints=6,
        group_norm=group_norm,
        text_encoder=text,
        num_cameras=cameras,
        num_times=times,
    )
    return KeypointBackbone(config)


def vit(text: ByteTextConfig | None = None) -> ViTBackbone:
    torch.manual_seed(0)
    sizes = {"hidden_dim": 16, "inter_dim": 32, "patch_size": 8, "img_size": 16}
    return ViTBackbone(ViTBackboneConfig(**sizes, n_heads=2, n_layers=1, text_encoder=text))


def make_images(batch: int = 2, count: int = 4, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, count, 3, size, size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def encode(*sentences: str) -> Tensor:
    return encode_text(sentences, 128)


# text


def test_encode_text_is_bytes_plus_one_padded_with_zeros_to_32() -> None:
    encoded = encode_text(["ab", "\u00e4"], 128)
    assert encoded.shape == (2, 32)
    assert encoded.dtype == torch.int64
    assert encoded[0].tolist() == [98, 99] + [0] * 30
    assert encoded[1].tolist() == [0xC3 + 1, 0xA4 + 1] + [0] * 30


@pytest.mark.parametrize(
    ("sentences", "length", "width"),
    [(["a" * 33], 128, 64), (["a" * 500], 128, 128), (["a" * 500], 100, 100), ([""], 128, 32)],
)
def test_encode_text_rounds_up_and_truncates(sentences: list[str], length: int, width: int) -> None:
    assert encode_text(sentences, length).shape == (1, width)


def test_text_vector_does_not_depend_on_padding() -> None:
    encoder = ByteTextEncoder(TEXT)
    single = encoder(encode("put it down"))
    padded = encoder(encode("put it down", "x" * 90))[:1]
    torch.testing.assert_close(single, padded)
    assert torch.isfinite(encoder(encode(""))).all()


# keypoints


def blobs(row: int, column: int) -> Tensor:
    """Two maps, the second of which peaks at its center."""
    maps = torch.zeros(1, 2, 9, 9)
    maps[0, 0, row, column] = maps[0, 1, 4, 4] = 50.0
    return maps


@pytest.mark.parametrize(
    ("row", "column", "x", "y"), [(4, 4, 0, 0), (0, 8, 1, -1), (8, 0, -1, 1), (4, 6, 0.5, 0)]
)
def test_spatial_softmax_is_where_the_map_peaks(row: int, column: int, x: float, y: float) -> None:
    result = spatial_softmax(blobs(row, column), torch.tensor(1.0))
    torch.testing.assert_close(result, torch.tensor([[x, 0, y, 0]]).float(), atol=1e-5, rtol=0)


def test_untrained_keypoints_move_more_with_an_object_if_features_are_normalized() -> None:
    images = torch.full((2, 1, 3, 64, 64), -0.2)
    images[0, ..., 8:14, 8:14] = 0.5
    images[1, ..., 48:54, 48:54] = 0.5
    moved: list[float] = []
    for group_norm in (False, True):
        encoder = keypoints(None, 1, group_norm=group_norm).cameras[0]
        encoder.out = torch.nn.Identity()
        here, there = encoder(images, None)[:, 0]
        moved.append((here - there).abs().mean().item())
    assert moved[1] > 5 * moved[0]


def test_keypoint_backbone_has_one_token_per_image_and_one_for_text() -> None:
    assert keypoints()(make_images(), encode("a", "b")).shape == (2, 5, 16)
    assert keypoints(text=None)(make_images(), encode("a", "b")).shape == (2, 4, 16)


def test_text_changes_every_token() -> None:
    backbone = keypoints()
    images = make_images(batch=1).expand(2, -1, -1, -1, -1)
    first, second = backbone(images, encode("put the red block away", "put the green block away"))
    assert bool(((first - second).abs().amax(dim=1) > 0).all())


def test_each_camera_has_separate_weights_and_time_is_outer() -> None:
    backbone = keypoints(text=None)
    images = make_images(batch=1)
    tokens = backbone(images, encode(""))
    changed = images.clone()
    changed[:, 3] = 255 - changed[:, 3]
    difference = (backbone(changed, encode("")) - tokens).abs().amax(dim=2)[0]
    assert (difference > 0).tolist() == [False, False, False, True]
    same = images[:, :1].expand(-1, 4, -1, -1, -1)
    tokens = backbone(same, encode(""))[0]
    marks = backbone.time_marks[:, 0]
    torch.testing.assert_close(tokens[0] - marks[0], tokens[2] - marks[1])
    assert not torch.allclose(tokens[0], tokens[1])


# vision transformer


def test_every_patch_of_every_image_is_a_token() -> None:
    assert vit()(make_images(), encode("a", "b")).shape == (2, 4 * 4, 16)
    assert vit(TEXT)(make_images(), encode("a", "b")).shape == (2, 1 + 4 * 4, 16)


def test_language_changes_the_output_only_with_a_text_encoder() -> None:
    images = make_images(batch=1).expand(2, -1, -1, -1, -1)
    without, with_text = vit()(images, encode("a", "b")), vit(TEXT)(images, encode("a", "b"))
    assert torch.equal(without[0], without[1])
    assert not torch.equal(with_text[0], with_text[1])


# Source: formats/published-runs 4.1
def test_vision_transformer_without_text_has_the_published_names() -> None:
    block = "_model.blocks.0."
    parts = ["ln1", "attn.qkv_proj", "attn.out_proj", "ln2", "mlp.fc1", "mlp.fc2"]
    modules = [block + part for part in parts] + ["_model.layer_norm"]
    names = {f"{name}.{kind}" for name in modules for kind in ("weight", "bias")}
    names |= {f"_model.patch_embedding.conv.{kind}" for kind in ("weight", "bias")}
    assert vit().state_dict().keys() == names | {"_model.patch_embedding.position_embedding"}
    assert any(name.startswith("text.") for name in vit(TEXT).state_dict())


def test_images_of_another_size_are_resized() -> None:
    flat = torch.full((1, 1, 3, 48, 40), 90, dtype=torch.uint8)
    small = torch.full((1, 1, 3, 16, 16), 90, dtype=torch.uint8)
    torch.testing.assert_close(vit()(flat, encode("")), vit()(small, encode("")))
