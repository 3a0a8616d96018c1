"""Registries: a name leads to an object, built in or from an installed distribution."""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from vlatool.errors import EnvironmentProblem, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class PluginInfo:
    """One entry of a registry.

    Attributes:
        name: What users type.
        target: `module:object`.
        origin: `vlatool`, or the name of the distribution that brings it.
        error: Why it cannot be used; empty when it can.
    """

    name: str
    target: str
    origin: str
    error: str = ""


@dataclass(frozen=True)
class Artifact:
    """A kind of thing on disk: four functions, each `module:function` in its own room.

    Attributes:
        recognize: (location) -> bool, in `artifacts`; reads little and raises nothing that a
            location of another kind could cause. The first entry that says yes has the location.
        verify: (location, Check) -> Iterator[Finding], in `verification`.
        inspect: (location) -> Report, in `inspection`.
        page: (report, location, path, PageRequest) -> None, in `pages`; empty where there is none.
    """

    recognize: str
    verify: str
    inspect: str
    page: str = ""

    def load(self, part: str) -> Any:
        """One of the functions, by its attribute."""
        return _load(getattr(self, part))


class Registry(Generic[T]):
    """Names of one kind of thing; objects are imported when first asked for.

    The table of built-ins may hold objects as they are. Its names cannot be shadowed; other names
    come from the entry-point group, which is scanned only for a name that is not built in, or for a
    list. Without a group the table is all there is.
    """

    def __init__(self, group: str, noun: str, builtins: Mapping[str, str | T]) -> None:
        self.group = group
        self.noun = noun
        self._builtins = dict(builtins)

    def names(self) -> list[str]:
        """Every name, built-in ones first."""
        third_party = sorted(point.name for point in self._entry_points())
        return [*self._builtins, *(name for name in third_party if name not in self._builtins)]

    def get(self, name: str) -> T:
        """The object behind `name`.

        Raises:
            UsageError: Nothing has this name; the nearest names are the hint.
            EnvironmentProblem: The plugin is installed but cannot be imported.
        """
        if name in self._builtins:
            target = self._builtins[name]
            return cast(T, _load(target)) if isinstance(target, str) else target
        for point in self._entry_points():
            if point.name == name:
                return cast(T, self._load_plugin(point))
        raise UsageError(
            f"unknown {self.noun} {name!r}",
            hint=did_you_mean(name, self.names()),
            code=f"usage.unknown_{self.noun.replace(' ', '_')}",
            details={"known": self.names()},
        )

    def names_with_key(self, key: str) -> list[str]:
        """Names whose configuration class declares a key; what cannot be imported is left out."""
        found: list[str] = []
        for name in self.names():
            with suppress(EnvironmentProblem):
                if key in getattr(getattr(self.get(name), "Config", None), "model_fields", ()):
                    found.append(name)
        return found

    def target(self, name: str) -> str:
        """The module of a built-in name, for workers that shall import it early."""
        target = self._builtins.get(name, "")
        return target.partition(":")[0] if isinstance(target, str) else ""

    def entries(self) -> Iterator[PluginInfo]:
        """Every entry with where it comes from; plugins are imported to see whether they work."""
        for name, target in self._builtins.items():
            yield PluginInfo(name, str(target), "vlatool")
        for point in self._entry_points():
            error = ""
            if point.name in self._builtins:
                error = "ignored: a built-in has this name"
            else:
                try:
                    self._load_plugin(point)
                except EnvironmentProblem as problem:
                    error = problem.message
            yield PluginInfo(point.name, point.value, _distribution(point), error)

    def _entry_points(self) -> list[EntryPoint]:
        return list(entry_points(group=self.group)) if self.group else []

    def _load_plugin(self, point: EntryPoint) -> object:
        try:
            return _load(point.value)
        except Exception as error:
            raise EnvironmentProblem(
                f"{self.noun} {point.name!r} of {_distribution(point)} cannot be imported: {error}",
                hint=f"reinstall or remove the distribution {_distribution(point)!r}",
                code="environment.broken_plugin",
                details={"plugin": point.name, "distribution": _distribution(point)},
            ) from error


