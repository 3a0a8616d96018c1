"""Registries of formats, sinks, model types and others, built in or from installed plugins."""

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar, cast

from vlatool.errors import EnvironmentProblem, UsageError
from vlatool.withdrawn import withdrawn_hint

T = TypeVar("T")

# Names that a hint lists.
_MAX_KNOWN = 8
# A class in a local file, as `./reader.py:Reader`.
_IN_FILE = re.compile(r"(?P<file>(?![a-z0-9]+://).+\.py):(?P<name>[A-Za-z_]\w*)", re.S)
_FILE_MODULE = "vlatool_file_"  # start of the names of modules that are such files
_loaded: set[str] = set()  # top-level names of the modules of plugins


@dataclass(frozen=True)
class PluginInfo:
    """An entry of a registry."""

    name: str  # name on the command line and in configurations
    target: str  # object as `module:object`
    origin: str  # `vlatool`, or the name of the distribution of the plugin
    error: str = ""  # reason why the entry cannot be used; empty if it can
    about: str = ""  # what it is; empty for plugins


class Registry(Generic[T]):
    """Objects of one type by name; an object is imported when it is first used.

    Built-in objects are given as `module:object`, or as the object itself; a plugin cannot replace
    them. Plugins come from the entry points of `group`, which are only read for lists and for names
    that are not built in. Without a group there are no plugins.
    """

    def __init__(
        self,
        group: str,
        label: str,
        builtins: Mapping[str, str | T],  # map from name to built-in object
        about: Mapping[str, str] | None = None,
        *,
        takes_files: bool = False,  # a name may be a class in a local file
    ) -> None:
        self.takes_files = takes_files
        self.group = group  # entry-point group; may be empty
        self.label = label  # name of the type of objects in messages
        self._builtins = dict(builtins)
        self._about = dict(about or {})

    def names(self) -> list[str]:
        """All names, built-in ones first."""
        third_party = sorted(point.name for point in self._entry_points())
        return [*self._builtins, *(name for name in third_party if name not in self._builtins)]

    def get(self, name: str) -> T:
        """Returns the object with a name; UsageError if there is none."""
        if name in self._builtins:
            target = self._builtins[name]
            return cast(T, _load(target)) if isinstance(target, str) else target
        if self.takes_files and _IN_FILE.fullmatch(name):
            return cast(T, _load_file(name))
        for point in self._entry_points():
            if point.name == name:
                return cast(T, self._load_plugin(point))
        raise UsageError(
            f"there is no {self.label} {name!r}",
            hint=did_you_mean(name, self.names()),
            code="usage.unknown_name",
            details={"kind": self.label, "known": self.names()},
        )

    def names_with_key(self, key: str) -> list[str]:
        """Returns the entries whose config class has a key, without broken plugins."""
        names: list[str] = []
        for name in self.names():
            with suppress(EnvironmentProblem):
                if key in getattr(getattr(self.get(name), "Config", None), "model_fields", ()):
                    names.append(name)
        return names

    def target(self, name: str) -> str:
        """Module of a built-in name, which workers import early; empty for other names."""
        target = self._builtins.get(name, "")
        return target.partition(":")[0] if isinstance(target, str) else ""

    def entries(self) -> Iterator[PluginInfo]:
        """Yields all entries with their origins; plugins are imported to check them."""
        for name, target in self._builtins.items():
            yield PluginInfo(name, str(target), "vlatool", about=self._about.get(name, ""))
        for point in self._entry_points():
            yield PluginInfo(
                point.name, point.value, _distribution(point), self._plugin_error(point)
            )

    def _entry_points(self) -> list[EntryPoint]:
        return list(entry_points(group=self.group)) if self.group else []

    def _plugin_error(self, point: EntryPoint) -> str:
        """Reason why a plugin, or a data kind of a model type, cannot be used; empty if it can."""
        if point.name in self._builtins:
            return "it is ignored, because a built-in entry has this name"
        try:
            plugin = self._load_plugin(point)
            kinds: Any = getattr(plugin, "kinds", ()) if self.label == "model type" else ()
            for kind in kinds:
                if ":" in kind:
                    load_data_kind(kind)
        except EnvironmentProblem as problem:
            return problem.message
        return ""

    def _load_plugin(self, point: EntryPoint) -> object:
        distribution = _distribution(point)
        _loaded.add(point.value.partition(":")[0].partition(".")[0])
        try:
            return _load(point.value)
        except Exception as error:
            raise EnvironmentProblem(
                f"{self.label} {point.name!r} of {distribution} cannot be imported: {error}",
                hint=f"reinstall or remove the distribution {distribution!r}",
                code="environment.missing_dependency",
                details={"plugin": point.name, "distribution": distribution},
            ) from error


