"""Row of the table of commands."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Folders of presets for the commands with a training configuration.
TRAINING_PRESETS = ("runs", "models", "models/denoisers", "data", "hparams", "rollouts")


@dataclass(frozen=True)
class Command:
    """A command: its configuration, its workflow, and what its help says."""

    summary: str  # one sentence for the help
    # `module:function` of `(config, *, reporter)`, which returns the result. Without a schema, the
    # function takes no arguments.
    workflow: str
    schema: str = ""  # `module:Class` of the configuration; empty for a command without one
    # Keys that are arguments, with their names in the usage line; a name that ends with `...`
    # stands for several values.
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    examples: tuple[str, ...] = ()  # command lines for the help
    details: str = ""  # second paragraph of the help
    # `module:function` that returns the `Form` of a command that differs from the others.
    form: str = ""
    has_ranks: bool = False  # the command has `--nproc`
    has_rows: bool = False  # the result is a list, and the command has `--jsonl`
    presets: tuple[str, ...] = ()  # folders of presets for this command
    # Options that `--help` lists, in this order, with underscores; those that a format or a sink
    # does not have are left out. Empty: all.
    options: tuple[str, ...] = ()
    # Keys to `module:function` of known values among others, for completion.
    suggestions: Mapping[str, str] = field(default_factory=dict[str, str])
