"""Options by meaning: words that people guess, for keys of this program."""

from collections.abc import Container

# Word, with underscores → keys, the best first; of those that a command does not have, nothing is
# said. Of a dotted option the last part is compared, too.
_KEYS: dict[str, tuple[str, ...]] = {
    "steps": ("total_train_steps", "max_steps"),
    "max_steps": ("total_train_steps",),
    "epochs": ("num_epochs",),
    "batch_size": ("hparams.global_batch_size", "hparams.per_gpu_batch_size"),
    "lr": ("hparams.lr",),
    "weight_decay": ("hparams.wd",),
    "gpus": ("nproc", "slurm.gpus_per_node"),
    "devices": ("nproc",),
    "workers": ("data.num_workers", "num_workers"),
    "num_workers": ("data.num_workers", "workers"),
    "data_path": ("data", "source"),
    "save_freq": ("save_every_n_steps",),
    "run_name": ("name",),
    "checkpoint": ("from", "init_from", "tokenizer"),
    "policy.path": ("from", "init_from", "checkpoint"),
    "out_dir": ("output",),
    "local_dir": ("output",),
    "force": ("overwrite",),
    "cameras": ("data.camera_names", "camera_names"),
    "num_episodes": ("max_episodes", "limit", "episodes"),
}
_NOTES = {
    "resume": "the same command again resumes; --overwrite starts anew",
    "device": "CUDA_VISIBLE_DEVICES=0,1 chooses the GPUs; empty: none is used",
    "nnodes": "torchrun, `vlatool launch slurm` and `launch sagemaker` start several machines",
    "token": "set HF_TOKEN, or log in with `hf auth login`",
    "revision": "write hf://datasets/OWNER/NAME@REVISION, or hf://models/OWNER/NAME for a model",
}


def meant_keys(word: str, known: Container[str]) -> tuple[str, ...]:
    """Keys among the known ones that a word stands for, the best first."""
    keys: list[str] = []
    for name in _names(word):
        keys += [key for key in _KEYS.get(name, ()) if key in known and key != word]
    return tuple(dict.fromkeys(keys))


def note_on(word: str) -> str:
    """Sentence on a word that stands for no key; empty if there is none."""
    for name in _names(word):
        if name in _NOTES:
            return _NOTES[name]
    return ""


def _names(word: str) -> tuple[str, str]:
    name = word.lower().replace("-", "_")
    return name, name.rpartition(".")[2]
