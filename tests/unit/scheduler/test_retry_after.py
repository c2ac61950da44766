"""How long a location waits if its server has said so."""

from __future__ import annotations

import math
import random

import pytest

from trio_spanbatch import RetryPolicy
from trio_spanbatch._scheduler.ledger import Account
from trio_spanbatch._scheduler.pace import Pace


@pytest.mark.parametrize("after", [0.5, 10.0, 500.0])
def test_a_retry_after_is_lengthened_by_up_to_a_tenth_and_never_shortened(after: float) -> None:
    waits = []
    for seed in range(100):
        pace = Pace(RetryPolicy(), random.Random(seed), Account(), 4)
        pace.back_off(0.0, after, math.inf)
        waits.append(pace.retry_at)
    assert after <= min(waits) < after * 1.01
    assert after * 1.09 < max(waits) <= after * 1.1
