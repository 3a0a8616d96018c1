"""Credentials, recognized by their form and by the names of variables that hold them."""

import os
import re

_FORMS = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}"
    rb"|\bgithub_pat_\w{40,}|\bxox[abeprs]-[\w-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    rb"|(?<![\w-])sk-(?=[\w-]*\d)[\w-]{20,}|\bAIza[\w-]{35}"
    rb"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"  # JWT: header, claims and signature
    rb"|(?i:aws_secret_access_key|aws_session_token)[\"']?\s*[:=]\s*[\"']?[\w/+=]{20,}"
    rb"|://[^/\s:@\"']*:[^/\s:@\"']+@|[?&]X-(?:Amz|Goog)-Signature="
)
_VARIABLE = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASSWD|CREDENTIALS?|PAT|KEYS?|CONNECTION_STRING)(_|$)"
    r"|(^|_)(AUTH|PASS)$|(KEY|PASSWORD|_PWD)$"
)
_SHORTEST = 8  # of the value of a variable; shorter ones are switches or placeholders
# Values that this process uses.
_HIDDEN: set[str] = set()


def is_credential(variable: str, value: str) -> bool:
    """True if an environment variable holds a credential, by its name or the form of its value."""
    return bool(_VARIABLE.search(variable.upper()) or _FORMS.search(os.fsencode(value)))


def hide(value: str) -> None:
    """Keeps a credential out of all that `without_credentials` passes on."""
    if value:
        _HIDDEN.add(value)


def hide_environment() -> None:
    """Hides the credentials among the environment variables; names of files are none."""
    for name, value in os.environ.items():
        is_named = _VARIABLE.search(name.upper()) and not os.path.exists(value)
        if is_named and len(value) >= _SHORTEST:
            hide(value)


def without_credentials(text: str) -> str:
    """Text with `...` in place of credentials."""
    content = text.encode(errors="surrogatepass")
    text = _FORMS.sub(b"...", content).decode(errors="surrogatepass")
    for value in sorted(_HIDDEN, key=len, reverse=True):
        text = text.replace(value, "...")
    return text
