"""Options of the `images` format."""

from pydantic import Field, field_validator

from vlatool.config.base import ConfigModel

# Source: reference/future-vla 2.1
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


class ImagesConfig(ConfigModel):
    """Options for folders of images."""

    extensions: list[str] = Field(
        default=list(EXTENSIONS),
        min_length=1,
        description="File name suffixes of images; case is ignored.",
    )

    @field_validator("extensions")
    @classmethod
    def _with_dots(cls, value: list[str]) -> list[str]:
        return [f".{extension.lower().removeprefix('.')}" for extension in value]
