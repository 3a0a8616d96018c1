"""Options of a policy server."""

from collections.abc import Sequence
from typing import Any, ClassVar

from vlatool.config.base import option, required_field
from vlatool.evaluation.config import SamplingOptions, allow_option
from vlatool.models.trained import Weights
from vlatool.transforms.names import NameMap


class ServeMap(NameMap):
    """How keys of clients are mapped: a rollout preset or file, and single keys, which win."""

    typed_form: ClassVar[str] = "PRESET|NAME=KEY"

    preset: str | None = option(None, "Rollout preset or file.")

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> dict[str, Any]:
        keys = [text for text in texts if "=" in text]
        files = [text for text in texts if "=" not in text]
        return super().from_texts(keys) | ({"preset": files[-1]} if files else {})


class ServeConfig(SamplingOptions):
    """Options of `vlatool serve`."""

    checkpoint: str = required_field("", "Run folder or checkpoint; local, s3://, gs:// or hf://.")
    host: str = option(
        "127.0.0.1", "Address to listen at; if other machines can reach it, --key-file is needed."
    )
    port: int = option(8000, "Port to listen at; 0: any free port.", ge=0, le=65535)
    map: ServeMap = option(
        ServeMap(),
        "Rollout preset or file that maps the keys of clients, as for `eval rollout`, or single "
        "keys, such as cameras.front=image or fields.pose=state[0:3]; default: clients use the "
        "names of the policy.",
    )
    execute_steps: int | None = option(
        None,
        "Steps of a chunk that a client executes before it asks again, if it does not say; null: "
        "as --map says, else 4.",
        ge=1,
    )
    episode_idle_s: float | None = option(
        None,
        "Seconds without a request after which the next one starts a new episode; null: never.",
        gt=0,
    )
    episode_key: str | None = option(
        None, "Key that is true in the first request of an episode; null: none."
    )
    weights: Weights = option("auto", "Averaged (ema) or raw weights; auto: averaged if any.")
    seed: int = option(0, "Seed of the sampled noise of an episode.", ge=0)
    batch_size: int = option(1, "Requests per batch; a smaller batch is filled up.", ge=1)
    batch_wait_ms: float = option(
        5.0, "Milliseconds that a request waits for others to share its batch.", ge=0, le=1000
    )
    max_clients: int = option(128, "Largest number of clients connected at the same time.", ge=1)
    max_request_mb: float | None = option(
        None,
        "Largest size of a request in MB; null: 64 kB more than 1.5 times the images and fields "
        "of one step.",
        gt=0,
    )
    max_rate: float = option(
        100.0, "Largest number of requests per second from a client; more have to wait.", gt=0
    )
    request_timeout_s: float = option(
        60.0, "Seconds after which a request that is not answered fails.", gt=0
    )
    allow: list[str] = allow_option()
    max_deviation: float | None = option(
        None,
        "Distance of a state from its range in the training data, in widths of that range, above "
        "which a request fails; null: it is only reported, above 1.",
        ge=0,
    )
    key_file: str | None = option(None, "File with the key that clients must send; null: no key.")
    certificate: str | None = option(None, "Certificate chain in PEM form, for TLS; null: no TLS.")
    private_key: str | None = option(
        None, "Private key of the certificate; null: it is in the same file."
    )
