"""Row of the table of commands."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Folders of presets for the commands with a training configuration.
TRAINING_PRESETS = ("runs", "models", "models/denoisers", "data", "hparams", "rollouts")


@dataclass(frozen=True)
class Command:
    """A command: its configuration, its workflow, and what its help says.

    Attributes:
        summary: One sentence for the help.
        workflow: `module:function` of `(config, *, reporter)`, which returns the result. Without a
            schema, the function takes no arguments.
        schema: `module:Class` of the configuration; empty for a command without one.
        arguments: Keys that are arguments, with their names in the usage line; a name that ends
            with `...` stands for several values.
        options: Options that `--help` lists, in this order, with underscores; those that a format
            or a sink does not have are left out. Empty: all.
        suggestions: Keys to `module:function` of known values among others, for completion.
        examples: Command lines for the help.
        details: Second paragraph of the help.
        form: `module:function` that returns the `Form` of a command that differs from the others.
        has_ranks: The command has `--nproc`.
        has_rows: The result is a list, and the command has `--jsonl`.
        presets: Folders of presets for this command.
    """

    summary: str
    workflow: str
    schema: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    examples: tuple[str, ...] = ()
    details: str = ""
    form: str = ""
    has_ranks: bool = False
    has_rows: bool = False
    presets: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    suggestions: Mapping[str, str] = field(default_factory=dict[str, str])
