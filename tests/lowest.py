"""Constraints of pip for the lowest versions of the core, which `make lowest` installs."""

import re
import tomllib
from pathlib import Path


def main() -> None:
    """Prints a line for each requirement with a lower bound."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        if match := re.match(r"([\w-]+)>=([\d.]+)", requirement):
            print(f"{match[1]}=={match[2]}")  # noqa: T201 - its output


if __name__ == "__main__":
    main()
