"""Constraints of pip for the lowest versions that `make lowest` installs."""

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path


def main() -> None:
    """Prints a line for each requirement of the core and the named extras with a lower bound."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][name] for name in sys.argv[1:]]
    for requirement in chain(project["dependencies"], *extras):
        if match := re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement):
            print(f"{match[1]}=={match[2]}")  # noqa: T201 - its output


if __name__ == "__main__":
    main()
