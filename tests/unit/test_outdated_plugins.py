"""Plugins written for an earlier vlatool: reported with the present names, never as a bug."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlatool.cli.failures import as_vlatool_error
from vlatool.episode import EpisodeRef
from vlatool.errors import BugError, EnvironmentProblem
from vlatool.findings import Collector, FindingCodes
from vlatool.jobs.executor import attempt
from vlatool.loading.kinds import data_kind
from vlatool.outdated_plugins import check_names
from vlatool.plugins import FORMATS, MODELS, Registry

PACKAGE = "earlier_vla"
READER = """
from vlatool.episode import EpisodeRef
class Reader:
    {body}
"""
MODEL = """
class Model:
    kinds = ("earlier_vla.kind:Kind",)
    {body}
"""
KIND = """
{imports}
class Kind:
    name = "rows"
    {body}
"""
EARLIER_KIND = """def read_facts(self, config): ...
    def prepared(self, config, facts): ...
    def keep(self, config, facts, folder): ...
    def kept(self, config, folder): ..."""
PRESENT_KIND = """def load_info(self, config, reporter): ...
    def make_assets(self, config, info): ...
    def save_assets(self, config, info, folder): ...
    def load_assets(self, config, folder): ...
    def keep(self): ..."""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with a format `earlier` and a model type `earlier`."""

    def write(reader: str = "pass", model: str = "pass", kind: str = "pass", imports: str = ""):
        files = {
            f"{PACKAGE}/__init__.py": "",
            f"{PACKAGE}/reader.py": READER.format(body=reader),
            f"{PACKAGE}/model.py": MODEL.format(body=model),
            f"{PACKAGE}/kind.py": KIND.format(body=kind, imports=imports),
            f"{PACKAGE}-1.0.dist-info/METADATA": f"Name: {PACKAGE}\nVersion: 1.0\n",
            f"{PACKAGE}-1.0.dist-info/entry_points.txt": "[vlatool.formats]\n"
            f"earlier = {PACKAGE}.reader:Reader\n"
            f"[vlatool.models]\nearlier = {PACKAGE}.model:Model\n",
        }
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in ("", ".reader", ".model", ".kind"):
            monkeypatch.delitem(sys.modules, PACKAGE + name, raising=False)

    return write


def listed_error(registry: Registry[object]) -> str:
    return next(entry.error for entry in registry.entries() if entry.name == "earlier")


@pytest.mark.parametrize(
    ("reader", "present_names"),
    [
        ('sink = "jsonl"', {"sink": "default_sink"}),
        ('specialises: str = "lerobot"', {"specialises": "base_format"}),
        ("is_last_resort = True", {"is_last_resort": "is_fallback"}),
        ("def __init__(self, c): self.noticed = []", {"noticed": "source_findings"}),
        (
            'def discover(self, s): yield from (EpisodeRef("a", p, "s", held_out="x") for p in s)',
            {"EpisodeRef(held_out=)": "EpisodeRef(excluded=)"},
        ),
    ],
)
def test_reader_with_an_earlier_name(install: Install, reader: str, present_names: dict) -> None:
    install(reader=reader)

    with pytest.raises(EnvironmentProblem) as caught:
        FORMATS.get("earlier")

    error = caught.value
    assert (error.code, error.exit_code) == ("environment.plugin_outdated", 6)
    assert error.details["renamed"] == present_names
    ((old, new),) = present_names.items()
    assert error.message == (
        f"format 'earlier' of {PACKAGE} 1.0 is written for an earlier vlatool:"
        f" rename {old} to {new}"
    )
    assert listed_error(FORMATS) == error.message


def test_model_type_with_earlier_names(install: Install) -> None:
    install(model="def recall(self, config, before): ...\n    def keep(self, config, folder): ...")

    with pytest.raises(EnvironmentProblem, match="recall to restore_base_config, keep to save_ass"):
        MODELS.get("earlier")

    assert "keep to save_assets" in listed_error(MODELS)


@pytest.mark.parametrize(
    ("imports", "body", "old", "new"),
    [
        ("", EARLIER_KIND, "read_facts", "load_info"),
        ("", EARLIER_KIND, "kept", "load_assets"),
        ("from vlatool.loading.base import Block, Dropped", "pass", "Block", "ShardInfo"),
        ("from vlatool.findings import Family", "pass", "Family", "FindingCodes"),
    ],
)
def test_data_kind_with_earlier_names(
    install: Install, imports: str, body: str, old: str, new: str
) -> None:
    install(kind=body, imports=imports)

    with pytest.raises(EnvironmentProblem) as caught:
        data_kind("rows", [f"{PACKAGE}.kind:Kind"])

    assert (caught.value.code, caught.value.exit_code) == ("environment.plugin_outdated", 6)
    assert caught.value.details["renamed"][old] == new
    assert listed_error(MODELS) == caught.value.message


def test_present_names_may_stand_beside_an_own_method_with_an_earlier_name(
    install: Install,
) -> None:
    install(reader='default_sink = "jsonl"\n    sink = "mine"', kind=PRESENT_KIND)

    assert (listed_error(FORMATS), listed_error(MODELS)) == ("", "")
    assert data_kind("rows", [f"{PACKAGE}.kind:Kind"]).name == "rows"


def test_import_of_an_unknown_name_is_a_broken_plugin(install: Install) -> None:
    install(imports="from vlatool.findings import NoSuchName")

    with pytest.raises(EnvironmentProblem) as caught:
        data_kind("rows", [f"{PACKAGE}.kind:Kind"])

    assert caught.value.code == "environment.broken_plugin"


def test_objective_with_earlier_names() -> None:
    class Earlier:
        def figures(self, phase: str, sums: object, count: float) -> None: ...

    with pytest.raises(EnvironmentProblem, match="figures to metrics"):
        check_names("objective 'Earlier'", "objective", Earlier)


def test_earlier_argument_of_a_reference() -> None:
    earlier: dict[str, Any] = {"held_out": "validation"}

    with pytest.raises(EnvironmentProblem) as caught:
        EpisodeRef("a", Path("a"), "s", **earlier)

    assert caught.value.code == "environment.plugin_outdated"
    assert "excluded" in caught.value.message


def import_union(_: object) -> None:
    from vlatool.sources.base import (
        union,  # noqa: F401 # pyright: ignore[reportAttributeAccessIssue, reportUnusedImport]
    )


def use_refuse(collector: Any) -> None:
    collector.refuse(None)


@pytest.mark.parametrize(("use", "new"), [(import_union, "merge_surveys"), (use_refuse, "add_err")])
def test_earlier_name_that_is_used_late(use: Callable[[Any], None], new: str) -> None:
    collector = Collector(FindingCodes("acme", {}), strict=True)

    error = attempt(use, collector).error

    assert isinstance(error, EnvironmentProblem)
    assert new in error.message
    with pytest.raises((ImportError, AttributeError)) as caught:
        use(collector)
    assert new in as_vlatool_error(caught.value).message


def test_error_inside_vlatool_stays_a_bug() -> None:
    no_table: Any = None
    error = attempt(lambda codes: codes("x", "y"), FindingCodes("acme", no_table)).error

    assert isinstance(error, BugError)
