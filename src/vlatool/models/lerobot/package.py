"""The package `lerobot`: its policies and processors, built without code or files from elsewhere.

The package calls `from_pretrained` of transformers with names of the hub, sometimes with
`trust_remote_code=True`, downloads weights of torchvision, and imports any class that the JSON of a
processor names. Here, JSON is checked before the package sees it, and while the package builds
something, `guarded` answers its calls with local files only.
"""

import importlib.util
import inspect
import io
import json
import logging
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from threading import RLock
from typing import Any

from vlatool.datasets.base_model import WEIGHTS
from vlatool.errors import ConfigError, DataError, EnvironmentProblem, VlatoolError
from vlatool.models.lerobot.config import ACTION, LeRobotPolicyConfig, kind_of
from vlatool.models.pretrained import base_model, transformers
from vlatool.plugins import did_you_mean
from vlatool.storage.cache import local_copy
from vlatool.storage.documents import read_json
from vlatool.storage.tree import file_names

PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
_ENVIRONMENT = "python3.12 -m venv lerobot-env && lerobot-env/bin/pip install 'vlatool[lerobot]'"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf")
# Weights of torchvision by the start of their names, and where the hub has the same ones.
_TORCHVISION = {"ResNet18": "timm/resnet18.tv_in1k", "ResNet34": "timm/resnet34.tv_in1k"}
_AUTO = ("Config", "Tokenizer", "Processor", "ImageProcessor", "Model")
_MODELS = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForVision2Seq")
_log = logging.getLogger(__name__)
# Only one policy is built at a time: `guarded` changes what the whole process calls.
_LOCK = RLock()


def is_available() -> bool:
    return sys.version_info >= (3, 12) and importlib.util.find_spec("lerobot") is not None


def require() -> Any:
    """The module with the policies of lerobot; EnvironmentProblem if it is not installed."""
    if not is_available():
        reason = "is not installed" if sys.version_info >= (3, 12) else "needs Python 3.12 or newer"
        raise EnvironmentProblem(
            f"the package 'lerobot' {reason}",
            hint=f"make an environment for it: {_ENVIRONMENT}",
            code="environment.missing_dependency",
            details={"package": "lerobot", "extra": "lerobot"},
        )
    import lerobot.policies.factory as factory  # pyright: ignore[reportMissingImports]

    return factory


def policy_config(
    section: LeRobotPolicyConfig, device: str = "cpu", *, for_files: bool = False
) -> Any:
    """The configuration of the policy, checked by its class.

    `for_files`: with the base weights that it names, to load them or to write it.
    """
    factory = require()
    import draccus  # pyright: ignore[reportMissingImports]

    classes = factory.PreTrainedConfig
    if section.policy not in classes.get_known_choices():
        known = sorted(classes.get_known_choices())
        raise ConfigError(
            f"model.policy: lerobot has no policy {section.policy!r}",
            hint=did_you_mean(section.policy, known),
            code="config.invalid_value",
            details={"key": "model.policy", "known": known},
        )
    tree = {key: value for key, value in section.config.items() if key != "type"}
    features = dict(tree.get("input_features") or {})
    for name, shape in (section.shapes or {}).items():
        features[name] = {"type": kind_of(name), "shape": list(shape)}
    tree.setdefault("output_features", {})
    if ACTION in features:
        tree["output_features"] = {ACTION: features.pop(ACTION)}
    tree |= {"input_features": features, "device": "cpu", "push_to_hub": False}
    tree |= {"pretrained_path": None, "use_peft": False}
    try:
        config = draccus.decode(classes.get_choice_class(section.policy), tree)
    except (draccus.utils.DecodingError, ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"model.config: {error}",
            hint=f"lerobot documents the keys of {section.policy}",
            code="config.invalid_value",
            details={"key": "model.config"},
        ) from None
    config.device = device
    if not for_files:
        for key, value in (("pretrained_backbone_weights", None), ("load_vlm_weights", False)):
            if hasattr(config, key):
                setattr(config, key, value)
    return config


def new_policy(section: LeRobotPolicyConfig, *, with_base_weights: bool = False) -> Any:
    """The policy with random weights, on the default device of torch, or with its base weights."""
    import torch

    device = torch.empty(0).device.type
    config = policy_config(section, device, for_files=with_base_weights)
    with guarded(section.bases):
        return require().get_policy_class(section.policy)(config)


def new_processors(
    section: LeRobotPolicyConfig, seen: Mapping[str, Any], commanded: Mapping[str, Any], device: Any
) -> tuple[Any, Any]:
    """Preprocessor and postprocessor, each for its statistics by feature and name."""
    factory = require()
    config = policy_config(section, str(device), for_files=True)
    with guarded(section.bases):
        preprocess, _ = factory.make_pre_post_processors(config, dataset_stats=dict(seen))
        _, postprocess = factory.make_pre_post_processors(config, dataset_stats=dict(commanded))
        factory._reconnect_relative_absolute_steps(preprocess, postprocess)
    return preprocess, postprocess


def stored_processors(section: LeRobotPolicyConfig, folder: Path, device: Any) -> Any:
    """The processors of a checkpoint, whose JSON is checked first."""
    config = policy_config(section, str(device), for_files=True)
    changes: list[dict[str, Any]] = []
    for name in PROCESSORS:
        steps = [step["registry_name"] for step in checked_steps(folder / name)]
        overrides: dict[str, Any] = {}
        if "device_processor" in steps and name == PROCESSORS[0]:
            overrides["device_processor"] = {"device": str(device)}
        if "action_tokenizer_processor" in steps:
            overrides["action_tokenizer_processor"] = {"trust_remote_code": False}
        changes.append(overrides)
    with guarded(section.bases):
        return require().make_pre_post_processors(
            config,
            str(folder),
            preprocessor_overrides=changes[0],
            postprocessor_overrides=changes[1],
        )


