"""The part of docs/supported-otlp.md that is generated from the table of responses.

    python -m tests.docs.supported_otlp

writes it to the page; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Collection

from tests.support.paths import PROJECT
from trio_spanbatch import Delivered, Refused, TryLater
from trio_spanbatch._http.responses import RULES, Rule

__all__ = ["BEGIN", "END", "PAGE", "generated_section", "section_in_page"]

PAGE = PROJECT / "docs" / "supported-otlp.md"

BEGIN = "<!-- begin: made from RULES in trio_spanbatch/_http/responses.py by tests/docs/supported_otlp.py -->"
END = "<!-- end -->"

OUTCOMES: dict[type, str] = {
    Delivered: "`Delivered`: the spans are delivered, less those that the server says it rejected",
    TryLater: "`TryLater`: the same request is sent again, until `max_elapsed` or the shutdown deadline",
    Refused: "`Refused`: the spans are rejected, with the server's message",
}


def generated_section() -> str:
    """Return the table of responses, as it belongs between the markers."""
    rows = ["| status | rule | result |", "|---|---|---|", *map(_row, RULES)]
    return "\n".join(rows) + "\n"


def section_in_page() -> str:
    """Return the part of the page between the markers."""
    _, _, rest = PAGE.read_text().partition(f"{BEGIN}\n")
    return rest.partition(END)[0]


def _row(rule: Rule) -> str:
    return f"| {_statuses(rule.statuses)} | {rule.requirement} | {OUTCOMES[rule.outcome]} |"


def _statuses(statuses: Collection[int]) -> str:
    if statuses == range(1000):
        return "any other"
    if isinstance(statuses, range):
        first, last = statuses[0], statuses[-1]
        return f"{first // 100}xx" if (first % 100, last - first) == (0, 99) else f"{first} to {last}"
    return ", ".join(map(str, sorted(statuses)))


def main() -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(f"{BEGIN}\n")
    PAGE.write_text(f"{before}{BEGIN}\n{generated_section()}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
