"""The live locations, at most ``Limits.max_locations``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from .._errors import TooManyLocationsError
from .._exporter import LocationChecker
from .._settings.policies import BatchPolicy
from .._values import checked_location, plain_location
from .location import Lane
from .shared import Shared

__all__ = ["Lanes"]


class Lanes:
    """Finds live locations and opens new ones.

    Empty locations are in ``_empty``, longest empty first. When the limit is reached, a new location replaces the first
    of these.

    Attributes:
        by_location: The live locations. Only this class changes it.
    """

    def __init__(self, shared: Shared, policy: Callable[[str], BatchPolicy]) -> None:
        self._shared = shared
        self._policy = policy
        # Checked once, as an isinstance check against a protocol is slow: a quarter of the time of opening a location.
        self._checker = shared.exporter if isinstance(shared.exporter, LocationChecker) else None
        self.by_location: dict[str, Lane] = {}
        self._empty: OrderedDict[Lane, None] = OrderedDict()

    def __iter__(self) -> Iterator[Lane]:
        yield from tuple(self.by_location.values())

    def __len__(self) -> int:
        return len(self.by_location)

    def get(self, location: str) -> Lane | None:
        """Return a live location, or None."""
        return self.by_location.get(plain_location(location))

    def check(self, location: str) -> None:
        """Raise `InvalidLocationError` if nothing can be sent to ``location``."""
        if self.get(location) is None:
            self._checked(location)

    def open(self, location: str) -> Lane:
        """Open a location that is not live.

        Raises:
            InvalidLocationError: Nothing can be sent to ``location``.
            TooManyLocationsError: ``Limits.max_locations`` locations all hold spans.
        """
        location = self._checked(location)
        policy = self._policy(location)
        if not isinstance(policy, BatchPolicy):
            raise TypeError(f"batch({location!r}) returned {policy!r}; it must return a BatchPolicy")
        if (opened := self.by_location.get(location)) is not None:
            # The policy function or the exporter's check has added a span.
            return opened
        self._make_place()
        lane = Lane(location, policy, self._shared)
        self.by_location[location] = lane
        self._empty[lane] = None
        lane.reconsider()
        return lane

    def remove(self, lane: Lane) -> None:
        """Remove a location that ends."""
        del self.by_location[lane.location]
        self._empty.pop(lane, None)
        self._shared.ledger.end(lane.location)
        self._shared.offer_spare_slot()
        self._shared.admission.keep_slots_busy()

    def occupied(self, lane: Lane) -> None:
        """Note that a location holds spans, or that an adder waits for space in it."""
        self._empty.pop(lane, None)

    def emptied(self, lane: Lane) -> None:
        """Note that a location holds no spans. It is not empty if an adder waits."""
        if self.by_location.get(lane.location) is lane and not lane.waiting:
            self._empty[lane] = None

    def _checked(self, location: str) -> str:
        location = checked_location(location)
        if self._checker is not None:
            self._checker.check_location(location)
        return location

    def _make_place(self) -> None:
        limit = self._shared.limits.max_locations
        if len(self.by_location) < limit:
            return
        if not self._empty:
            raise TooManyLocationsError(
                f"{limit} locations hold spans or wait to, as many as Limits.max_locations allows; "
                "raise it, or flush before adding for another location"
            )
        next(iter(self._empty)).end()
