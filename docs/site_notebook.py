"""The notebook of the demo, built from the cells of demo_notebook.py, and its page of the site.

It has no outputs: they are those of the machine that runs it.
"""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SOURCE = Path(__file__).with_name("demo_notebook.py")
NOTEBOOK = "demo.ipynb"
_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the notebook, and a page that shows its cells."""
    texts = [
        (kind, text if kind == "markdown" else f"```python\n{text}\n```") for kind, text in cells()
    ]
    page = "\n\n".join(text for _, text in texts)
    title, _, rest = page.partition("\n")
    link = f"[Download the notebook]({NOTEBOOK}), which has the cells of this page."
    files.append(File.generated(config, NOTEBOOK, content=notebook()))
    files.append(File.generated(config, "demo.md", content=f"{title}\n\n{link}\n{rest}\n"))
    return files


def cells() -> list[tuple[str, str]]:
    """Kind, `markdown` or `code`, and text of each cell."""
    _, *rest = _CELL.split(SOURCE.read_text())
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return [_cell("markdown" if mark else "code", text) for mark, text in pairs]


def _cell(kind: str, text: str) -> tuple[str, str]:
    is_text = kind == "markdown"
    return kind, (re.sub(r"^# ?", "", text, flags=re.MULTILINE) if is_text else text).strip()


def notebook() -> str:
    """The notebook as a JSON document, format 4.5."""
    document: dict[str, Any] = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
        "cells": [_entry(index, *cell) for index, cell in enumerate(cells())],
    }
    return json.dumps(document, indent=1) + "\n"


def _entry(index: int, kind: str, text: str) -> dict[str, Any]:
    entry = {"id": f"cell-{index}", "cell_type": kind, "metadata": {}, "source": text}
    return {**entry, "execution_count": None, "outputs": []} if kind == "code" else entry
