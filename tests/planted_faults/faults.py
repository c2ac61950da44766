"""Faults to plant: plausible mistakes of a line or two, each of which breaks a promise to users.

None of them shows in every run: most need a cancel, a full queue or a failing server at the wrong moment. Each names
the machine that is known to find it fastest; the others run after it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

__all__ = ["FAULTS", "Machine", "PlantedFault"]

Machine: TypeAlias = Literal["simulation", "cancel everywhere", "state machine"]


@attrs.frozen
class PlantedFault:
    """A fault.

    Attributes:
        name: A short description.
        module: The file, relative to the package.
        right: The correct code, which occurs once in the file.
        wrong: The code with the fault.
        first: The machine that runs first.
        scenario: The scenario to run if the first machine is "cancel everywhere"; a later one runs all scenarios.
    """

    name: str
    module: str
    right: str
    wrong: str
    first: Machine = "simulation"
    scenario: str | None = None


FAULTS = (
    # -- leases and accounting -------------------------------------------------------------------------------------
    PlantedFault(
        "a lease is not returned when its delivery is cancelled",
        "_runtime/delivery.py",
        "for lease in tuple(self._open):",
        "for lease in ():",
    ),
    PlantedFault(
        "a lease's bytes are not returned",
        "_scheduler/location.py",
        "        self._leased_bytes -= lease.cost\n        self._ledger.settle",
        "        self._ledger.settle",
    ),
    PlantedFault(
        "the byte budget leaks the bytes of rejected spans",
        "_scheduler/ledger.py",
        "        self.pending_bytes -= lease.cost",
        "        self.pending_bytes -= 0 if settlement.rejected else lease.cost",
    ),
    PlantedFault(
        "both halves of a batch take the bytes of the whole",
        "_scheduler/ledger.py",
        "cost=cost, attempts=0)",
        "attempts=0)",
    ),
    PlantedFault(
        "the right half of a batch begins where the left one does",
        "_scheduler/ledger.py",
        "self._part(right, self.first + at, ",
        "self._part(right, self.first, ",
    ),
    PlantedFault(
        "a location that comes back starts with a new account",
        "_scheduler/ledger.py",
        "return self._accounts.setdefault(location, Account())",
        "self._accounts[location] = Account()\n        return self._accounts[location]",
    ),
    PlantedFault(
        "the account of a location that ended long ago is discarded",
        "_scheduler/ledger.py",
        "            self._forgotten = _sum(self._forgotten, self._accounts.pop(oldest))",
        "            del self._accounts[oldest]",
    ),
    PlantedFault(
        "an attempt that was cancelled is not ambiguous",
        "_runtime/delivery.py",
        "if result is None or (isinstance(result, TryLater) and result.ambiguous):",
        "if isinstance(result, TryLater) and result.ambiguous:",
    ),
    PlantedFault(
        "an ambiguous span is counted at each attempt",
        "_scheduler/ledger.py",
        "            lease.ambiguous = True\n",
        "",
    ),
    PlantedFault(
        "an attempt that timed out is treated as one that did not arrive",
        "_runtime/delivery.py",
        'return TryLater(f"no answer within {timeout:g} s", ambiguous=True, cause="timeout")',
        'return TryLater(f"no answer within {timeout:g} s", cause="timeout")',
    ),
    PlantedFault(
        "a Cancelled that the exporter has kept is treated as the batcher's own",
        "_exceptions.py",
        "return trio.current_effective_deadline() == -math.inf",
        "return True",
    ),
    # -- losses ----------------------------------------------------------------------------------------------------
    PlantedFault(
        "on_loss is not called for spans that the drain hands back",
        "_scheduler/location.py",
        '            losses.report(Loss(self.location, lease.batch, "undelivered"',
        '                losses.report(Loss(self.location, lease.batch, "undelivered"',
    ),
    PlantedFault(
        "on_loss is called twice for spans that the server rejected",
        "_scheduler/location.py",
        'losses.report(Loss(self.location, lease.batch, "rejected", reason, code, count=settlement.rejected))',
        'losses.report(loss := Loss(self.location, lease.batch, "rejected", reason, code, count=settlement.rejected))\n'
        "            losses.report(loss)",
    ),
    PlantedFault(
        "an exception from on_loss escapes in the middle of the accounting",
        "_reporting/losses.py",
        "except BaseException as exc:",
        "except ValueError as exc:",
    ),
    # -- lanes -----------------------------------------------------------------------------------------------------
    PlantedFault(
        "the driver does not learn of the first span of a batch",
        "_scheduler/location.py",
        "        if became_full or is_first:\n",
        "        if became_full:\n",
    ),
    PlantedFault(
        "the driver checks for work and falls asleep a moment later",
        "_runtime/driver.py",
        "                with trio.CancelScope(deadline=self.agenda.next_at) as self._sleep:\n",
        "                at = self.agenda.next_at\n                await trio.lowlevel.checkpoint()\n"
        "                with trio.CancelScope(deadline=at) as self._sleep:\n",
    ),
    PlantedFault(
        "the driver does not learn of a batch that became full",
        "_scheduler/location.py",
        "        if became_full or is_first:\n",
        "        if is_first:\n",
    ),
    PlantedFault(
        "a deadline is restarted by each span",
        "_scheduler/splitter.py",
        "        self._count = count + 1\n",
        "        self._count, self._opened_at = count + 1, self._clock()\n",
        first="state machine",
    ),
    PlantedFault(
        "a batch takes one span too many",
        "_scheduler/splitter.py",
        "if count + 1 >= self._max_spans or",
        "if count + 1 > self._max_spans or",
        first="state machine",
    ),
    PlantedFault(
        "a flush does not make the last span due: its lane's watermark is off by one",
        "_scheduler/location.py",
        "self._flush_watermark = self.account.accepted\n",
        "self._flush_watermark = self.account.accepted - 1\n",
        first="state machine",
    ),
    PlantedFault(
        "a lane ends by idleness with a span in it",
        "_scheduler/location.py",
        "if self.account.pending or self.waiting:",
        "if self.account.in_flight or self.waiting:",
    ),
    PlantedFault(
        "a lane that is evicted for another one does not end",
        "_scheduler/locations.py",
        "        next(iter(self._empty)).end()\n",
        "        self.remove(next(iter(self._empty)))\n",
    ),
    # -- admission -------------------------------------------------------------------------------------------------
    PlantedFault(
        "a span is counted before it is enqueued, and the channel turns out to be full",
        "_scheduler/admission.py",
        "account.queued < self._max_queued",
        "account.queued <= self._max_queued",
        first="state machine",
    ),
    PlantedFault(
        "add_spans counts a span before it is admitted",
        "_batcher.py",
        "        waited = await self._admit(location, span)\n        progress.accepted += 1",
        "        progress.accepted += 1\n        waited = await self._admit(location, span)",
        first="state machine",
    ),
    PlantedFault(
        "add_span can be cancelled after it has added its span",
        "_batcher.py",
        "if not await self._admit(location, encoded):\n            await trio.lowlevel.cancel_shielded_checkpoint()",
        "if not await self._admit(location, encoded):\n            await trio.lowlevel.checkpoint()",
        first="cancel everywhere",
        scenario="quiet",
    ),
    PlantedFault(
        "a span that is added without waiting overtakes those that wait for its lane",
        "_scheduler/admission.py",
        "            and not lane.waiting\n            and not self._byte_line\n",
        "            and not self._byte_line\n",
        first="state machine",
    ),
    PlantedFault(
        "the space that sealing a batch frees is not given to waiting adders",
        "_scheduler/admission.py",
        "        self._made_due.discard(lane)\n        if lane.waiting:\n            self._serve(lane)\n",
        "        self._made_due.discard(lane)\n",
        first="state machine",
    ),
    PlantedFault(
        "closing wakes only the first waiting adder of each location",
        "_scheduler/admission.py",
        "            while lane.waiting:\n                waiter, _",
        "            if lane.waiting:\n                waiter, _",
        first="state machine",
    ),
    # -- slots, concurrency and backoff, the retry queue -----------------------------------------------------------
    PlantedFault(
        "a slot that is given back wakes no lane that waits for one",
        "_scheduler/slots.py",
        "            lane, _ = self._waiting.popitem(last=False)\n            lane.take_slot()\n",
        "            self.free += 1\n",
        first="state machine",
    ),
    PlantedFault(
        "a lane that has ended takes a slot",
        "_scheduler/location.py",
        "        if not self._ended:\n            self._shared.agenda",
        "        if True:\n            self._shared.agenda",
        first="cancel everywhere",
        scenario="drain_in_progress",
    ),
    PlantedFault(
        "a lane that ends keeps the slot that it was given",
        "_scheduler/location.py",
        "        if self._has_slot:\n            self._has_slot = False\n            self._release_slot()\n",
        "",
    ),
    PlantedFault(
        "a slot is kept during a backoff",
        "_scheduler/location.py",
        "        self._release_export()\n        self.reconsider()\n",
        "        if not isinstance(result, TryLater):\n            self._release_export()\n        self.reconsider()\n",
        first="state machine",
    ),
    PlantedFault(
        "max_exports is off by one",
        "_batcher.py",
        "slots=ExportSlots(limits.max_exports)",
        "slots=ExportSlots(limits.max_exports + 1)",
    ),
    PlantedFault(
        "max_exports_per_location is off by one",
        "_scheduler/pace.py",
        "self.active >= self.allowed else",
        "self.active > self.allowed else",
        first="state machine",
    ),
    PlantedFault(
        "the time limit for retries is restarted by each attempt",
        "_runtime/delivery.py",
        "        if self._first_attempt_at is None:\n            self._first_attempt_at",
        "        if True:\n            self._first_attempt_at",
        first="state machine",
    ),
    PlantedFault(
        "the drain's deadline does not apply to a backoff",
        "_scheduler/pace.py",
        "        return math.inf if left < _LAST_MOMENT else min(wait, left / 2)",
        "        return wait",
        first="state machine",
    ),
    PlantedFault(
        "a backoff continues when the drain begins",
        "_scheduler/location.py",
        "        self.pace.cut_short(trio.current_time())\n",
        "",
        first="state machine",
    ),
    # -- flushing --------------------------------------------------------------------------------------------------
    PlantedFault(
        "a flush ends too early: it does not wait for spans in flight",
        "_scheduler/flush.py",
        "LocationFlush(account.accepted, account.pending)",
        "LocationFlush(account.accepted, account.queued)",
        first="state machine",
    ),
    PlantedFault(
        "a flush waits for one location only",
        "_scheduler/flush.py",
        "        if not self._open:\n            self._done.set()\n\n    async",
        "        self._done.set()\n\n    async",
        first="state machine",
    ),
    # -- isolation -------------------------------------------------------------------------------------------------
    PlantedFault(
        "isolation sends a half twice",
        "_scheduler/isolation.py",
        "self._parts += (_Part(right), _Part(left))",
        "self._parts += (_Part(left), _Part(right), _Part(left))",
    ),
    # -- the drain -------------------------------------------------------------------------------------------------
    PlantedFault(
        "a drain without a shield",
        "_runtime/supervisor.py",
        "factory=lambda: trio.CancelScope(shield=True))",
        "factory=trio.CancelScope)",
        first="cancel everywhere",
        scenario="quiet",
    ),
    PlantedFault(
        "the body is inside the shield",
        "_runtime/supervisor.py",
        "        nursery = await self._manager.__aenter__()\n",
        "        nursery = await self._manager.__aenter__()\n        nursery.cancel_scope.shield = True\n",
        first="cancel everywhere",
        scenario="quiet",
    ),
    PlantedFault(
        "the drain does not tell the lanes that are empty",
        "_runtime/supervisor.py",
        "        for lane in self.shared.lanes:\n            lane.close()",
        "        for lane in self.shared.lanes:\n            if lane.account.pending:\n                lane.close()",
        first="state machine",
    ),
    PlantedFault(
        "the exporter is not closed",
        "_runtime/supervisor.py",
        "                await self._supervise_work(task_status)\n                await self._close_exporter()\n",
        "                await self._supervise_work(task_status)\n",
        first="cancel everywhere",
        scenario="quiet",
    ),
    PlantedFault(
        "the body's exception propagates in a group",
        "_runtime/supervisor.py",
        "            await self._manager.__aexit__(None, None, None)\n        except BaseExceptionGroup as",
        "            await self._manager.__aexit__(type(exc) if exc else None, exc, None)\n        except KeyError as",
        first="cancel everywhere",
        scenario="quiet",
    ),
    PlantedFault(
        "a cancel in the drain is swallowed",
        "_runtime/supervisor.py",
        "            raise failure\n        await trio.lowlevel.checkpoint_if_cancelled()\n",
        "            raise failure\n",
        first="cancel everywhere",
        scenario="quiet",
    ),
    PlantedFault(
        "strict ignores rejected spans",
        "_runtime/supervisor.py",
        "if self.strict and (total.rejected or total.undelivered):",
        "if self.strict and total.undelivered:",
    ),
    # -- OTLP ------------------------------------------------------------------------------------------------------
    PlantedFault(
        "a request that timed out is treated as one that did not arrive",
        "_http/exporter.py",
        'return TryLater(reason, ambiguous=True, cause="timeout")',
        'return TryLater(reason, cause="timeout")',
    ),
    PlantedFault(
        "a broken exchange is treated as one that did not begin",
        "_http/failures.py",
        '"PoolTimeout", "ProxyError")',
        '"PoolTimeout", "ProxyError", "ReadError")',
    ),
    PlantedFault(
        "spans that a partial success rejected are not counted",
        "_http/responses.py",
        "return Delivered(rejected,",
        "return Delivered(0,",
    ),
    PlantedFault(
        "Retry-After is ignored",
        "_http/responses.py",
        "    return TryLater(response.reason, after=after, status_code=response.status)",
        "    return TryLater(response.reason, after=after and 0, status_code=response.status)",
    ),
)
