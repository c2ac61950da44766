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
    """Finds the lane of a location, or opens one.

    A lane that holds nothing stands in ``_empty``, longest empty first. There a new location finds its place when the
    limit is reached.

    Attributes:
        by_location: The live lanes. Only this class changes it.
    """

    def __init__(self, shared: Shared, policy: Callable[[str], BatchPolicy]) -> None:
        self._shared = shared
        self._policy = policy
        # Asked once: to look whether an object is of a protocol takes as long as to open a quarter of a lane.
        self._checker = shared.exporter if isinstance(shared.exporter, LocationChecker) else None
        self.by_location: dict[str, Lane] = {}
        self._empty: OrderedDict[Lane, None] = OrderedDict()

    def __iter__(self) -> Iterator[Lane]:
        yield from tuple(self.by_location.values())

    def __len__(self) -> int:
        return len(self.by_location)

    def get(self, location: str) -> Lane | None:
        """Return the lane of a location that is live."""
        return self.by_location.get(plain_location(location))

    def check(self, location: str) -> None:
        """Raise `InvalidLocationError` if nothing can be sent to ``location``."""
        if self.get(location) is None:
            self._checked(location)

    def open(self, location: str) -> Lane:
        """Start a lane for a location that has none.

        Raises:
            InvalidLocationError: Nothing can be sent to ``location``.
            TooManyLocationsError: As many locations as may be all hold spans.
        """
        location = self._checked(location)
        policy = self._policy(location)
        if not isinstance(policy, BatchPolicy):
            raise TypeError(f"batch({location!r}) returned {policy!r}; it must return a BatchPolicy")
        if (opened := self.by_location.get(location)) is not None:
            # By the policy function or the exporter's check, if they add spans themselves.
            return opened
        self._make_place()
        lane = Lane(location, policy, self._shared)
        # Registered after its task was started: a lane without a task would hold its spans for ever.
        self._shared.start(lane.run, f"trio_spanbatch lane {location!r}")
        self.by_location[location] = lane
        self._empty[lane] = None
        return lane

    def remove(self, lane: Lane) -> None:
        """Forget a lane that ends. Nothing happens if it was forgotten before."""
        if self.by_location.get(lane.location) is lane:
            del self.by_location[lane.location]
            self._empty.pop(lane, None)
            self._shared.ledger.end(lane.location)
            self._shared.offer_spare_slot()
            self._shared.admission.keep_slots_busy()

    def occupied(self, lane: Lane) -> None:
        """Note that a lane holds spans, or an adder waits for it."""
        self._empty.pop(lane, None)

    def emptied(self, lane: Lane) -> None:
        """Note that a lane holds nothing. One for which an adder waits does not count as empty."""
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
        oldest = next(iter(self._empty))
        self.remove(oldest)
        oldest.retire()
