"""Errors of a scheme that are no answers of its storage."""

from typing import Any

import pytest

from tests.builders.errors import fails
from vlatool.plugins import SCHEMES
from vlatool.storage.remote import Address, call, forget_connections


class ReadOnly:
    """A scheme that cannot be written, with a mistake in `head`."""

    settings = ()

    def __init__(self, root: str) -> None:
        self.root = root

    def head(self, key: str) -> Any:
        return self._misspelled  # pyright: ignore[reportAttributeAccessIssue]

    def retry_advice(self, error: Exception) -> None:
        return None

    def map_error(self, error: Exception, location: str) -> Exception:
        return error


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Address:
    forget_connections()
    monkeypatch.setattr(SCHEMES, "get", lambda scheme: ReadOnly)
    return Address("memory://x", "key")


def test_writing_where_a_scheme_cannot_is_a_storage_error(address: Address) -> None:
    with fails("storage.write", 5):
        call(address, lambda remote: remote.put("key", b""))


def test_an_attribute_error_inside_a_scheme_is_raised(address: Address) -> None:
    with pytest.raises(AttributeError, match="_misspelled"):
        call(address, lambda remote: remote.head("key"))


def test_a_key_of_azure_goes_to_the_named_account_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("azure.storage.blob")
    from vlatool.storage.azure import Container

    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "ours")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sig=x")
    assert Container("az://ours/c")._credential == "sig=x"
    assert Container("az://theirs/c")._credential is None
