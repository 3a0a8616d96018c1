"""Keys of a SageMaker job, beside those of the run; names are those of the published launcher."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints

from vlatool.config.base import ConfigModel

Name = Annotated[str, StringConstraints(min_length=1)]


class SageMakerConfig(ConfigModel):
    """A SageMaker training job."""

    unsupported: ClassVar[Mapping[str, tuple[Sequence[Any], str]]] = {
        "local": ([False], "start the image with `docker run`, or train here with `vlatool train`")
    }

    user: str | None = Field(
        default=None, description="Your name, for the name and the tags of the job."
    )
    name_prefix: str | None = Field(default=None, description="First part of the name of the job.")
    local: bool = Field(default=False, description="Not supported: a job on this machine.")
    region: str | None = Field(
        default=None, description="AWS region; null: that of the AWS settings, else us-west-2."
    )
    profile: str | None = Field(
        default=None, description="Profile of the AWS settings; null: that of AWS_PROFILE."
    )
    arn: str | None = Field(
        default=None, min_length=1, description="Execution role of the job; null: SAGEMAKER_ARN."
    )
    instance_count: int = Field(default=1, ge=1, description="Number of instances.")
    instance_type: str = Field(
        default="p4de",
        description="Instance type: p4de, p5, p5en, p6, or a full name such as ml.g6e.12xlarge.",
    )
    volume_size: int = Field(
        default=30, ge=1, le=16_384, description="Disk of each instance in GB, for checkpoints."
    )
    max_run: float = Field(
        default=10, gt=0, le=28, description="Days after which SageMaker stops the job."
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        description="Container image: its address in a registry; null: the one of this version of "
        "vlatool, which is built with Docker and pushed if it is not there.",
    )
    spot: bool = Field(
        default=False,
        description="Use spot instances; an interrupted job restarts and continues its run.",
    )
    max_wait: float | None = Field(
        default=None,
        gt=0,
        le=28,
        description="Days for a spot job, with the time that it waits for instances; null: twice "
        "max_run.",
    )
    environment: dict[str, str] = Field(
        default={}, description="Environment variables of the job. Secrets are an error."
    )
    secrets: dict[str, Name] = Field(
        default={},
        description="Environment variables that the job reads from AWS Secrets Manager at its "
        "start: variable to name of a secret.",
    )
    tags: dict[str, str] = Field(default={}, description="Further tags of the job.")
    check_config: bool = Field(default=False, description="The same as --dry-run.")
    build_only: bool = Field(
        default=False, description="Build and push the image, and start no job."
    )
