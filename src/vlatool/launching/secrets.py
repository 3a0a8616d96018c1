"""Secrets of a job: read at its start from AWS Secrets Manager, by name."""

import json
from collections.abc import Mapping
from contextlib import suppress

from vlatool.errors import EnvironmentProblem
from vlatool.launching.aws_account import Account


def load_secrets(names: str) -> dict[str, str]:
    """Environment variables with the values of secrets.

    `names`: JSON object of environment variable to name of a secret.

    A secret that is a JSON object with an entry of the variable's name gives that entry.
    """
    account = Account()
    return {
        variable: _secret(account, variable, name) for variable, name in json.loads(names).items()
    }


def _secret(account: Account, variable: str, name: str) -> str:
    response = account.call("secretsmanager", "get_secret_value", SecretId=name)
    text = response.get("SecretString")
    if not isinstance(text, str):
        raise EnvironmentProblem(
            f"the secret {name} for {variable} is not text",
            hint="store it with --secret-string",
            code="environment.secret",
            details={"secret": name, "variable": variable},
        )
    with suppress(ValueError):
        document = json.loads(text)
        if isinstance(document, Mapping) and isinstance(document.get(variable), str):
            return document[variable]
    return text
