"""What the `images` reader is asked to read."""

from pydantic import Field, field_validator

from vlatool.config.base import ConfigModel

# Source: reference/future-vla 2.1
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


class ImagesConfig(ConfigModel):
    """Folders of pictures."""

    extensions: list[str] = Field(
        default=list(EXTENSIONS),
        min_length=1,
        description="Ends of the names of pictures, in any case.",
    )

    @field_validator("extensions")
    @classmethod
    def _with_dots(cls, value: list[str]) -> list[str]:
        return [f".{extension.lower().removeprefix('.')}" for extension in value]
