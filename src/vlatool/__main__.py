"""Entry point of `python -m vlatool`, the same as the command `vlatool`."""

from vlatool.cli.app import main

if __name__ == "__main__":
    main()
