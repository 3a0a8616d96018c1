"""One command line from raw robot episodes to a trained, evaluated policy."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlatool.config.resolve import load_config as load_config
    from vlatool.episode import Episode as Episode
    from vlatool.episode import EpisodeRef as EpisodeRef
    from vlatool.errors import VlatoolError as VlatoolError
    from vlatool.evaluation.policy_runner import load_policy as load_policy
    from vlatool.loading.dataset import open_dataset as open_dataset
    from vlatool.serving.client import connect as connect
    from vlatool.serving.loop import ControlLoop as ControlLoop
    from vlatool.workflows.build_dataset import build_dataset as build_dataset
    from vlatool.workflows.catalog import plugins as list_plugins  # noqa: F401 - a public name
    from vlatool.workflows.compare import compare_data as compare_data
    from vlatool.workflows.compose import compose as compose
    from vlatool.workflows.curate import curate as curate
    from vlatool.workflows.demo import demo as demo
    from vlatool.workflows.doctor import doctor as doctor
    from vlatool.workflows.download import download as download
    from vlatool.workflows.encode import decode as decode
    from vlatool.workflows.encode import encode as encode
    from vlatool.workflows.eval_compare import compare as compare
    from vlatool.workflows.export import export as export
    from vlatool.workflows.export import tokenizer_export as tokenizer_export
    from vlatool.workflows.fit_fast import fit_fast as fit_fast
    from vlatool.workflows.launch_training import (
        launch_sagemaker_finetune as launch_sagemaker_finetune,
    )
    from vlatool.workflows.launch_training import launch_sagemaker_train as launch_sagemaker_train
    from vlatool.workflows.launch_training import launch_slurm_train as launch_slurm_train
    from vlatool.workflows.launch_training import launch_status as launch_status
    from vlatool.workflows.launch_training import launch_stop as launch_stop
    from vlatool.workflows.open_loop import open_loop as open_loop
    from vlatool.workflows.predict import predict as predict
    from vlatool.workflows.preprocess import preprocess as preprocess
    from vlatool.workflows.presets import presets as presets
    from vlatool.workflows.recorder import EpisodeRecorder as EpisodeRecorder
    from vlatool.workflows.recorder import record as record
    from vlatool.workflows.repair import repair as repair
    from vlatool.workflows.resolve_config import presets_show as presets_show
    from vlatool.workflows.resolve_config import resolve_config as resolve_config
    from vlatool.workflows.rollout import rollout as rollout
    from vlatool.workflows.runs import runs as runs
    from vlatool.workflows.sample import sample as sample
    from vlatool.workflows.serve import serve as serve
    from vlatool.workflows.split import split as split
    from vlatool.workflows.stats import stats_compute as stats_compute
    from vlatool.workflows.stats import stats_merge as stats_merge
    from vlatool.workflows.tokenizer_eval import tokenizer_eval as tokenizer_eval
    from vlatool.workflows.train import finetune as finetune
    from vlatool.workflows.train import train as train
    from vlatool.workflows.upload import upload as upload
    from vlatool.workflows.verify import inspect as inspect
    from vlatool.workflows.verify import verify as verify

__version__ = "0.3.0"

_WORKFLOWS = "vlatool.workflows"
# Every command has an entry under its name with underscores; `vlatool.plugins` is the registries.
_PUBLIC = {
    "EpisodeRecorder": f"{_WORKFLOWS}.recorder:EpisodeRecorder",
    "ControlLoop": "vlatool.serving.loop:ControlLoop",
    "Episode": "vlatool.episode:Episode",
    "EpisodeRef": "vlatool.episode:EpisodeRef",
    "VlatoolError": "vlatool.errors:VlatoolError",
    "build_dataset": f"{_WORKFLOWS}.build_dataset:build_dataset",
    "compare": f"{_WORKFLOWS}.eval_compare:compare",
    "compare_data": f"{_WORKFLOWS}.compare:compare_data",
    "compose": f"{_WORKFLOWS}.compose:compose",
    "connect": "vlatool.serving.client:connect",
    "decode": f"{_WORKFLOWS}.encode:decode",
    "demo": f"{_WORKFLOWS}.demo:demo",
    "doctor": f"{_WORKFLOWS}.doctor:doctor",
    "curate": f"{_WORKFLOWS}.curate:curate",
    "download": f"{_WORKFLOWS}.download:download",
    "encode": f"{_WORKFLOWS}.encode:encode",
    "export": f"{_WORKFLOWS}.export:export",
    "finetune": f"{_WORKFLOWS}.train:finetune",
    "fit_fast": f"{_WORKFLOWS}.fit_fast:fit_fast",
    "inspect": f"{_WORKFLOWS}.verify:inspect",
    "launch_sagemaker_finetune": f"{_WORKFLOWS}.launch_training:launch_sagemaker_finetune",
    "launch_sagemaker_train": f"{_WORKFLOWS}.launch_training:launch_sagemaker_train",
    "launch_slurm_train": f"{_WORKFLOWS}.launch_training:launch_slurm_train",
    "launch_status": f"{_WORKFLOWS}.launch_training:launch_status",
    "launch_stop": f"{_WORKFLOWS}.launch_training:launch_stop",
    "list_plugins": f"{_WORKFLOWS}.catalog:plugins",
    "load_config": "vlatool.config.resolve:load_config",
    "load_policy": "vlatool.evaluation.policy_runner:load_policy",
    "open_dataset": "vlatool.loading.dataset:open_dataset",
    "open_loop": f"{_WORKFLOWS}.open_loop:open_loop",
    "predict": f"{_WORKFLOWS}.predict:predict",
    "preprocess": f"{_WORKFLOWS}.preprocess:preprocess",
    "presets": f"{_WORKFLOWS}.presets:presets",
    "presets_show": f"{_WORKFLOWS}.resolve_config:presets_show",
    "record": f"{_WORKFLOWS}.recorder:record",
    "repair": f"{_WORKFLOWS}.repair:repair",
    "resolve_config": f"{_WORKFLOWS}.resolve_config:resolve_config",
    "rollout": f"{_WORKFLOWS}.rollout:rollout",
    "runs": f"{_WORKFLOWS}.runs:runs",
    "sample": f"{_WORKFLOWS}.sample:sample",
    "serve": f"{_WORKFLOWS}.serve:serve",
    "split": f"{_WORKFLOWS}.split:split",
    "stats_compute": f"{_WORKFLOWS}.stats:stats_compute",
    "stats_merge": f"{_WORKFLOWS}.stats:stats_merge",
    "tokenizer_eval": f"{_WORKFLOWS}.tokenizer_eval:tokenizer_eval",
    "tokenizer_export": f"{_WORKFLOWS}.export:tokenizer_export",
    "train": f"{_WORKFLOWS}.train:train",
    "upload": f"{_WORKFLOWS}.upload:upload",
    "verify": f"{_WORKFLOWS}.verify:verify",
}


def __dir__() -> list[str]:
    return sorted(["__version__", *_PUBLIC])


def __getattr__(name: str) -> object:
    """Imports a public name on first use, so that `import vlatool` stays light."""
    if name not in _PUBLIC:
        from vlatool.withdrawn import withdrawn_hint

        if hint := withdrawn_hint(name):
            from vlatool.errors import UsageError

            raise UsageError(f"vlatool.{hint}", code="usage.unsupported")
        raise AttributeError(f"module 'vlatool' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        from vlatool.errors import extra_of, missing_package

        package = (error.name or "").partition(".")[0]
        if extra_of(package) is None:
            raise
        raise missing_package(package) from error