def is_class_in_file(name: str) -> bool:
    """True for a name such as `./reader.py:Reader`."""
    return _IN_FILE.fullmatch(name) is not None


def file_digest_of(name: str) -> str:
    """Digest of the file of a class in a file; empty for other names."""
    match = _IN_FILE.fullmatch(name)
    return hashlib.sha256(Path(match["file"]).read_bytes()).hexdigest()[:16] if match else ""


def _load_file(name: str) -> object:
    """The class in a local file; the file is run, once in a process."""
    match = _IN_FILE.fullmatch(name)
    assert match is not None, "the caller has checked it"
    path = Path(match["file"]).resolve()
    module_name = _FILE_MODULE + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    module: ModuleType | None = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise UsageError(
                f"{match['file']}: there is no such file",
                hint="write the path of a Python file and the name of a class in it, such as "
                "./reader.py:Reader",
                code="usage.unknown_name",
            )
        module = importlib.util.module_from_spec(spec)
        _loaded.add(module_name)
        sys.modules[module_name] = module  # objects of the file can be pickled
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            place = plugin_place(error) or str(path)
            raise EnvironmentProblem(
                f"{match['file']} cannot be imported: {type(error).__name__}: {error} ({place})",
                hint="correct the file, then run the same command again",
                code="environment.missing_dependency",
            ) from error
    known = [key for key, value in vars(module).items() if isinstance(value, type)]
    if not isinstance(getattr(module, match["name"], None), type):
        raise UsageError(
            f"{match['file']}: has no class {match['name']!r}",
            hint=did_you_mean(match["name"], known),
            code="usage.unknown_name",
        )
    return getattr(module, match["name"])


def load_early(name: str) -> None:
    """Imports a module, or runs the file of a class in a file, so that its objects unpickle."""
    if is_class_in_file(name):
        _load_file(name)
    elif name:
        importlib.import_module(name)


