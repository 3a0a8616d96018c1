"""Checks for authors of formats, model types and policies: one line in your tests.

    check_reader(AcmeReader, "tests/data/acme")
    check_model_type(AcmeType, {"width": 32}, data="tests/data/acme")
    check_policy(AcmePolicy())

Each raises an AssertionError that says which rule your class breaks.
"""

from vlatool.testing.models import check_model_type, check_policy
from vlatool.testing.readers import check_reader

__all__ = ["check_model_type", "check_policy", "check_reader"]
