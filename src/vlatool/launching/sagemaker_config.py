"""Keys of a SageMaker job, beside those of the run; names are those of the published launcher."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import StringConstraints

from vlatool.config.base import ConfigModel, option

Name = Annotated[str, StringConstraints(min_length=1)]


class SageMakerConfig(ConfigModel):
    """A SageMaker training job."""

    unsupported: ClassVar[Mapping[str, tuple[Sequence[Any], str]]] = {
        "local": ([False], "start the image with `docker run`, or train here with `vlatool train`")
    }

    user: str | None = option(None, "Your name, for the name and the tags of the job.")
    name_prefix: str | None = option(None, "First part of the name of the job.")
    local: bool = option(False, "Not supported: a job on this machine.")
    region: str | None = option(None, "AWS region; null: that of the AWS settings, else us-west-2.")
    profile: str | None = option(None, "Profile of the AWS settings; null: that of AWS_PROFILE.")
    arn: str | None = option(None, "Execution role of the job; null: SAGEMAKER_ARN.", min_length=1)
    instance_count: int = option(1, "Number of instances.", ge=1)
    instance_type: str = option(
        "p4de", "Instance type: p4de, p5, p5en, p6, or a full name such as ml.g6e.12xlarge."
    )
    volume_size: int = option(30, "Disk of each instance in GB, for checkpoints.", ge=1, le=16_384)
    max_run: float = option(10, "Days after which SageMaker stops the job.", gt=0, le=28)
    image: str | None = option(
        None,
        "Container image: its address in a registry; null: the one of this version of "
        "vlatool, which is built with Docker and pushed if it is not there.",
        min_length=1,
    )
    spot: bool = option(
        False, "Use spot instances; an interrupted job restarts and continues its run."
    )
    max_wait: float | None = option(
        None,
        "Days for a spot job, with the time that it waits for instances; null: twice max_run.",
        gt=0,
        le=28,
    )
    environment: dict[str, str] = option(
        {}, "Environment variables of the job. Secrets are an error."
    )
    secrets: dict[str, Name] = option(
        {},
        "Environment variables that the job reads from AWS Secrets Manager at its "
        "start: variable to name of a secret.",
    )
    tags: dict[str, str] = option({}, "Further tags of the job.")
    check_config: bool = option(False, "The same as --dry-run.")
    build_only: bool = option(False, "Build and push the image, and start no job.")
