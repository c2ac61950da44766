"""How an agent ended, and a check that the agent, its server and its batcher's statistics agree on its spans."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from tests.support.oracle import Facts, assert_accounted_for
from tests.support.processes import Child
from trio_spanbatch import LocationStatistics, SpanBatcherStatistics

from .collector import Record


@attrs.frozen
class Ended:
    """How an agent ended, and its report on its spans.

    Attributes:
        exit_code: Its exit code; if a signal ended it, the negated signal number.
        report: Its final report.
    """

    exit_code: int
    report: dict[str, Any]

    @property
    def error(self) -> str | None:
        """The name of the exception that ended it."""
        error: str | None = self.report["error"]
        return error

    @property
    def reasons(self) -> set[str]:
        """The reasons for which spans were handed back."""
        return {loss["reason"] for loss in self._losses("undelivered")}

    def check(self, records: Sequence[Record]) -> Facts:
        """Check that its spans are accounted for, given all records of the server. Return the facts."""
        answered = self.report["answered"]
        # A batch that was rejected as a whole may also have been answered, with all its spans left out.
        refused = [loss for loss in self._losses("rejected") if loss["ids"] not in [ids for ids, _ in answered]]
        facts = Facts(
            accepted=dict(self.report["accepted"]),
            stored=[(record.location, span_id) for record in records for span_id in record.stored],
            left_out=_left_out_of(answered, {span_id for record in records for span_id in record.left_out}),
            rejected=_ids_of(refused),
            undelivered=_ids_of(self._losses("undelivered")),
            doubtful=set(self.report["doubtful"]),
        )
        assert_accounted_for(facts, self._statistics())
        return facts

    def _losses(self, outcome: str) -> list[dict[str, Any]]:
        return [loss for loss in self.report["losses"] if loss["outcome"] == outcome]

    def _statistics(self) -> SpanBatcherStatistics:
        counts = self.report["statistics"]
        locations = {name: LocationStatistics(**location) for name, location in counts["locations"].items()}
        return SpanBatcherStatistics(**{**counts, "locations": locations})


def _ids_of(losses: Iterable[dict[str, Any]]) -> list[int]:
    return [span_id for loss in losses for span_id in loss["ids"]]


def _left_out_of(answered: Iterable[tuple[Sequence[int], int]], left_out: set[int]) -> set[int]:
    """Return those of ``left_out`` that are in batches whose answer arrived: as many as it said."""
    known: set[int] = set()
    for ids, count in answered:
        of_batch = left_out.intersection(ids)
        assert len(of_batch) == count, (
            f"the program was told that {count} spans were left out, but the server left out {of_batch}"
        )
        known |= of_batch
    return known


async def end_of(program: Child) -> Ended:
    """Wait for the end of an agent. Its report on its spans is known only then."""
    exit_code = await program.wait()
    report = json.loads(program.said[-1])
    assert "Exception ignored" not in program.errors, program.errors
    return Ended(exit_code, report)
