"""Fixtures for tests of programs that send spans, around `trio_spanbatch.testing`.

pytest imports this module in each run, so it imports the rest of the package only when a fixture is used.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ._batcher import SpanBatcher
    from .testing import ExportedSpans, OTLPReceiver, exporting_to

__all__ = ["exported_spans", "otlp_receiver", "span_batcher"]

_MARKER = "span_batcher"
_OPTIONS = ("allow_losses", "allow_unused_answers")
_HAS_PASSED = pytest.StashKey[bool]()

# The location of a request of `span_batcher`, and of the exporters of `OTLPReceiver.exporter`.
_LOCATION_HEADER = "X-Location"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    arguments = ", ".join(f"{option}=False" for option in _OPTIONS)
    config.addinivalue_line(
        "markers",
        f"{_MARKER}({arguments}): whether the test passes though spans were lost (pending, undelivered or rejected), "
        "and though the otlp_receiver has answers left",
    )


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Remember whether the test passed."""
    if call.when == "call":
        item.stash[_HAS_PASSED] = call.excinfo is None


def _allowed(node: pytest.Item) -> dict[str, bool]:
    """Return the marker's options; those of a function override those of its class and module."""
    options = dict.fromkeys(_OPTIONS, False)
    for mark in reversed(list(node.iter_markers(_MARKER))):
        for name, value in [*((repr(argument), None) for argument in mark.args), *mark.kwargs.items()]:
            if name not in _OPTIONS or not isinstance(value, bool):
                given = f"{name}={value!r}" if name in mark.kwargs else name
                usage = " and ".join(f"{option}=True" for option in _OPTIONS)
                pytest.fail(f"@pytest.mark.{_MARKER} has the argument {given}; it takes {usage}", pytrace=False)
            options[name] = value
    return options


@pytest.fixture
def _span_kit(request: pytest.FixtureRequest) -> Iterator[tuple[OTLPReceiver, exporting_to]]:
    from .testing import OTLPReceiver, exporting_to

    allowed = _allowed(request.node)
    receiver = OTLPReceiver(listen=False, location_header=_LOCATION_HEADER)
    with receiver, exporting_to(receiver.exporter) as programs:
        yield receiver, programs
    if not request.node.stash.get(_HAS_PASSED, False):
        return
    problems: list[str] = []
    for option, check in zip(_OPTIONS, (programs.assert_no_losses, receiver.assert_answers_used), strict=True):
        try:
            if not allowed[option]:
                check()
        except AssertionError as error:
            problems.append(f"{error} (allowed by @pytest.mark.{_MARKER}({option}=True))")
    if problems:
        pytest.fail("; ".join(problems), pytrace=False)


@pytest.fixture
def otlp_receiver(_span_kit: tuple[OTLPReceiver, exporting_to]) -> OTLPReceiver:
    """An `OTLPReceiver` in memory, to which each ``SpanBatcher()`` sends that is made without an exporter."""
    return _span_kit[0]


@pytest.fixture
def exported_spans(otlp_receiver: OTLPReceiver) -> ExportedSpans:
    """The spans that were delivered to the `otlp_receiver`, as plain data."""
    from .testing import ExportedSpans

    return ExportedSpans(otlp_receiver)


@pytest.fixture
async def _entered_batcher(_span_kit: tuple[OTLPReceiver, exporting_to]) -> AsyncIterator[SpanBatcher]:
    import trio
    import trio.testing

    async with _new_batcher(*_span_kit) as batcher:
        try:
            yield batcher
        finally:
            # The drain may have to wait, and the test no longer moves its clock.
            if isinstance(clock := trio.lowlevel.current_clock(), trio.testing.MockClock):
                clock.autojump_threshold = 0.0


@pytest.fixture
def span_batcher(request: pytest.FixtureRequest, _span_kit: tuple[OTLPReceiver, exporting_to]) -> SpanBatcher:
    """A `SpanBatcher` that sends to the `otlp_receiver`, entered in a test on trio; others enter it themselves."""
    is_on_trio = request.node.get_closest_marker("trio") is not None or _is_on_anyios_trio(request)
    batcher: SpanBatcher = request.getfixturevalue("_entered_batcher") if is_on_trio else _new_batcher(*_span_kit)
    return batcher


def _is_on_anyios_trio(request: pytest.FixtureRequest) -> bool:
    if "anyio_backend" not in request.fixturenames:
        return False
    backend = request.getfixturevalue("anyio_backend")
    return (backend if isinstance(backend, str) else backend[0]) == "trio"


def _new_batcher(receiver: OTLPReceiver, programs: exporting_to) -> SpanBatcher:
    from ._batcher import SpanBatcher

    # The same backoffs in each run.
    batcher = SpanBatcher(receiver.exporter(), rng=random.Random(0))
    programs.batchers.append(batcher)
    return batcher
