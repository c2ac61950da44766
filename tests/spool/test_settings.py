"""The settings of a spool."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs
import pytest

from trio_spanbatch import Spool


def test_the_defaults() -> None:
    assert attrs.asdict(Spool("/var/lib/agents/spool")) == {
        "directory": Path("/var/lib/agents/spool"),
        "durability": "process",
        "max_bytes": 1024**3,
        "max_age": None,
        "commit_interval": 0.2,
        "when_full": "wait",
    }


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"durability": "disk"}, ValueError, "Spool.durability is 'disk'; it must be 'process' or 'power'"),
        ({"when_full": None}, ValueError, "Spool.when_full is None; it must be 'wait' or 'drop_oldest'"),
        ({"max_bytes": 0}, ValueError, "Spool.max_bytes is 0; it must be at least 1"),
        ({"max_bytes": 1.5}, TypeError, "Spool.max_bytes is 1.5; it must be an int"),
        ({"max_age": 0}, ValueError, "Spool.max_age is 0; it must be above 0"),
        ({"max_age": "1"}, TypeError, "Spool.max_age is '1'; it must be a number"),
        ({"commit_interval": -1}, ValueError, "Spool.commit_interval is -1; it must be above 0"),
        ({"commit_interval": math.inf}, ValueError, "Spool.commit_interval is inf; it must be above 0 and finite"),
        ({"directory": ""}, ValueError, "Spool.directory is ''; it must be the path of a directory"),
        ({"directory": "a\0b"}, ValueError, "it must be the path of a directory"),
        ({"directory": b"bytes"}, TypeError, "Spool.directory is b'bytes'; it must be a str or a path"),
        ({"directory": 1}, TypeError, "Spool.directory is 1; it must be a str or a path"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Spool(**{"directory": "spool", **settings})
    assert message in str(caught.value)


def test_the_directory_may_be_a_path() -> None:
    assert Spool(Path("spool")).directory == Path("spool")
    assert Spool("spool", max_age=math.inf, when_full="drop_oldest", durability="power").max_age == math.inf