def did_you_mean(word: str, known: list[str]) -> str:
    """A sentence with the nearest known names, or all of them when none is near."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"known: {', '.join(known)}" if known else ""


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown distribution"


def _load(target: str) -> object:
    module_name, _, attribute = target.partition(":")
    value: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        value = getattr(value, part)
    return value


FORMATS: Registry[Any] = Registry(
    "vlatool.formats",
    "format",
    {
        "spartan": "vlatool.sources.spartan.reader:SpartanReader",
        "lerobot": "vlatool.sources.lerobot.reader:LeRobotReader",
        "libero": "vlatool.sources.lerobot.libero:LiberoReader",
        "images": "vlatool.sources.images.reader:ImagesReader",
    },
)
MODELS: Registry[Any] = Registry(
    "vlatool.models",
    "model type",
    {
        "diffusion_policy": "vlatool.models.diffusion_policy.spec:DiffusionPolicyType",
        "vqgan": "vlatool.models.vqgan.spec:VqganType",
        "titok": "vlatool.models.titok.spec:TitokType",
    },
)
DATA_KINDS: Registry[Any] = Registry(
    "",
    "kind of data",
    {
        "robotics": "vlatool.loading.robotics.kind:RoboticsKind",
        "images": "vlatool.loading.images.kind:ImagesKind",
    },
)
SINKS: Registry[Any] = Registry(
    "",
    "sink",
    {
        "lbm": "vlatool.sinks.lbm.sink:LbmSink",
        "jsonl": "vlatool.sinks.jsonl.sink:JsonlSink",
        "image-shards": "vlatool.sinks.image_shards.sink:ImageShardsSink",
    },
)
# Configurations of other programs: each function says a tree in our keys, or that it is none.
TRANSLATIONS: Registry[Any] = Registry(
    "",
    "translation",
    {
        "policy training": "vlatool.training.published:translate",
        "tokenizer training": "vlatool.models.titok.published_stage:translate",
    },
)
# What connects to a place such as s3://bucket.
SCHEMES: Registry[Any] = Registry(
    "",
    "scheme",
    {
        "s3": "vlatool.storage.s3:Bucket",
        "https": "vlatool.storage.http:WebServer",
        "http": "vlatool.storage.http:WebServer",
        "hf": "vlatool.storage.hub:Repository",
    },
)
# What `verify` and `inspect` know beside raw sources, the most specific first.
ARTIFACTS: Registry[Artifact] = Registry(
    "",
    "artifact",
    {
        "image-shards": Artifact(
            "vlatool.artifacts.image_shards:is_image_shards",
            "vlatool.verification.image_shards:check_image_shards",
            "vlatool.inspection.image_shards:inspect_image_shards",
            "vlatool.pages.image_page:write_image_page",
        ),
        "shard": Artifact(
            "vlatool.artifacts.shard:is_shard",
            "vlatool.verification.output:check_shard",
            "vlatool.inspection.shards:inspect_shard",
            "vlatool.pages.html_page:write_shard_page",
        ),
        "run": Artifact(
            "vlatool.artifacts.run_dir:is_run",
            "vlatool.verification.run:check_run",
            "vlatool.inspection.run:inspect_run",
        ),
        "checkpoint": Artifact(
            "vlatool.artifacts.checkpoint:is_checkpoint",
            "vlatool.verification.run:check_checkpoint",
            "vlatool.inspection.run:inspect_checkpoint",
        ),
        "samples": Artifact(
            "vlatool.artifacts.samples_folder:is_samples",
            "vlatool.verification.token_samples:check_token_samples",
            "vlatool.inspection.token_samples:inspect_built",
            "vlatool.pages.token_samples:write_built_page",
        ),
        "codes": Artifact(
            "vlatool.artifacts.codes_folder:is_codes",
            "vlatool.verification.image_codes:check_codes",
            "vlatool.inspection.token_samples:inspect_codes",
        ),
        "fast": Artifact(
            "vlatool.artifacts.fast:is_fast",
            "vlatool.verification.fast:check_fast",
            "vlatool.inspection.fast:inspect_fast",
        ),
        "windows": Artifact(
            "vlatool.artifacts.window_folder:is_windows",
            "vlatool.verification.windows:check_windows",
            "vlatool.inspection.windows:inspect_windows",
            "vlatool.pages.windows:write_windows_page",
        ),
        "output": Artifact(
            "vlatool.artifacts.shard_folder:is_output",
            "vlatool.verification.output:check_output",
            "vlatool.inspection.shards:inspect_shards",
            "vlatool.pages.html_page:write_shards_page",
        ),
    },
)


def recognize(location: Path, table: Registry[Artifact] = ARTIFACTS) -> tuple[str, Artifact] | None:
    """Name and entry of the artifact at a location; None where there is none."""
    entries = ((name, table.get(name)) for name in table.names())
    return next((one for one in entries if one[1].load("recognize")(location)), None)
