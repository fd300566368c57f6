"""The command line of the embedded server."""

import pytest

from rhapsody.inference.embedded.__main__ import parse_options


def test_delay_is_converted_to_seconds() -> None:
    options = parse_options(["--model", "m", "--port", "0", "--token-delay-ms", "2.5"])
    assert options.token_delay == 0.0025


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "m"],
        ["--port", "0"],
        ["--model", "m", "--port", "0", "--uds", "x"],
        ["--model", "m", "--port", "-1"],
        ["--model", "m", "--port", "0", "--max-num-seqs", "0"],
        ["--model", "m", "--port", "0", "--token-delay-ms", "-1"],
        ["--model", "m", "--port", "0", "--token-delay-ms", "nan"],
    ],
)
def test_invalid_arguments_exit_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
