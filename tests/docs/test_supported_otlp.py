"""docs/supported-otlp.md is true: its tests and variables exist, and its table of responses is that of the code.

The tests that docs/delivery-guarantees.md and docs/spool.md name exist too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from tests.docs.supported_otlp import BEGIN, END, PAGE, generated_section, section_in_page
from trio_spanbatch._settings import environment
from trio_spanbatch.destinations import mlflow

PROJECT = PAGE.parent.parent
GUARANTEES = PAGE.parent / "delivery-guarantees.md"
SPOOL = PAGE.parent / "spool.md"
NAME_OF_A_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


class Variables(dict[str, str]):
    """An environment that records which variables are read."""

    def __init__(self, **values: str) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, name: str, default: object = None) -> str:
        self.asked.add(name)
        return super().get(name, "")


def section(title: str) -> str:
    (found,) = re.findall(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


def rows(title: str) -> list[list[str]]:
    """Return the rows of a section's tables as cells, without the headings."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    heads = {number + offset for number, line in enumerate(lines) if line.startswith("|--") for offset in (-1, 0)}
    cells = [line.strip("|").split("|") for number, line in enumerate(lines) if number not in heads]
    return [[cell.strip() for cell in row] for row in cells]


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    """Return the names of the tests in a file, without importing it."""
    functions = (
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def variables(cells: Iterable[str], prefix: str) -> set[str]:
    return {name for cell in cells for name in re.findall(rf"`({prefix}\w+)`", cell)}


def test_each_of_the_17_requirements_has_a_row() -> None:
    assert [row[0] for row in rows("Requirements")] == [str(number) for number in range(1, 18)]
    assert all(all(row) and len(row) == 5 for row in rows("Requirements"))


@pytest.mark.parametrize(
    "title",
    [
        *("Requirements", "Delivery", "Environment", "Destinations", "The batcher's own metrics"),
        "What differs from the specification on purpose",
    ],
)
def test_each_row_names_tests(title: str) -> None:
    assert rows(title)
    for row in rows(title):
        assert NAME_OF_A_TEST.search(row[-1]), f"no test shows {row[0]!r}"


@pytest.mark.parametrize("page", [PAGE, GUARANTEES, SPOOL], ids=lambda page: page.stem)
def test_every_test_named_in_the_pages_exists(page: Path) -> None:
    named = NAME_OF_A_TEST.findall(page.read_text())
    missing = [f"{path}::{name}" for path, name in named if name not in names_of_tests(PROJECT / path)]
    assert missing == []
    assert page.read_text().count("::test_") == len(named), "a test is named in another form"


def test_each_guarantee_names_a_test() -> None:
    numbered = re.findall(r"^\| \d+ \|.*$", GUARANTEES.read_text(), re.MULTILINE)
    assert len(numbered) > 10
    assert all(NAME_OF_A_TEST.search(row) for row in numbered)


def test_each_failure_of_the_spool_names_a_test() -> None:
    section = SPOOL.read_text().partition("\n## What happens when something fails\n")[2].partition("\n## ")[0]
    _, _, *failures = [line for line in section.splitlines() if line.startswith("|")]
    assert len(failures) > 15
    assert all(NAME_OF_A_TEST.search(row) for row in failures)


def test_the_table_of_responses_is_the_one_in_the_code() -> None:
    assert PAGE.read_text().count(BEGIN) == PAGE.read_text().count(END) == 1
    assert section_in_page() == generated_section(), "run python -m tests.docs.supported_otlp"


def test_exactly_the_otel_variables_that_are_read_are_documented() -> None:
    environ = Variables()
    environment.exporter_options(environ)
    # TLS files are read only if the endpoint is https.
    environment.exporter_options(environ, endpoint="https://collector")
    environment.batch_options(environ)
    environment.queue_options(environ)
    environment.export_timeout(environ)
    environment.default_resource(environ)
    environment.sdk_disabled(environ)
    assert variables((row[0] for row in rows("Environment")), "OTEL_") == environ.asked


def test_exactly_the_mlflow_variables_that_are_read_are_documented() -> None:
    environ = Variables(MLFLOW_TRACKING_URI="https://mlflow.test")
    mlflow(environ=environ)
    assert variables((row[0] for row in rows("Environment")), "MLFLOW_") == environ.asked


def test_exactly_the_databricks_variables_that_the_code_names_are_documented() -> None:
    sources = [path.read_text() for path in (PROJECT / "trio_spanbatch" / "destinations").glob("*.py")]
    named = {name for source in sources for name in re.findall(r"\bDATABRICKS_[A-Z]+(?:_[A-Z]+)*", source)}
    assert named
    assert variables((row[0] for row in rows("Environment")), "DATABRICKS_") == named


def test_the_documented_defaults_are_those_of_the_code() -> None:
    defaults = {name: row[1] for row in rows("Environment") for name in variables(row[:1], "OTEL_")}
    assert f"`{environment.DEFAULT_ENDPOINT}`" in defaults["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert defaults["OTEL_EXPORTER_OTLP_TIMEOUT"].startswith("10000")
    assert defaults["OTEL_BSP_EXPORT_TIMEOUT"].startswith(f"{environment.export_timeout({}) * 1000:g}")


def test_each_feature_that_is_not_supported_has_a_reason() -> None:
    refused = {row[0]: row[1] for row in rows("What is not supported")}
    assert all(refused.values())
    assert {"OTLP/gRPC", "HTTP/2"} < refused.keys()
