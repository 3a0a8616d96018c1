"""Options of a policy server."""

from pydantic import Field

from vlatool.config.base import ConfigModel, required_field
from vlatool.models.trained import Weights


class ServeConfig(ConfigModel):
    """Options of `vlatool serve`."""

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen at; others than this machine's own need --key-file.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0: any that is free.")
    map: str | None = Field(
        default=None,
        description="Rollout preset or file that maps the keys of clients, as for `eval rollout`; "
        "null: clients use the names of the policy.",
    )
    execute_steps: int | None = Field(
        default=None,
        ge=1,
        description="Steps of a chunk that a client executes before it asks again, unless it "
        "says; null: that of --map, else 4.",
    )
    episode_idle_s: float | None = Field(
        default=None,
        gt=0,
        description="A request later than this after the one before starts a new episode; null: "
        "none does.",
    )
    episode_key: str | None = Field(
        default=None,
        description="Key of a request that is true at the first step of an episode; null: none.",
    )
    weights: Weights = Field(
        default="auto", description="Averaged or raw weights; auto: averaged if any."
    )
    inference_steps: int = Field(
        default=8, ge=1, description="Evaluations of the network per sampled chunk."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampled noise of an episode.")
    batch_size: int = Field(
        default=1, ge=1, description="Requests computed at once; fewer are filled up."
    )
    batch_wait_ms: float = Field(
        default=5.0, ge=0, le=1000, description="Longest wait of a request for others of its batch."
    )
    max_clients: int = Field(default=128, ge=1, description="Clients connected at once.")
    max_request_mb: float | None = Field(
        default=None,
        gt=0,
        description="Size of a request, in MB; null: 1.5 times the images and fields that the "
        "policy sees at one step, and 64 kB.",
    )
    max_rate: float = Field(
        default=100.0, gt=0, description="Requests per second of a client; faster ones wait."
    )
    request_timeout_s: float = Field(
        default=60.0, gt=0, description="Longest time until a request is answered."
    )
    key_file: str | None = Field(
        default=None, description="File with the key that clients must send; null: no key."
    )
    certificate: str | None = Field(
        default=None, description="Certificate chain in PEM form, for TLS; null: no TLS."
    )
    private_key: str | None = Field(
        default=None, description="Private key of the certificate; null: it is in the same file."
    )
