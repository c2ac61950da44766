"""The model of many clients: it agrees with real batchers, and the package's rules meet the goals in it."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from collections.abc import Callable

import attrs
import pytest

from tests.herd import model, real
from tests.herd.goals import missed_goals
from tests.herd.picture import draw
from tests.herd.policies import OURS, POLICIES
from tests.herd.server import Figures
from tests.herd.setting import Setting
from tests.support.long_tests import run_long
from trio_spanbatch import BatchPolicy, Limits

# Few spans, as each of them costs time with real batchers.
SMALL = Setting(
    20, rate=0.5, policy=BatchPolicy(max_spans=32), limits=Limits(max_queued_spans=128), outage=150.0, after=60.0
)


@pytest.mark.parametrize(("clients", "locations"), [(20, 1), (8, 3)])
def test_the_model_agrees_with_real_batchers(clients: int, locations: int, caplog: pytest.LogCaptureFixture) -> None:
    """The attempts and deliveries within 3 %, and the drain within half a second, in each run."""
    caplog.set_level(logging.CRITICAL)
    # There are no 503s. With them, a difference of a microsecond decides which client gets one.
    setting = attrs.evolve(SMALL, clients=clients, locations=locations, waiting=float(2 * locations))
    for seed in (1, 2, 3):
        modelled, measured = model.run(setting, OURS, seed), real.run(setting, seed)
        assert modelled.attempts == pytest.approx(measured.attempts, rel=0.03)
        assert sum(modelled.offered) == pytest.approx(sum(measured.offered), rel=0.03)
        assert sum(modelled.delivered) == pytest.approx(sum(measured.delivered), rel=0.03)
        for part in (0.5, 0.99):
            assert modelled.drained_within(part) == pytest.approx(measured.drained_within(part), abs=0.5)
        assert modelled.lost == measured.lost == 0
        assert modelled.rejected == measured.rejected == 0


def test_the_model_agrees_with_real_batchers_of_an_overloaded_server(caplog: pytest.LogCaptureFixture) -> None:
    """Over five seeds together: the attempts and deliveries within 5 %, the 503s and the drain within 20 %."""
    caplog.set_level(logging.CRITICAL)
    setting = attrs.evolve(SMALL, capacity=1.2)
    modelled = [model.run(setting, OURS, seed) for seed in range(5)]
    measured = [real.run(setting, seed) for seed in range(5)]

    def total(count: Callable[[Figures], float], within: float) -> None:
        assert sum(map(count, modelled)) == pytest.approx(sum(map(count, measured)), rel=within)

    total(lambda figures: figures.attempts, 0.05)
    total(lambda figures: sum(figures.offered), 0.05)
    total(lambda figures: sum(figures.delivered), 0.05)
    total(lambda figures: figures.rejected, 0.2)
    total(lambda figures: figures.drained_within(0.5), 0.2)
    total(lambda figures: figures.drained_within(0.8), 0.2)


def test_after_an_outage_a_server_with_room_is_not_overloaded() -> None:
    # The bursts of few clients are larger, in relation to the capacity, so more of their requests may wait.
    figures = model.run(Setting(300, waiting=0.5), OURS)
    assert missed_goals(2.2, figures) == []
    assert figures.lost == 0


@pytest.mark.long
def test_after_an_outage_a_server_of_many_clients_is_not_overloaded() -> None:
    # In a process of its own: measuring its coverage would take minutes.
    run_long("-c", "from tests.herd import test_herd; test_herd.check_many_clients()")


def check_many_clients() -> None:
    """Check the goals with so many clients that the server's queue is as long in proportion as with 10,000."""
    for capacity in (2.2, 1.2):
        figures = model.run(Setting(5_000, capacity), OURS)
        assert missed_goals(capacity, figures) == []
        assert capacity < 2 or figures.lost == 0


def test_after_an_outage_a_server_with_little_room_is_overloaded_only_for_a_short_time() -> None:
    figures = model.run(Setting(1_000, 1.2), OURS)
    assert missed_goals(1.2, figures) == []


def test_a_retry_every_second_never_lets_a_server_recover() -> None:
    setting = Setting(100)
    figures = model.run(setting, POLICIES[-1])
    assert figures.wasted_part > 0.9
    assert sum(figures.delivered[-32:-2]) < 0.5 * 30 * setting.clients * setting.rate


def test_a_missed_goal_is_told() -> None:
    figures = Figures(rejected=3, wasted=1.0, worked=9.0, drained=[1.0, 31.0])
    assert missed_goals(2.2, figures) == [
        "2.2 times the capacity: 99 % drained after 31.0 s, not within 30 s",
        "2.2 times the capacity: 3 answers were 503",
        "2.2 times the capacity: 10.00% of the server's time was wasted",
    ]


def test_the_picture_has_a_line_for_each_policy_and_capacity() -> None:
    setting = Setting(2, after=30.0)
    runs = {(capacity, policy): (setting, model.run(setting, OURS)) for capacity in (2.2, 1.2) for policy in "ab"}
    assert (
        len([path for path in ET.fromstring(draw(runs)).iter() if path.get("class") in {"curve", "curve first"}]) == 10
    )
