"""A small configuration with all features of the real ones, and helpers to load it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from vlatool.config.base import ConfigModel, derived_field, required_field
from vlatool.config.resolve import Resolved, load_config, parse_override
from vlatool.errors import ConfigError
from vlatool.plugins import Registry


class VitConfig(ConfigModel):
    type: Literal["vit_backbone"] = "vit_backbone"
    width: int = Field(32, ge=1, description="Channels.")
    depth: int = 2


class ClipConfig(ConfigModel):
    type: Literal["clip_backbone"] = "clip_backbone"
    hf_pretrained: str = "clip"
    disable_text: bool = False


Backbone = Annotated[VitConfig | ClipConfig, Field(discriminator="type")]


class ModelConfig(ConfigModel):
    type: Literal["diffusion_policy"] = "diffusion_policy"
    backbone: Backbone = VitConfig(width=48)
    text: Annotated[VitConfig | ClipConfig, Field(discriminator="type")] | None = None
    extra_backbones: list[Backbone] = Field([])
    action_dim: int | None = derived_field("sum of action fields", "Width of an action.")


class HparamsConfig(ConfigModel):
    lr: float = Field(1e-4, ge=0, description="Peak learning rate.")
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    grad_clip_norm: float | None = None
    steps: int = 10
    compile: bool = False


class SourceConfig(ConfigModel):
    camera: str = "front"
    every: int = 1


class OtherSourceConfig(ConfigModel):
    infrared: bool = False


class OtherSource:
    Config = OtherSourceConfig


class FieldConfig(ConfigModel):
    method: Literal["std", "range"] = "std"


class RootConfig(ConfigModel):
    exclusive = (("num_epochs", "total_train_samples"),)
    flat_sections = ("source",)
    registries = {"source": Registry("", "reader", {"other": OtherSource})}  # noqa: RUF012

    name: str | None = None
    model: ModelConfig = ModelConfig()
    hparams: HparamsConfig = HparamsConfig()
    source: SourceConfig = SourceConfig()
    fields: dict[str, FieldConfig] = Field({})
    options: dict[str, Any] = Field({})
    cameras: list[str] = Field([])
    data: str | None = required_field(None, "Folder with shards.")
    num_epochs: int | None = None
    total_train_samples: int | None = None


Load = Callable[..., Resolved[RootConfig]]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Writes a file below an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads the sample configuration from files, presets in `./presets` and `a.b=c` texts."""
    monkeypatch.chdir(tmp_path)

    def load_sample(*files: str, presets: tuple[str, ...] = (), set_: tuple[str, ...] = ()):
        overrides = [parse_override(text) for text in set_]
        return load_config(
            RootConfig,
            presets=presets,
            files=files,
            overrides=overrides,
            preset_roots=[tmp_path / "presets"],
        )

    return load_sample


@pytest.fixture
def problems(load: Load) -> Callable[..., list[dict[str, Any]]]:
    """Problems that loading reports."""

    def load_problems(*files: str, **layers: Any) -> list[dict[str, Any]]:
        with pytest.raises(ConfigError) as caught:
            load(*files, **layers)
        return caught.value.details["problems"]

    return load_problems


@pytest.fixture
def root_schema() -> type[RootConfig]:
    """Class of the sample configuration."""
    return RootConfig
