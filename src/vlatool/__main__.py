"""`python -m vlatool` is `vlatool`."""

from vlatool.cli.app import main

if __name__ == "__main__":
    main()