def checked_steps(path: Path) -> list[dict[str, Any]]:
    """The steps of a processor; DataError if one is no step of lerobot, or reads other files."""
    require()
    from lerobot.processor import (  # pyright: ignore[reportMissingImports]
        ProcessorStepRegistry,
    )

    content = read_json(path)
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list):
        raise DataError.at(
            path,
            "is not the JSON of a processor",
            hint="copy the whole checkpoint again; save one of lerobot before 0.4 with a newer one",
            code="data.broken",
        )
    for step in steps:
        name = step.get("registry_name")
        if "class" in step or name not in ProcessorStepRegistry.list():
            raise DataError.at(
                path,
                f"the step {step.get('class', name)!r} is code that is not a step of lerobot",
                hint="vlatool runs no code that a file names; open this checkpoint with lerobot",
                code="data.unsafe",
                asks_for=str(step.get("class", name)),
            )
        state = step.get("state_file", "")
        if state and (Path(state).name != state or not state.endswith(".safetensors")):
            raise DataError.at(
                path, f"the state {state!r} is no safetensors file beside it", code="data.unsafe"
            )
    return steps


@contextmanager
def quiet() -> Generator[None]:
    """Context in which what the package prints goes to the log, because stdout is for results."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        yield
    for line in printed.getvalue().splitlines():
        _log.info("lerobot: %s", line)


@contextmanager
def _replaced(owner: Any, name: str, new: Any) -> Generator[None]:
    """Context in which an attribute of a module or class has another value."""
    is_own = name in vars(owner)  # else a class inherits it
    before = vars(owner).get(name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def guarded(bases: Mapping[str, str]) -> Generator[None]:
    """Context in which libraries get files of base models from our locations, and no code.

    `bases`: locations by the names that the package has for them.
    """
    import torch.hub

    from vlatool.models.weights import read_external_weights

    def base(name: str, default: str) -> Path:
        try:
            return base_model(bases.get(name, default))
        except VlatoolError as error:
            error.hint = f"give its folder: --model.bases {name}=DIR"
            raise

    def local(name: str, *, weights: bool = False) -> Path:
        folder = base(name, name)
        names = [
            file
            for file in sorted(file_names(folder))
            if (weights or not file.endswith(_WEIGHTS)) and not file.endswith((".py", "/"))
        ]
        return local_copy(folder, names)

    def opened(original: Any, *, weights: bool) -> Any:
        def from_pretrained(_: Any, name: Any, *args: Any, **options: Any) -> Any:
            options |= {"trust_remote_code": False, "local_files_only": True}
            for key in ("revision", "use_auth_token", "token", "cache_dir"):
                options.pop(key, None)
            if weights:
                options["use_safetensors"] = True
            return original(str(local(str(name), weights=weights)), *args, **options)

        return classmethod(from_pretrained)

    def torchvision_weights(url: str, *_: Any, **__: Any) -> Any:
        file = url.rpartition("/")[2]
        kind = next((name for name in _TORCHVISION if file.startswith(name.lower())), file)
        place = base(kind, _TORCHVISION.get(kind, file))
        if place.suffix:
            return read_external_weights(local_copy(place.parent, [place.name]) / place.name)
        return read_external_weights(local_copy(place, [WEIGHTS]) / WEIGHTS)

    library = transformers()
    classes = [(getattr(library, f"Auto{name}"), name == "Model") for name in _AUTO]
    classes += [(getattr(library, name), True) for name in _MODELS if hasattr(library, name)]
    with _LOCK, quiet(), ExitStack() as stack:
        for kind, weights in classes:
            change = opened(kind.from_pretrained, weights=weights)
            stack.enter_context(_replaced(kind, "from_pretrained", change))
        api = importlib.import_module("torchvision.models._api")
        for module in (torch.hub, api):
            stack.enter_context(_replaced(module, "load_state_dict_from_url", torchvision_weights))
        constants = importlib.import_module("huggingface_hub.constants")
        stack.enter_context(_replaced(constants, "HF_HUB_OFFLINE", new=True))
        try:
            yield
        except (VlatoolError, MemoryError):
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if "trust_remote_code" in str(error):
                raise DataError(
                    f"the policy needs code of a base model, which vlatool does not run: {reason}",
                    hint="choose another policy; the docs list those that work without",
                    code="data.unsafe",
                ) from None
            raise DataError(
                f"lerobot cannot build this policy: {reason}",
                hint="check model.config, and give base models with model.bases",
                code="data.unsupported",
            ) from error


def takes_noise(policy: Any) -> bool:
    """True if the chunks of a policy start from a `noise` that it can be given."""
    names = inspect.signature(policy.predict_action_chunk).parameters
    network = getattr(getattr(policy, "model", None), "sample_actions", None)
    if "noise" in names or network is None:
        return "noise" in names
    passes_on = any(item.kind is item.VAR_KEYWORD for item in names.values())
    return passes_on and "noise" in inspect.signature(network).parameters


def steps_of(settings: Any) -> tuple[list[int], list[int]]:
    """Observed steps and steps of actions of a policy, relative to the current one."""
    observed = list(settings.observation_delta_indices or [0])
    actions = list(settings.action_delta_indices or [])
    if not actions:
        raise ConfigError(
            f"model.policy: {settings.type} plans no chunks of actions",
            hint="choose another policy; the docs list those that were run",
            code="config.invalid_value",
            details={"key": "model.policy"},
        )
    return observed, actions


def encode_config(config: Any) -> str:
    """The text of config.json."""
    import draccus  # pyright: ignore[reportMissingImports]

    tree = draccus.encode(config, require().PreTrainedConfig)
    return json.dumps(tree, indent=4) + "\n"
