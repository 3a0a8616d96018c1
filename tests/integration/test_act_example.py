"""`examples/act`: the model type, its policy, and checkpoints of LeRobot, which are built by names.

`examples/act/compare_lerobot.py` compares them with LeRobot itself.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import vlatool
from tests.builders.errors import fails
from vlatool.config.resolve import load_config, parse_override
from vlatool.models.trained import existing_weights, open_trained
from vlatool.testing import check_model_type
from vlatool.training.config import TrainConfig
from vlatool.workflows.train import train

FOLDER = Path(__file__).parents[2] / "examples/act"
CAMERA = "scene_right_0"
TINY: Mapping[str, Any] = {
    "backbone_width": 8,
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 32,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
    "kl_weight": 0.1,
}
# The policy of the checkpoints.
STATE, ACTION, CHUNK, HEIGHT, WIDTH, TOKEN, HIDDEN, LATENT = 5, 3, 4, 64, 96, 16, 32, 4
IMAGES = "observation.images.front"
MEAN = {"observation.state": np.arange(5.0), "action": np.array([10.0, 20.0, 30.0])}
STD = {"observation.state": np.full(5, 0.5), "action": np.array([2.0, 3.0, 0.0])}


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The distribution, found like an installed one: its folder and its metadata on the path."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    metadata = site / "vlatool_act-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vlatool-act\nVersion: 0.1\n")
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines.append(f"[{group}]")
        for name, target in points.items():
            lines.append(f"{name} = {target}")
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.syspath_prepend(str(FOLDER))
        yield


def test_the_model_type_keeps_the_contract(data: Path) -> None:
    from vlatool_act.spec import ActType

    chosen = {"camera_names": [CAMERA], "image_indices": [0]}
    check_model_type(ActType, TINY, data={"dataset_manifest": [str(data)], **chosen})


def test_the_preset_trains_a_policy_that_acts(data: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {f"model.{name}": value for name, value in TINY.items()}
    keys |= {"data.dataset_manifest": data, "save_path": tmp_path, "name": "run"}
    keys |= {"total_train_steps": 1, "data.num_workers": 0}
    overrides = [parse_override(f"{key}={value}") for key, value in keys.items()]
    train(load_config(TrainConfig, presets=["act-tiny"], overrides=overrides).config)

    sees = open_trained(str(tmp_path / "run"), device="cpu").policy().sees
    observation: dict[str, Any] = {}
    for camera in sees.cameras:
        observation[camera] = np.zeros((64, 64, 3), np.uint8)
    for field, width in sees.fields.items():
        observation[field] = np.zeros(width)
    policy = vlatool.load_policy(tmp_path / "run")
    chunk = policy.act(observation)
    assert {len(values) for values in chunk.values()} == {policy.horizon}


def test_padded_steps_and_the_latent_change_the_loss_of_training_only() -> None:
    from vlatool_act.model import Act
    from vlatool_act.spec import ActConfig

    sizes = {"chunk_size": CHUNK, "action_dim": ACTION, "state_dim": STATE, "num_images": 1}
    network = Act(ActConfig(**TINY, **sizes, dropout=0.0))
    images = torch.zeros(2, 1, 3, 32, 32, dtype=torch.uint8)
    state, actions = torch.zeros(2, STATE), torch.randn(2, CHUNK, ACTION)
    noise = torch.zeros(2, LATENT)
    is_real = torch.tensor([[True, True, False, False]] * 2)
    changed = actions.clone()
    changed[:, 2:] += 1
    _, mean, _ = network(images, state, actions, is_real, noise)
    _, padded, _ = network(images, state, changed, is_real, noise)
    _, seen, _ = network(images, state, changed, torch.ones_like(is_real), noise)
    chunk, none, _ = network(images, state)
    torch.testing.assert_close(padded, mean)
    assert not torch.allclose(seen, mean)
    assert none is None
    assert chunk.shape == (2, CHUNK, ACTION)


# checkpoints of LeRobot


def attention(name: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.in_proj_weight": (3 * TOKEN, TOKEN),
        f"{name}.in_proj_bias": (3 * TOKEN,),
        f"{name}.out_proj.weight": (TOKEN, TOKEN),
        f"{name}.out_proj.bias": (TOKEN,),
    }


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def layer(name: str, attentions: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = linear(f"{name}.linear1", TOKEN, HIDDEN) | linear(f"{name}.linear2", HIDDEN, TOKEN)
    for part in attentions:
        shapes |= attention(f"{name}.{part}")
    for number in range(1, len(attentions) + 2):
        shapes |= {f"{name}.norm{number}.weight": (TOKEN,), f"{name}.norm{number}.bias": (TOKEN,)}
    return shapes


def batch_norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in names}


def resnet18(name: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.conv1.weight": (64, 3, 7, 7)}
    shapes |= batch_norm(f"{name}.bn1", 64)
    before = 64
    for stage, channels in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            start = f"{name}.layer{stage}.{block}"
            shapes[f"{start}.conv1.weight"] = (channels, before, 3, 3)
            shapes[f"{start}.conv2.weight"] = (channels, channels, 3, 3)
            shapes |= batch_norm(f"{start}.bn1", channels) | batch_norm(f"{start}.bn2", channels)
            if before != channels:
                shapes[f"{start}.downsample.0.weight"] = (channels, before, 1, 1)
                shapes |= batch_norm(f"{start}.downsample.1", channels)
            before = channels
    return shapes


def names_of_lerobot() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of LeRobot's ACT with one layer each."""
    return {
        **resnet18("backbone"),
        **layer("vae_encoder.layers.0", ["self_attn"]),
        "vae_encoder_cls_embed.weight": (1, TOKEN),
        **linear("vae_encoder_robot_state_input_proj", STATE, TOKEN),
        **linear("vae_encoder_action_input_proj", ACTION, TOKEN),
        **linear("vae_encoder_latent_output_proj", TOKEN, 2 * LATENT),
        "vae_encoder_pos_enc": (1, CHUNK + 2, TOKEN),
        **layer("encoder.layers.0", ["self_attn"]),
        **layer("decoder.layers.0", ["self_attn", "multihead_attn"]),
        **{f"decoder.norm.{part}": (TOKEN,) for part in ("weight", "bias")},
        **linear("encoder_robot_state_input_proj", STATE, TOKEN),
        **linear("encoder_latent_input_proj", LATENT, TOKEN),
        "encoder_img_feat_input_proj.weight": (TOKEN, 512, 1, 1),
        "encoder_img_feat_input_proj.bias": (TOKEN,),
        "encoder_1d_feature_pos_embed.weight": (2, TOKEN),
        "decoder_pos_embed.weight": (CHUNK, TOKEN),
        **linear("action_head", TOKEN, ACTION),
    }