def plugin_place(error: BaseException) -> str:
    """`FILE:LINE` of the last call in a plugin that led to an error; empty if none did."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _loaded:
            place = f"{Path(frame.f_code.co_filename).name}:{line}"
    return place


def load_data_kind(target: str) -> Any:
    """Class of a data kind of a plugin, given as `module:Kind`."""
    try:
        return _load(target)
    except (ImportError, AttributeError) as error:
        raise EnvironmentProblem(
            f"the data kind {target!r} cannot be imported: {error}",
            hint=f"reinstall or remove the package that has {target.partition(':')[0]}",
            code="environment.missing_dependency",
        ) from error


def did_you_mean(word: str, known: list[str]) -> str:
    """Hint with similar known names, else the first known names; for a withdrawn name, its text."""
    withdrawn = withdrawn_hint(word)
    if withdrawn:
        return withdrawn
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    more = f", and {len(known) - _MAX_KNOWN} more" if len(known) > _MAX_KNOWN else ""
    return f"known: {', '.join(known[:_MAX_KNOWN])}{more}" if known else ""


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
        "spartan": "vlatool.recordings.spartan.reader:SpartanReader",
        "lerobot": "vlatool.recordings.lerobot.reader:LeRobotReader",
        "libero": "vlatool.recordings.lerobot.reader:LiberoReader",
        "hdf5": "vlatool.recordings.hdf5.reader:Hdf5Reader",
        "zarr": "vlatool.recordings.zarr.reader:ZarrReader",
        "rlds": "vlatool.recordings.rlds.reader:RldsReader",
        "mcap": "vlatool.recordings.mcap.reader:McapReader",
        "images": "vlatool.datasets.image_shards.images_reader:ImagesReader",
        "image-shards": "vlatool.datasets.image_shards.reader:ImageShardsReader",
        "folder": "vlatool.recordings.folder.reader:FolderReader",
        "frames": "vlatool.datasets.frames.reader:FramesReader",
    },
    {
        "spartan": "raw LBM episodes",
        "lerobot": "LeRobot v2.0, v2.1 and v3.0",
        "libero": "LIBERO, as a LeRobot data set",
        "hdf5": "robomimic, Isaac Lab, LIBERO, ALOHA, and others by a mapping",
        "zarr": "replay buffers of Diffusion Policy and UMI",
        "rlds": "RLDS data sets of TFDS, such as Open X-Embodiment",
        "mcap": "bags of ROS 2, Foxglove and ROS 1",
        "images": "folders of images",
        "image-shards": "tars of images",
        "folder": "folders of videos, images and tables",
        "frames": "what `--sink frames` wrote, for training shards",
    },
    takes_files=True,
)
MODELS: Registry[Any] = Registry(
    "vlatool.models",
    "model type",
    {
        "diffusion_policy": "vlatool.models.diffusion_policy.spec:DiffusionPolicyType",
        "future_vla": "vlatool.models.future_vla.spec:FutureVlaType",
        "lerobot": "vlatool.models.lerobot.spec:LeRobotType",
        "vqgan": "vlatool.models.vqgan.spec:VqganType",
        "titok": "vlatool.models.titok.spec:TitokType",
    },
    {
        "diffusion_policy": "policy: images, fields and instruction to actions",
        "future_vla": "policy: past images and instruction to actions and future images, as tokens",
        "lerobot": "policy: any of the package lerobot, such as act, diffusion, smolvla, pi05",
        "vqgan": "visual tokenizer with a grid of codes, teacher of titok",
        "titok": "visual tokenizer with few codes per image",
    },
)
DATA_KINDS: Registry[Any] = Registry(
    "",
    "kind of data",
    {
        "robotics": "vlatool.loading.robotics.kind:RoboticsKind",
        "images": "vlatool.loading.images.kind:ImagesKind",
        "vla": "vlatool.loading.vla.kind:VlaKind",
    },
    {
        "robotics": "shards of windows, written by the sink lbm",
        "images": "tars of images, written by the sink image-shards",
        "vla": "samples for a language model with images, written by build-dataset",
    },
)
SINKS: Registry[Any] = Registry(
    "",
    "sink",
    {
        "lbm": "vlatool.datasets.lbm.writer:LbmSink",
        "jsonl": "vlatool.datasets.jsonl.writer:JsonlSink",
        "image-shards": "vlatool.datasets.image_shards.writer:ImageShardsSink",
        "lerobot": "vlatool.recordings.lerobot.writer:LeRobotSink",
        "frames": "vlatool.datasets.frames.writer:FramesSink",
        "curation": "vlatool.recordings.curation.writer:CurationSink",
    },
    {
        "lbm": "shards of windows, to train a policy",
        "frames": "each frame once, for windows that are cut later",
        "jsonl": "windows as JSON lines, and images, for FUTURE-VLA",
        "image-shards": "tars of images, to train a visual tokenizer",
        "lerobot": "a LeRobot data set, v3.0 or v2.1",
        "curation": "figures of each episode, without rules; see `vlatool curate`",
    },
)
DEFAULT_SINK = "frames"  # of recordings, unless their format names another
PUBLISHED_SINK = "lbm"  # of a published command or YAML of LBM
# Files of other programs: each function converts a tree, or returns None for others.
TRANSLATIONS: Registry[Any] = Registry(
    "",
    "translation",
    {
        "policy training": "vlatool.models.diffusion_policy.published:translate",
        "tokenizer training": "vlatool.models.titok.published:translate",
    },
)
# Options of other programs that train: names, and what they stand for here (`config.base.Names`).
TRAINING_NAMES: Registry[Any] = Registry(
    "",
    "program",
    {"ms-swift": "vlatool.models.future_vla.published_command:NAMES"},
)
# Remote storage of a root such as s3://bucket.
SCHEMES: Registry[Any] = Registry(
    "",
    "scheme",
    {
        "s3": "vlatool.storage.s3:Bucket",
        "gs": "vlatool.storage.gcs:GoogleBucket",
        "az": "vlatool.storage.azure:Container",
        "https": "vlatool.storage.http:WebServer",
        "http": "vlatool.storage.http:WebServer",
        "hf": "vlatool.storage.hub:Repository",
    },
)
# Kinds of things on disk besides raw sources: name to folder, the most specific ones first. Each
# folder has layout.py, check.py and facts.py; `recordings.artifact` says what is in them.
ARTIFACTS: dict[str, str] = {
    "image-shards": "vlatool.datasets.image_shards",
    "experiment": "vlatool.checkpoints.experiment",
    "run": "vlatool.checkpoints",
    "fast": "vlatool.datasets.fast",
    "samples": "vlatool.datasets.samples",
    "codes": "vlatool.datasets.codes",
    "windows": "vlatool.datasets.jsonl",
    "curation": "vlatool.recordings.curation",
    "frames": "vlatool.datasets.frames",
    "shards": "vlatool.datasets.lbm",
    "export": "vlatool.checkpoints.export",
}


@dataclass(frozen=True)
class EnvironmentSource:
    """Gymnasium environments with one prefix."""

    register: str  # function `module:function` that registers them; it may be called repeatedly
    preset: str  # rollout preset with the mapping of their observations and actions
    # function `module:function` that returns their ids, for lists; empty: none are listed
    ids: str = ""
    extra: str = ""  # extra that they need; empty if no extra has it

    def load(self, name: Literal["register", "ids"]) -> Any:
        """One of the functions; raises ModuleNotFoundError if a package is missing."""
        return _load(getattr(self, name))


# Start of the id of an environment to its source; the longest one counts.
ENVIRONMENTS: dict[str, EnvironmentSource] = {
    "vlatool/": EnvironmentSource(
        "vlatool.world.registration:register_environments",
        "rollout-world",
        "vlatool.world.registration:environment_ids",
    ),
    "vlatool/PickPlaceLibero": EnvironmentSource(
        "vlatool.world.registration:register_environments", "rollout-world-libero"
    ),
    "metaworld/": EnvironmentSource(
        "vlatool.world.metaworld.simulator:register_environments",
        "rollout-metaworld",
        "vlatool.world.metaworld.simulator:environment_ids",
        "sim",
    ),
    "gym_pusht/": EnvironmentSource(
        "vlatool.world.pusht:register_environments",
        "rollout-pusht",
        "vlatool.world.pusht:environment_ids",
        "pusht",
    ),
    "libero/": EnvironmentSource(
        "vlatool.world.libero.suites:register_environments",
        "rollout-libero",
        "vlatool.world.libero.suites:environment_ids",
    ),
}
# Config classes of the commands that write runs.
RUN_CONFIGS: Registry[Any] = Registry("", "run", {"train": "vlatool.training.config:TrainConfig"})
# Config classes of sections of a run that later rooms define.
RUN_SECTIONS: Registry[Any] = Registry(
    "", "section", {"eval": "vlatool.evaluation.config:RolloutOptions"}
)
