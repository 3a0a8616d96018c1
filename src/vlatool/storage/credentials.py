"""Credentials, recognized by their form and by the names of variables that hold them."""

import os
import re
from collections.abc import Mapping

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
_SHORTEST = 16  # of the value of a variable that is searched for in texts


def is_credential(variable: str, value: str) -> bool:
    """True if an environment variable holds a credential, by its name or the form of its value."""
    return bool(_VARIABLE.search(variable.upper()) or _FORMS.search(os.fsencode(value)))


def credentials_pattern(environ: Mapping[str, str] = os.environ) -> re.Pattern[bytes]:
    """All forms of credentials, and the values of those in an environment."""
    values = {
        value
        for name, value in environ.items()
        if _VARIABLE.search(name.upper()) and len(value) >= _SHORTEST and not os.path.exists(value)
    }
    own = [re.escape(os.fsencode(value)) for value in sorted(values)]
    return re.compile(b"|".join([_FORMS.pattern, *own]))


def without_credentials(text: str, pattern: re.Pattern[bytes] = _FORMS) -> str:
    """Text with `...` in place of credentials."""
    content = text.encode(errors="surrogateescape")
    return pattern.sub(b"...", content).decode(errors="surrogateescape")
