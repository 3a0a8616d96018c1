"""Output options at any position of a command line."""

import pytest

from vlatool.cli.options import OutputOptions, take_output_options
from vlatool.errors import UsageError


@pytest.mark.parametrize(
    ("argv", "rest", "expected"),
    [
        (["--json", "doctor"], ["doctor"], OutputOptions(json=True)),
        (["doctor", "--json"], ["doctor"], OutputOptions(json=True)),
        (["a", "-q", "-v", "--verbose"], ["a"], OutputOptions(quiet=True, verbose=2)),
        (["-vv"], [], OutputOptions(verbose=2)),
        (["--log_file", "l", "a"], ["a"], OutputOptions(log_file="l")),
        (["--log-file=l", "a"], ["a"], OutputOptions(log_file="l")),
        (["--progress", "json"], [], OutputOptions(progress="json")),
        (["a", "--", "--json"], ["a", "--", "--json"], OutputOptions()),
        (["a", "--debug"], ["a"], OutputOptions(debug=True)),
    ],
)
def test_output_options_are_taken(
    argv: list[str], rest: list[str], expected: OutputOptions
) -> None:
    options = OutputOptions()
    assert take_output_options(argv, options) == rest
    assert options == expected


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--progress", "fancy"], "usage.bad_value"),
        (["--log-file"], "usage.missing_key"),
    ],
)
def test_bad_output_option_is_a_usage_error_that_still_knows_json(
    argv: list[str], code: str
) -> None:
    options = OutputOptions()
    with pytest.raises(UsageError) as caught:
        take_output_options([*argv, "--json"] if len(argv) > 1 else ["--json", *argv], options)
    assert caught.value.code == code
    assert options.json
