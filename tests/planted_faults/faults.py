"""Faults to plant: plausible mistakes of a line or two, each of which breaks a promise to users.

None of them shows in every run: most need a cancel, a full queue or a failing server at the wrong moment. Each names
the machine that is known to find it fastest; the others run after it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

__all__ = ["FAULTS", "Machine", "PlantedFault"]

Machine: TypeAlias = Literal[
    "simulation",
    "cancel everywhere",
    "state machine",
    "scheduler",
    "interruption sweep",
    "spool",
    "stores",
]


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
        "for lease in tuple(self._isolation.open):",
        "for lease in ():",
    ),
    PlantedFault(
        "a lease's bytes are not returned",
        "_scheduler/location.py",
        "        self.leased_bytes -= lease.cost\n",
        "",
    ),
    PlantedFault(
        "the byte budget leaks what is rejected",
        "_scheduler/ledger.py",
        "columns.undelivered += settlement.undelivered\n            columns.pending_bytes -= cost",
        "columns.undelivered += settlement.undelivered\n"
        "            columns.pending_bytes -= 0 if settlement.rejected else cost",
    ),
    PlantedFault(
        "both halves of a batch take the bytes of the whole",
        "_scheduler/location.py",
        "headers_before=headers, cost=cost, attempts=0",
        "headers_before=headers, attempts=0",
    ),
    PlantedFault(
        "the right half of a batch begins where the left one does",
        "_scheduler/location.py",
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
        "the spans of a location that ended long ago leave the totals",
        "_scheduler/ledger.py",
        "            del self._accounts[oldest]\n",
        "            self.total.delivered -= self._accounts.pop(oldest).delivered\n",
        first="state machine",
    ),
    PlantedFault(
        "an attempt that was cancelled is not ambiguous",
        "_runtime/delivery.py",
        "ambiguous = result is None or (isinstance(result, TryLater) and result.ambiguous)",
        "ambiguous = isinstance(result, TryLater) and result.ambiguous",
    ),
    PlantedFault(
        "an ambiguous span is counted at each attempt",
        "_scheduler/scheduler.py",
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
        "_runtime/runtime.py",
        '            self.losses.report(Loss(location, lease.batch, "undelivered"',
        '                self.losses.report(Loss(location, lease.batch, "undelivered"',
    ),
    PlantedFault(
        "on_loss is called twice for spans that the server rejected",
        "_runtime/runtime.py",
        'self.losses.report(Loss(location, lease.batch, "rejected", reason, code, count=settlement.rejected))',
        'self.losses.report(loss := Loss(location, lease.batch, "rejected", reason, code, '
        "count=settlement.rejected))\n            self.losses.report(loss)",
    ),
    PlantedFault(
        "an exception from on_loss escapes in the middle of the accounting",
        "_reporting/losses.py",
        "except BaseException as exc:",
        "except ValueError as exc:",
    ),
    # -- locations -------------------------------------------------------------------------------------------------
    PlantedFault(
        "the driver does not learn of the first span of a batch",
        "_scheduler/admission.py",
        "            if growth.full or not queued:\n",
        "            if growth.full:\n",
    ),
    PlantedFault(
        "the driver checks for work and falls asleep a moment later",
        "_runtime/driver.py",
        "        with trio.CancelScope(deadline=self._scheduler.next_at()):\n",
        "        at = self._scheduler.next_at()\n        await trio.lowlevel.checkpoint()\n"
        "        with trio.CancelScope(deadline=at):\n",
        first="state machine",
    ),
    PlantedFault(
        "the driver does not learn of a batch that became full",
        "_scheduler/admission.py",
        "            if growth.full or not queued:\n",
        "            if not queued:\n",
    ),
    PlantedFault(
        "a deadline is put off by later spans",
        "_scheduler/splitter.py",
        "        grown = OpenBatch(self.first, self.full_at, self.opened_at, self._limit)",
        "        grown = OpenBatch(self.first, self.full_at, self.opened_at + 1, self._limit)",
        first="state machine",
    ),
    PlantedFault(
        "a batch takes one span too many",
        "_scheduler/splitter.py",
        "    if number >= grown.full_at or",
        "    if number > grown.full_at or",
        first="state machine",
    ),
    PlantedFault(
        "a flush does not make the last span due: its location's watermark is off by one",
        "_scheduler/scheduler.py",
        "location.flush_watermark = flush.watch(location.name, location.account, location.flushes)\n",
        "location.flush_watermark = flush.watch(location.name, location.account, location.flushes) - 1\n",
        first="state machine",
    ),
    PlantedFault(
        "a location ends by idleness with a span in it",
        "_scheduler/location.py",
        "return not (account.queued or account.in_flight or account.spooled or self.waiting)",
        "return not (account.in_flight or account.spooled or self.waiting)",
    ),
    PlantedFault(
        "a location that is evicted for another one does not end",
        "_scheduler/scheduler.py",
        '        """Evict a location if it is live and empty. Return whether it was."""\n'
        "        self.admission.touch(location)\n",
        '        """Evict a location if it is live and empty. Return whether it was."""\n',
        first="state machine",
    ),
    # -- admission -------------------------------------------------------------------------------------------------
    PlantedFault(
        "an adder that waits for space in a full queue counts as waiting for bytes",
        "_scheduler/admission.py",
        "        return account.queued >= self._max_queued or ",
        "        return account.queued > self._max_queued or ",
        first="scheduler",
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
        "a span that is added without waiting overtakes those that wait for its location",
        "_scheduler/admission.py",
        "            or all_bytes > self._max_bytes\n            or location.waiting\n",
        "            or all_bytes > self._max_bytes\n",
        first="state machine",
    ),
    PlantedFault(
        "the space that sealing a batch frees is not given to waiting adders",
        "_scheduler/scheduler.py",
        "        while True:\n            if location.waiting or self.admission.byte_queue:\n"
        "                self.admission.serve(location, self._clock)\n",
        "        self.admission.serve(location, self._clock)\n        while True:\n",
        first="state machine",
    ),
    PlantedFault(
        "closing wakes only the first waiting adder of each location",
        "_scheduler/scheduler.py",
        "for waiter in location.waiting or ()]\n",
        "for waiter in tuple(location.waiting or ())[:1]]\n",
        first="state machine",
    ),
    PlantedFault(
        "a change that was interrupted is not finished",
        "_scheduler/admission.py",
        "        if self._unfinished is not None or self._bulk is not None:\n            self.finish()\n",
        "        if self._bulk is not None:\n            self.finish()\n",
        first="interruption sweep",
        scenario="an add",
    ),
    PlantedFault(
        "a change that was interrupted before its span was in the queue is carried out",
        "_scheduler/admission.py",
        "            if location.queue_out.statistics().current_buffer_used >= queued:\n",
        "            if queued:\n",
        first="interruption sweep",
        scenario="an add",
    ),
    PlantedFault(
        "a list of spans that was interrupted is not finished",
        "_scheduler/admission.py",
        "        if (bulk := self._bulk) is not None and bulk.is_interrupted:\n            self._finish_bulk(bulk)\n",
        "",
        first="interruption sweep",
        scenario="add_spans_nowait",
    ),
    PlantedFault(
        "a batch that becomes full is stored twice",
        "_scheduler/admission.py",
        "        if growth is not None:\n            for batch in growth.full:\n"
        "                if not location.full or location.full[-1].end < batch.end:\n"
        "                    location.full.append(batch)\n",
        "        if growth is not None:\n            for batch in growth.full:\n"
        "                location.full += [batch] * (1 + bool(location.waiting))\n",
        first="state machine",
    ),
    PlantedFault(
        "a span that is added without waiting overtakes those that wait for bytes",
        "_scheduler/admission.py",
        "            or location.waiting\n            or self.byte_queue\n        ):\n            return False\n"
        "        batch",
        "            or location.waiting\n        ):\n            return False\n        batch",
        first="state machine",
    ),
    PlantedFault(
        "an adder joins the queue for bytes only in the scheduler's next step",
        "_scheduler/admission.py",
        "            return False\n        self.update_byte_queue(location)\n        return True\n",
        "            return False\n        return True\n",
        first="state machine",
    ),
    PlantedFault(
        "a location that comes later overtakes the queue for bytes",
        "_scheduler/admission.py",
        "        others_are_first = next(iter(self.byte_queue), location) is not location\n",
        "        others_are_first = False\n",
        first="state machine",
    ),
    PlantedFault(
        "the location that was served for bytes stays first in the queue for bytes",
        "_scheduler/admission.py",
        "            self.byte_queue.pop(location, None)\n            if location.waiting and self.byte_queue:\n"
        "                # It goes to the end.\n",
        "            if location.waiting and self.byte_queue:\n                # It goes to the end.\n",
        first="state machine",
    ),
    PlantedFault(
        "the location of a withdrawn adder is not looked at",
        "_scheduler/admission.py",
        "        location = waiter.location\n        self.touch(location)\n",
        "        location = waiter.location\n",
        first="state machine",
    ),
    PlantedFault(
        "the location of an adder that joins is not looked at",
        "_scheduler/admission.py",
        "        self.touch(location)\n        # The commit: a location at which an adder waits is not evicted.\n",
        "        # The commit: a location at which an adder waits is not evicted.\n",
        first="state machine",
    ),
    PlantedFault(
        "an adder that is admitted is not told",
        "_scheduler/admission.py",
        "        self._outbox.append(Admit(waiter))\n",
        "        if len(self._outbox) < 2:\n            self._outbox.append(Admit(waiter))\n",
        first="state machine",
    ),
    PlantedFault(
        "a slot that is given back goes to no location that waits for one",
        "_scheduler/scheduler.py",
        "                case 0 if slots.free:\n                    location = next(iter(slots.queue), None)\n",
        "",
        first="state machine",
    ),
    PlantedFault(
        "a location that has ended is looked at again",
        "_scheduler/scheduler.py",
        "        if location.has_ended:\n            return\n        if self.locations.get",
        "        if self.locations.get",
        first="scheduler",
    ),
    PlantedFault(
        "a slot is kept during a backoff",
        "_scheduler/scheduler.py",
        "        self._give_back(lease)\n        if account.pending",
        "        if isinstance(result, Delivered):\n            self._give_back(lease)\n        if account.pending",
        first="state machine",
    ),
    PlantedFault(
        "max_exports is off by one",
        "_scheduler/scheduler.py",
        "self.slots = Slots(limits.max_exports)",
        "self.slots = Slots(limits.max_exports + 1)",
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
        "    return math.inf if left < _LAST_MOMENT else min(wait, left / 2)",
        "    return wait",
        first="state machine",
    ),
    PlantedFault(
        "a backoff continues when the drain begins",
        "_scheduler/scheduler.py",
        "            location.pace.cut_short(now)\n",
        "",
        first="state machine",
    ),
    # -- the scheduler's steps and orders --------------------------------------------------------------------------
    PlantedFault(
        "a location that leaves the inbox is still marked as being in it",
        "_scheduler/scheduler.py",
        "                    location.is_in_inbox = False\n",
        "",
        first="state machine",
    ),
    PlantedFault(
        "the scheduler is not woken for a location in the inbox",
        "_scheduler/admission.py",
        "        self._wake()\n        if not (location",
        "        if not (location",
        first="state machine",
    ),
    PlantedFault(
        "a location that became empty still waits for a slot",
        "_scheduler/scheduler.py",
        "        self.slots.forget(location)\n        self._leave_endpoint_queue(location)\n        self._agenda",
        "        self._agenda",
        first="simulation",
    ),
    PlantedFault(
        "a location that became empty is not put on the agenda",
        "_scheduler/scheduler.py",
        "        self._agenda.put(location, location.end_at(self.limits.location_idle_timeout))\n",
        "",
        first="scheduler",
    ),
    PlantedFault(
        "no location is made due once one has waited for its endpoint",
        "_scheduler/scheduler.py",
        "self._the_endpoint.first is None)",
        "self._the_endpoint.since == 0)",
        first="scheduler",
    ),
    PlantedFault(
        "a location is not looked at after an attempt",
        "_scheduler/scheduler.py",
        "        if account.pending > lease.count or account.spooled or location.waiting:\n",
        "        if False:\n",
        first="scheduler",
    ),
    PlantedFault(
        "a slot that is left unused is not given back",
        "_scheduler/scheduler.py",
        "        self._give_back(lease)\n        self.admission.touch(lease.location)\n",
        "        self.admission.touch(lease.location)\n",
        first="scheduler",
    ),
    PlantedFault(
        "a location is not looked at after a slot is left unused",
        "_scheduler/scheduler.py",
        "        self._give_back(lease)\n        self.admission.touch(lease.location)\n",
        "        self._give_back(lease)\n",
        first="scheduler",
    ),
    PlantedFault(
        "the space that a settled batch frees is not given to waiting adders",
        "_scheduler/scheduler.py",
        "            self._wait_to_end(location)\n        else:\n            self.admission.touch(location)\n",
        "            self._wait_to_end(location)\n",
        first="state machine",
    ),
    PlantedFault(
        "a flush does not have its locations looked at",
        "_scheduler/scheduler.py",
        "        self.admission.touch(location)\n        if location.flushes is None:\n",
        "        if location.flushes is None:\n",
        first="state machine",
    ),
    PlantedFault(
        "deliveries that wait for their next attempt take turns by their arrival, not by age",
        "_scheduler/scheduler.py",
        "insort(location.retries, lease, key=first_span)",
        "location.retries.append(lease)",
        first="state machine",
    ),
    PlantedFault(
        "an order is dropped: a delivery whose backoff ends after the drain is not told",
        "_scheduler/scheduler.py",
        "        for lease in location.retries or ():\n            self.outbox.append(Repeat(lease))\n",
        "",
        first="scheduler",
    ),
    PlantedFault(
        "an order is dropped: a flush of one location is not woken",
        "_runtime/runtime.py",
        "            if (done := self.flushes.get(order.flush)) is not None:\n",
        "            if len(self.flushes) > 1 and (done := self.flushes.get(order.flush)) is not None:\n",
        first="state machine",
    ),
    PlantedFault(
        "orders that come with the last look of a step are not carried out",
        "_runtime/driver.py",
        "                self.runtime.carry_out_orders()\n                if self._scheduler.is_over:",
        "                if self._scheduler.is_over:",
        first="state machine",
    ),
    PlantedFault(
        "a location that changed while nobody waited is not ranked again",
        "_scheduler/scheduler.py",
        "                self._agenda.put(location, self._rank(location, now))\n            return True\n",
        "                pass\n            return True\n",
        first="state machine",
    ),
    PlantedFault(
        "a location that is made due while it backs off is looked at too late",
        "_scheduler/scheduler.py",
        "            backs_off_until = location.pace.next_at()\n",
        "",
        first="spool",
    ),
    PlantedFault(
        "the emptiest locations are made due for adders that wait for bytes",
        "_scheduler/ranking.py",
        "    return -size == location.ranked_bytes and not location.has_ended",
        "    return -size < location.ranked_bytes and not location.has_ended",
        first="state machine",
    ),
    PlantedFault(
        "a location that waits for a spare slot is not looked at when one can be spared",
        "_scheduler/scheduler.py",
        "                case 3 if slots.spare_queue and self._can_spare():\n"
        "                    location = next(iter(slots.spare_queue))\n",
        "",
        first="state machine",
    ),
    PlantedFault(
        "one slot fewer is kept free for other locations",
        "_scheduler/slots.py",
        "    return min(live - exporting, half)",
        "    return min(live - exporting - 1, half)",
        first="state machine",
    ),
    PlantedFault(
        "one slot more is kept free for other locations",
        "_scheduler/slots.py",
        "    return min(live - exporting, half)",
        "    return min(live - exporting + 1, half)",
        first="state machine",
    ),
    PlantedFault(
        "a location with many exports counts as several that export",
        "_scheduler/slots.py",
        "self.exporting += not location.pace.active",
        "self.exporting += 1",
        first="state machine",
    ),
    PlantedFault(
        "an outdated entry of the agenda is taken for the location's next time",
        "_scheduler/agenda.py",
        "        if at < location.next_look_at:\n",
        "        if location.next_look_at == math.inf:\n",
        first="state machine",
    ),
    # -- flushing --------------------------------------------------------------------------------------------------
    PlantedFault(
        "a flush ends too early: it does not wait for spans in flight",
        "_scheduler/flush.py",
        "remaining = account.queued + account.in_flight + account.spooled",
        "remaining = account.queued + account.spooled",
        first="state machine",
    ),
    PlantedFault(
        "a flush waits for one location only",
        "_scheduler/flush.py",
        "return self.watches_all and not self._open",
        "return self.watches_all",
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
        "the drain does not tell the locations that are empty",
        "_scheduler/scheduler.py",
        "        self._to_close.extend(self.locations.values())\n",
        "        self._to_close.extend(one for one in self.locations.values() if one.account.pending)\n",
        first="state machine",
    ),
    PlantedFault(
        "the exporter is not closed",
        "_runtime/supervisor.py",
        "                    await self._supervise_work(task_status)\n"
        "                    await self._close_exporter()\n",
        "                    await self._supervise_work(task_status)\n",
        first="cancel everywhere",
        scenario="quiet",
    ),
    PlantedFault(
        "the body's exception leaves in a group",
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
        "_runtime/runtime.py",
        "if not total.rejected and not total.undelivered:",
        "if not total.undelivered:",
    ),
    # -- the endpoint ----------------------------------------------------------------------------------------------
    PlantedFault(
        "an endpoint that is down is probed for each location at a time",
        "_scheduler/endpoint.py",
        "return math.inf if self._probes_running else self.waits_until(location)",
        "return self.waits_until(location)",
        first="scheduler",
    ),
    PlantedFault(
        "an outage ends without a slow start",
        "_scheduler/endpoint.py",
        "            self._allowed = 1\n",
        "            self._allowed = math.inf\n",
        first="scheduler",
    ),
    PlantedFault(
        "an answer to an attempt that is no probe does not end an outage",
        "_scheduler/endpoint.py",
        "        if sign is Sign.UP:\n",
        "        if sign is Sign.UP and not (self.is_up or is_probe):\n            return False\n"
        "        if sign is Sign.UP:\n",
        first="scheduler",
    ),
    PlantedFault(
        "a 429 counts as a failure of the endpoint",
        "_scheduler/endpoint.py",
        "_OVERLOADED = (HTTPStatus.BAD_GATEWAY, ",
        "_OVERLOADED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, ",
        first="scheduler",
    ),
    PlantedFault(
        "a failure of an attempt that began before the last answer counts",
        "_scheduler/endpoint.py",
        "if sign is Sign.NONE or began_after != self.answers:",
        "if sign is Sign.NONE:",
        first="scheduler",
    ),
    PlantedFault(
        "no location is looked at when a probe ends",
        "_scheduler/scheduler.py",
        "        self._touch_first(lease.location.endpoint)\n",
        "",
        first="scheduler",
    ),
    PlantedFault(
        "no location is looked at when the first that waited for the endpoint has left",
        "_scheduler/scheduler.py",
        "        if location.endpoint.leave(location):\n            self._touch_first(location.endpoint)\n",
        "        location.endpoint.leave(location)\n",
        first="scheduler",
    ),
    PlantedFault(
        "the end of a probe is not counted",
        "_scheduler/endpoint.py",
        "        self._probes_running -= is_probe\n",
        "",
        first="scheduler",
    ),
    PlantedFault(
        "the wait for the next probe is not cut in the drain",
        "_scheduler/scheduler.py",
        "            location.endpoint.cut_short(now)\n",
        "",
        first="scheduler",
    ),
    PlantedFault(
        "an endpoint counts a location that comes back as another one",
        "_scheduler/scheduler.py",
        "        account = self.ledger.open(name)\n",
        "        account = self.ledger.open(name)\n        account.failed_after = -1\n",
        first="scheduler",
    ),
    # -- settling after a backoff ----------------------------------------------------------------------------------
    PlantedFault(
        "a location that settles after a backoff holds batches that are due in a flush",
        "_scheduler/location.py",
        "            return opened_at\n",
        "            return max(opened_at, self.pace.holds_until(opened_at))\n",
        first="scheduler",
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
        '"ConnectTimeout", "ProxyError")',
        '"ConnectTimeout", "ProxyError", "ReadError")',
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
    # -- the spool ------------------------------------------------------------------------------------------------
    PlantedFault(
        "spans may be sent before they are committed",
        "_scheduler/spooling.py",
        "            leases.append(self._seal(location))\n        location.held.extend(leases)\n",
        "            leases.append(self._seal(location))\n            leases[-1].may_go = True\n"
        "        location.held.extend(leases)\n        location.update_ready()\n",
        first="spool",
    ),
    PlantedFault(
        "a record is forgotten when it is read",
        "_scheduler/spooling.py",
        "        self.ledger.spool(location.account, -len(spans), -cost)\n",
        "        self.ledger.spool(location.account, -len(spans), -cost)\n"
        "        self.settle([piece.record.token for piece in pieces])\n",
    ),
    PlantedFault(
        "a record is forgotten with the first of its spans",
        "_scheduler/spooling.py",
        "for piece in pieces if not piece.record.left]",
        "for piece in pieces if piece.record.left < piece.record.count]",
    ),
    PlantedFault(
        "a record is forgotten before its dead letters are written",
        "_scheduler/spooling.py",
        "        self.outbox.append(Bury(lease.batch, reason, tokens))\n",
        "        self.settle(tokens)\n        self.outbox.append(Bury(lease.batch, reason, tokens))\n",
        first="spool",
    ),
    PlantedFault(
        "new spans are sent before recovered ones",
        "_scheduler/records.py",
        "        return self.first < other.first\n",
        "        return abs(self.first) < abs(other.first)\n",
        first="spool",
    ),
    PlantedFault(
        "a batch that comes back to the spool goes to the end",
        "_scheduler/records.py",
        "        return self.first < other.first\n",
        "        return id(self) < id(other)\n",
        first="spool",
    ),
    PlantedFault(
        "what is in memory is sent before what is on disk",
        "_scheduler/spooling.py",
        "        if location.retries or not location.shelf:\n",
        "        if location.retries or location.ready or not location.shelf:\n",
        first="spool",
    ),
    PlantedFault(
        "nothing is committed in the drain's reserve",
        "_scheduler/spooling.py",
        "        more = super().hand_back(reason)\n        self._go_on()\n",
        "        more = super().hand_back(reason)\n",
        first="spool",
    ),
    PlantedFault(
        "queues are not committed when the drain begins",
        "_scheduler/spooling.py",
        "bool(location.full or location.waiting or self.draining or is_flushed)",
        "bool(location.full or location.waiting or is_flushed)",
        first="spool",
    ),
    PlantedFault(
        "a commit that was cancelled is not counted as ambiguous",
        "_runtime/spooler.py",
        "full=is_full, ambiguous=is_unknown)",
        "full=is_full, ambiguous=isinstance(error, _NoAnswer))",
        first="spool",
    ),
    PlantedFault(
        "sync waits only for the commit under way",
        "_scheduler/spooling.py",
        "            self._line.update(dict.fromkeys(self._new_syncs, now))\n            self._new_syncs.clear()\n",
        "            if self._commit is not None:\n                self._commit.syncs += self._new_syncs\n"
        "            else:\n                self._line.update(dict.fromkeys(self._new_syncs, now))\n"
        "            self._new_syncs.clear()\n",
        first="spool",
    ),
    PlantedFault(
        "two commits are under way",
        "_scheduler/spooling.py",
        "        if self._commit is not None or not self._line:\n",
        "        if not self._line:\n",
        first="spool",
    ),
    PlantedFault(
        "a disk that fails stops deliveries",
        "_scheduler/spooling.py",
        "            lease.may_go = not is_dropping\n",
        "            lease.may_go = ambiguous\n",
        first="spool",
    ),
    PlantedFault(
        "what could not be read is not read again",
        "_scheduler/spooling.py",
        "        self._put_back(location, page.pieces)\n",
        "",
    ),
    PlantedFault(
        "the slot of a batch that could not be read is not given back",
        "_scheduler/spooling.py",
        "        self.slots.give_back(location)\n        location.endpoint.end",
        "        location.endpoint.end",
    ),
    PlantedFault(
        "spans that leave memory keep their bytes",
        "_scheduler/ledger.py",
        "            columns.spooled += count\n            columns.pending_bytes -= cost\n",
        "            columns.spooled += count\n",
    ),
    PlantedFault(
        "spans of a damaged record are not accounted for",
        "_scheduler/spooling.py",
        "        self.ledger.lose(account, len(piece))\n",
        "",
    ),
    PlantedFault(
        "a span is counted as ambiguous again after it was in the spool",
        "_scheduler/spooling.py",
        "            piece.ambiguous = lease.ambiguous\n",
        "            piece.ambiguous = False\n",
    ),
    PlantedFault(
        "a flush waits for recovered spans",
        "_scheduler/spooling.py",
        "        own = account.pending + account.spooled - account.recovered_left\n",
        "        own = account.pending + account.spooled\n",
        first="spool",
    ),
    PlantedFault(
        "a flush does not wait for spans that come after dropped ones",
        "_scheduler/spooling.py",
        "            account.recovered_left -= len(piece)\n",
        "            pass\n",
        first="spool",
    ),
    PlantedFault(
        "a sync does not wait for spans whose delivery gives up during its commit",
        "_scheduler/spooling.py",
        "            while syncs:\n                self._put_first(syncs.pop(), now)\n",
        "",
        first="spool",
    ),
    PlantedFault(
        "a second Ctrl-C waits for the disk",
        "_runtime/supervisor.py",
        "            self.spooler.stop()\n",
        "            self.spooler.end_recovery()\n",
        first="spool",
    ),
    PlantedFault(
        "recovered locations may take all live ones",
        "_scheduler/spooling.py",
        "self.guests < max(1, self.limits.max_locations // 2)",
        "self.guests < self.limits.max_locations",
        first="spool",
    ),
    PlantedFault(
        "recovered locations take the place of others",
        "_scheduler/scheduler.py",
        "limit + self.guests:",
        "limit:",
        first="spool",
    ),
    PlantedFault(
        "settled records are never forgotten alone",
        "_scheduler/spooling.py",
        "        if self._settle_at <= now and not self._is_settling:\n",
        "        if self._settle_at < 0:\n",
        first="spool",
    ),
    PlantedFault(
        "what is settled last is not forgotten when the batcher is left",
        "_runtime/spooler.py",
        "                    await self.store.settle(tokens)\n",
        "                    pass\n",
        first="spool",
    ),
    PlantedFault(
        "a sync does not wait for the queue behind a commit that is tried again",
        "_scheduler/spooling.py",
        "                self._put_first(one, since)\n                break\n",
        "                self._line[one] = since\n                break\n",
        first="spool",
    ),
    PlantedFault(
        "a sync fails if the spool is full",
        "_scheduler/spooling.py",
        "        self._error = None if self._is_full else error\n",
        "        self._is_full, self._error = False, error\n",
        first="spool",
    ),
    PlantedFault(
        "a full spool loses what it cannot take",
        "_scheduler/spooling.py",
        "        elif not lease.pieces and self._is_full and not is_leaving:\n",
        "        elif False:\n",
        first="spool",
    ),
    PlantedFault(
        "only the queue of one location counts towards 256 KiB",
        "_scheduler/spooling.py",
        " or total.pending_bytes - self.ledger.leased_bytes >= _BYTES",
        "",
        first="spool",
    ),
    PlantedFault(
        "other spans of a damaged record count as spooled",
        "_scheduler/spooling.py",
        "        for piece in [piece for piece in shelf if piece.record.is_damaged]:\n",
        "        for piece in [piece for piece in shelf if piece.record.is_damaged][:1]:\n",
        first="spool",
    ),
    # -- the spool's store -----------------------------------------------------------------------------------------
    PlantedFault(
        "records are committed though writing them failed",
        "_spool/disk.py",
        "                self._settle()\n            raise\n        return committed",
        "                self._settle()\n        return committed",
        first="stores",
    ),
    PlantedFault(
        "what a failed commit has written stays in the file",
        "_spool/disk.py",
        "            # Some of them may be complete in the file.\n"
        "            self._unsettled.extend(record.token for record in committed)\n",
        "",
        first="stores",
    ),
    PlantedFault(
        "a commit of several pieces is not undone if one of them fails",
        "_spool/disk.py",
        "            # None of them is committed if one is not.\n            self._undo(committed)\n",
        "",
        first="stores",
    ),
    PlantedFault(
        'durability="power" does not sync the file',
        "_spool/disk.py",
        "            segment.appending.sync()\n",
        "            pass\n",
        first="stores",
    ),
    PlantedFault(
        "records are appended to a segment whose sync failed",
        "_spool/disk.py",
        "        segment.slots = SLOTS\n        segment.appending",
        "        segment.appending",
        first="stores",
    ),
    PlantedFault(
        "the checksum of spans is not looked at",
        "_spool/log.py",
        "    return crc32(spans) == header.spans_crc and ",
        "    return ",
        first="stores",
    ),
    PlantedFault(
        "the checksum of a record's header is not looked at",
        "_spool/log.py",
        "== _BEGIN.pack(marker, crc32(fixed)) and",
        "== marker + data[at + 8 : at + _BEGIN.size] and",
        first="stores",
    ),
    PlantedFault(
        "the lock is not taken",
        "_spool/files.py",
        "            fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        first="stores",
    ),
    PlantedFault(
        "two processes take over the same files",
        "_spool/files.py",
        "fcntl.LOCK_EX | ",
        "fcntl.LOCK_SH | ",
        first="stores",
    ),
    PlantedFault(
        "a segment is removed while records in it are not settled",
        "_spool/disk.py",
        "        if segment.live or not segment.is_known:\n",
        "        if not segment.is_known:\n",
        first="stores",
    ),
    PlantedFault(
        "a segment is removed before all of its records were found",
        "_spool/disk.py",
        "                        segment.is_known = False\n                        found",
        "                        found",
        first="stores",
    ),
    PlantedFault(
        "the space for settlements is not reserved",
        "_spool/disk.py",
        "            file.write(segment.head.pack(), 0)\n",
        "            begin = segment.head.pack()\n            file.truncate(len(begin))\n"
        "            file.write(begin[:SLOTS_AT], 0)\n            file.write(begin[SLOTS_AT + SLOT * SLOTS :], "
        "SLOTS_AT + SLOT * SLOTS)\n",
        first="stores",
    ),
    PlantedFault(
        "records that several processes have left are not in order",
        "_spool/disk.py",
        "        found.sort(key=lambda segment: segment.head.created)\n",
        "",
        first="stores",
    ),
    PlantedFault(
        "what could not be settled is forgotten",
        "_spool/disk.py",
        "        for number, slots in tuple(self._to_settle.items()):\n",
        "        for number, slots in tuple(self._to_settle.items()):\n            self._to_settle[number] = set()\n",
        first="stores",
    ),
    PlantedFault(
        "spans for one endpoint are sent to another",
        "_spool/disk.py",
        " and head.endpoint != self._endpoint:",
        " and False:",
        first="stores",
    ),
    PlantedFault(
        "a file is touched after the store was abandoned",
        "_spool/disk.py",
        "            if job is None or not self._is_open:\n",
        "            if job is None:\n",
        first="stores",
    ),
)