def checkpoint(folder: Path, layout: str = "processors", **changes: Any) -> Path:
    """A folder of LeRobot with random weights; `layout`: where it has its statistics."""
    folder.mkdir(exist_ok=True)
    tree: dict[str, Any] = {
        "type": "act",
        "n_obs_steps": 1,
        "input_features": {
            "observation.state": {"type": "STATE", "shape": [STATE]},
            IMAGES: {"type": "VISUAL", "shape": [3, HEIGHT, WIDTH]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [ACTION]}},
        "normalization_mapping": dict.fromkeys(("VISUAL", "STATE", "ACTION"), "MEAN_STD"),
        "vision_backbone": "resnet18",
        "chunk_size": CHUNK,
        "n_action_steps": CHUNK,
        **{name: value for name, value in TINY.items() if name != "backbone_width"},
        "temporal_ensemble_coeff": None,
    }
    (folder / "config.json").write_text(json.dumps({**tree, **changes}))
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, shape in names_of_lerobot().items():
        values = torch.randn(shape, generator=generator)
        inputs = max(1, int(np.prod(shape[1:])))
        weights[f"model.{name}"] = values.abs() if len(shape) == 1 else values / inputs**0.5
    statistics: dict[str, Tensor] = {}
    for feature in ("observation.state", "action"):
        statistics[f"{feature}.mean"] = torch.tensor(MEAN[feature], dtype=torch.float32)
        statistics[f"{feature}.std"] = torch.tensor(STD[feature], dtype=torch.float32)
    statistics[f"{IMAGES}.mean"] = torch.full((3, 1, 1), 0.5)
    statistics[f"{IMAGES}.std"] = torch.full((3, 1, 1), 0.25)
    if layout == "processors":
        for processor, kind in (("pre", "normalizer"), ("post", "unnormalizer")):
            name = f"policy_{processor}processor_step_0_{kind}_processor.safetensors"
            step = {"registry_name": f"{kind}_processor", "config": {}, "state_file": name}
            document = json.dumps({"steps": [step]})
            (folder / f"policy_{processor}processor.json").write_text(document)
            save_file(statistics, folder / name)
    if layout == "weights":
        for key, value in statistics.items():
            feature, _, name = key.rpartition(".")
            group = "unnormalize_outputs" if feature == "action" else "normalize_inputs"
            weights[f"{group}.buffer_{feature.replace('.', '_')}.{name}"] = value
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("layout", ["processors", "weights"])
def test_a_checkpoint_of_lerobot_acts_in_its_units(layout: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "policy", layout)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    state = rng.normal(size=STATE)

    chunk = vlatool.load_policy(folder).act({"front": image, "observation.state": state})["action"]

    trained = open_trained(str(folder), device="cpu")
    network: Any = trained.parts["model"]
    scaled = torch.tensor((state - MEAN["observation.state"]) / 0.5, dtype=torch.float32)
    # The statistics of the camera: (values / 255 - 0.5) / 0.25.
    assert network.image_mean.tolist() == [[0.5] * 3]
    assert network.image_std.tolist() == [[0.25] * 3]
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None, None]
        expected = network(pixels, scaled[None])[0][0].numpy() * STD["action"] + MEAN["action"]
    np.testing.assert_allclose(chunk, expected, rtol=1e-5)
    assert (chunk[:, 2] == 30).all()  # a number that never changed


