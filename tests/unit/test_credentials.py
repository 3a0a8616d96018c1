"""Credentials in variables and texts."""

from pathlib import Path

import pytest

from vlatool import credentials
from vlatool.credentials import is_credential, without_credentials

LETTERS = "aB3" * 14
FORMS = [
    f"hf_{LETTERS[:34]}",
    f"sk-proj-{LETTERS}",
    f"AIza{LETTERS[:35]}",
    "AKIA" + "ABCD2345" * 2,
    f"ghp_{LETTERS[:36]}",
    f"github_pat_{LETTERS}",
    f"xoxb-{LETTERS}",
    f"eyJ{LETTERS}.eyJ{LETTERS}.{LETTERS}",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "https://ada:hunter22@host/data",
    f"aws_secret_access_key = {LETTERS[:40]}",
    f'"aws_secret_access_key": "{LETTERS[:40]}"',
    "https://host/data?X-Amz-Signature=1",
]


@pytest.fixture(autouse=True)
def _nothing_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_HIDDEN", set())


@pytest.mark.parametrize("text", FORMS)
def test_credential_is_recognized_by_its_form(text: str) -> None:
    assert is_credential("PLAIN", f"as {text} here")
    assert without_credentials(f"as {text} here") != f"as {text} here"
    assert LETTERS[:20] not in without_credentials(f"as {text} here")


@pytest.mark.parametrize(
    "name",
    [
        *("GITHUB_PAT", "NETRC_AUTH", "WANDB_API_KEY", "APIKEY", "AWS_ACCESS_KEY_ID", "MYSQL_PWD"),
        *("HF_TOKEN", "db_password", "PGPASSWORD", "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_variable_is_recognized_by_its_name(name: str) -> None:
    assert is_credential(name, "x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false"),
        ("OLDPWD", "/home/ada"),
        ("PYTHONPATH", "/opt/task-sk-learn"),
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("AWS_ENDPOINT_URL", "https://storage.example?form=1"),
        ("NAME", "sk-learn-with-a-long-name-and-no-number"),
    ],
)
def test_other_variables_hold_no_credentials(name: str, value: str) -> None:
    assert not is_credential(name, value)


def test_values_of_variables_are_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAB_TOKEN", "of-my-own-hub-17")
    monkeypatch.setenv("LAB_KEY", str(tmp_path))
    text = f"at {tmp_path} with of-my-own-hub-17"

    credentials.hide_environment()
    assert without_credentials(text) == f"at {tmp_path} with ..."
