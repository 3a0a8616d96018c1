"""Which sentence a LeRobot episode was recorded for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlatool.errors import DataError

# Quality labels that GR00T-flavoured sets list among the tasks. Source: lerobot-format 8
_LABELS = frozenset({"valid", "invalid"})


@dataclass(frozen=True)
class Instruction:
    """The sentence, empty when there is none, and what was odd about finding it."""

    text: str
    warnings: tuple[tuple[str, str], ...] = ()


def without_labels(tasks: Sequence[str]) -> tuple[str, ...]:
    """The sentences among an episode's tasks, without repetitions and quality labels."""
    distinct = tuple(dict.fromkeys(text for text in tasks if text.strip()))
    return tuple(text for text in distinct if text not in _LABELS) or distinct


def instruction_of_rows(
    episode: str, column: str, values: Sequence[Any], table: Mapping[int, str]
) -> Instruction:
    """The sentence that the rows name.

    Args:
        episode: How messages call the episode.
        column: The column the values come from.
        values: Per row a task number, or the sentence itself.
        table: Task number to sentence.

    Raises:
        DataError: A number is not in the table.
    """
    distinct = list(dict.fromkeys(values))
    sentences = list(dict.fromkeys(_sentence(episode, column, value, table) for value in distinct))
    if len(sentences) == 1:
        return Instruction(sentences[0])
    message = f"{episode}: its rows name {len(sentences)} tasks; the first row's is used"
    return Instruction(sentences[0], (("lerobot.several_tasks", message),))


def instruction_of_list(episode: str, listed: Sequence[str], join: str | None) -> Instruction:
    """The only sentence among those listed for the episode, or all of them joined.

    Raises:
        DataError: There are several and `join` is null.
    """
    sentences = without_labels(listed)
    if len(sentences) <= 1:
        return Instruction(sentences[0] if sentences else "")
    if join is not None:
        return Instruction(join.join(sentences))
    names = ", ".join(f'"{text}"' for text in sentences)
    raise DataError(
        f"{episode} lists {len(sentences)} tasks ({names}) and its rows do not say which applies",
        hint="choose with --task-join ' / ' or --task-column NAME",
        code="data.ambiguous_task",
        details={"episode": episode, "tasks": list(sentences)},
    )


def _sentence(episode: str, column: str, value: object, table: Mapping[int, str]) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and value in table:
        return table[value]
    span = f"{min(table)}..{max(table)}" if table else "there are none"
    raise DataError(
        f"{episode}: {column} {value!r} is not in meta/tasks.jsonl ({span})",
        hint="the metadata is older than the data; get meta/tasks.jsonl again",
        code="data.unknown_task",
        details={"episode": episode, "field": column},
    )
