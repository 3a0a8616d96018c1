"""Options of a policy server."""

from collections.abc import Sequence
from typing import Any, ClassVar

from vlatool.config.base import option, required_field
from vlatool.evaluation.config import SamplingOptions, allow_option
from vlatool.models.trained import Weights
from vlatool.transforms.names import NameMap


class ServeMap(NameMap):
    """Keys of clients: a rollout preset or file, and single keys over it."""

    typed_form: ClassVar[str] = "PRESET|NAME=KEY"

    preset: str | None = option(None, "Rollout preset or file.")

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> dict[str, Any]:
        keys = [text for text in texts if "=" in text]
        files = [text for text in texts if "=" not in text]
        return super().from_texts(keys) | ({"preset": files[-1]} if files else {})


class ServeConfig(SamplingOptions):
    """Options of `vlatool serve`."""

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    host: str = option(
        "127.0.0.1", "Address to listen at; others than this machine's own need --key-file."
    )
    port: int = option(8000, "Port; 0: any that is free.", ge=0, le=65535)
    map: ServeMap = option(
        ServeMap(),
        "Rollout preset or file that maps the keys of clients, as for `eval rollout`, or single "
        "keys, such as cameras.front=image or fields.pose=state[0:3]; default: clients use the "
        "names of the policy.",
    )
    execute_steps: int | None = option(
        None,
        "Steps of a chunk that a client executes before it asks again, unless it "
        "says; null: that of --map, else 4.",
        ge=1,
    )
    episode_idle_s: float | None = option(
        None,
        "A request later than this after the one before starts a new episode; null: none does.",
        gt=0,
    )
    episode_key: str | None = option(
        None, "Key of a request that is true at the first step of an episode; null: none."
    )
    weights: Weights = option("auto", "Averaged or raw weights; auto: averaged if any.")
    seed: int = option(0, "Seed of the sampled noise of an episode.", ge=0)
    batch_size: int = option(1, "Requests computed at once; fewer are filled up.", ge=1)
    batch_wait_ms: float = option(
        5.0, "Longest wait of a request for others of its batch.", ge=0, le=1000
    )
    max_clients: int = option(128, "Clients connected at once.", ge=1)
    max_request_mb: float | None = option(
        None,
        "Size of a request, in MB; null: 1.5 times the images and fields that the "
        "policy sees at one step, and 64 kB.",
        gt=0,
    )
    max_rate: float = option(100.0, "Requests per second of a client; faster ones wait.", gt=0)
    request_timeout_s: float = option(60.0, "Longest time until a request is answered.", gt=0)
    allow: list[str] = allow_option()
    key_file: str | None = option(None, "File with the key that clients must send; null: no key.")
    certificate: str | None = option(None, "Certificate chain in PEM form, for TLS; null: no TLS.")
    private_key: str | None = option(
        None, "Private key of the certificate; null: it is in the same file."
    )