def test_a_run_starts_from_a_checkpoint_of_lerobot(tmp_path: Path) -> None:
    from vlatool_act.lerobot import LeRobotLayout
    from vlatool_act.spec import ActType

    folder = checkpoint(tmp_path / "policy")
    files = LeRobotLayout().recognize(folder)
    assert files is not None
    config = LeRobotLayout().section(files)
    parts = ActType().build(config)

    ActType().load_init(config, parts, existing_weights(str(folder)), ["action_head"])

    loaded = parts["model"].module.state_dict()
    stored = open_trained(str(folder), device="cpu").parts["model"].state_dict()
    differing = {name for name in loaded if not torch.equal(loaded[name], stored[name])}
    assert differing == {"action_head.weight", "action_head.bias"}


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"vision_backbone": "resnet34"}, "data.unsupported", "vision_backbone is 'resnet34'"),
        ({"replace_final_stride_with_dilation": True}, "data.unsupported", "dilation"),
        ({"feedforward_activation": "glu"}, "data.unsupported", "glu"),
        ({"normalization_mapping": {"ACTION": "QUANTILES"}}, "data.unsupported", "QUANTILES"),
        ({"dim_feedforward": 48}, "data.checkpoint_mismatch", "linear1"),
        ({"n_heads": 3}, "data.broken", "n_heads 3"),
        (
            {"input_features": {"observation.environment_state": {"type": "ENV", "shape": [2]}}},
            "data.unsupported",
            "environment_state",
        ),
    ],
)
def test_what_the_network_cannot_do_is_refused_by_name(
    changes: dict[str, Any], code: str, named: str, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "policy", **changes)
    with fails(code) as caught:
        open_trained(str(folder), device="cpu")
    assert named in caught.value.message
    assert caught.value.hint


def test_missing_statistics_are_an_error(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "policy", "nowhere")
    with fails("data.missing") as caught:
        open_trained(str(folder), device="cpu")
    assert "policy_preprocessor.json" in caught.value.hint


def test_a_step_that_changes_values_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "policy")
    path = folder / "policy_postprocessor.json"
    tree = json.loads(path.read_text())
    tree["steps"].append({"registry_name": "delta_action_processor", "config": {}})
    path.write_text(json.dumps(tree))
    with fails("data.unsupported") as caught:
        open_trained(str(folder), device="cpu")
    assert "delta_action_processor" in caught.value.message


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "policy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with fails("data.missing") as caught:
        open_trained(str(folder), device="cpu")
    assert ".bin" in caught.value.hint


def test_the_weights_of_a_backbone_are_read_without_its_classifier(tmp_path: Path) -> None:
    from vlatool_act.model import ResNet18, load_backbone

    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    for name, shape in resnet18("backbone").items():
        weights[name.removeprefix("backbone.")] = torch.rand(shape, generator=generator)
    save_file(weights, tmp_path / "resnet18.safetensors")
    backbone = ResNet18(64)
    load_backbone(backbone, tmp_path / "resnet18.safetensors")
    assert torch.equal(backbone.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])


def test_a_pickled_backbone_is_refused_before_data_are_read(tmp_path: Path) -> None:
    from vlatool_act.spec import ActConfig, ActType

    path = tmp_path / "resnet18.pth"
    path.write_bytes(b"")
    with fails("data.missing"):
        ActType().check_init(ActConfig(backbone_weights=str(path)), None)
