"""Reading of HTML pages."""

import html
import json
import re
from typing import Any


def charts_of(text: str) -> list[dict[str, Any]]:
    """What the script of a page draws: a document for each chart."""
    return [json.loads(html.unescape(each)) for each in re.findall("data-chart='(.*?)'", text)]
