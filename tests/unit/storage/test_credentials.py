"""Credentials in variables and texts."""

import pytest

from vlatool.storage.credentials import credentials_pattern, is_credential, without_credentials

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


def test_values_of_variables_are_found_in_texts() -> None:
    pattern = credentials_pattern({"LAB_TOKEN": "of-my-own-hub-17", "HOME": "/home/ada-and-others"})

    text = "at /home/ada-and-others with of-my-own-hub-17"

    assert without_credentials(text, pattern) == "at /home/ada-and-others with ..."
