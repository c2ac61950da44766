"""The settings of a spool."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs.validators import optional

from .._settings.policies import MIB, _count, _finite, _seconds
from .._spans.checks import shown


def _one_of(*allowed: str) -> Any:
    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in allowed:
            name = f"{type(instance).__name__}.{attribute.name}"
            raise ValueError(f"{name} is {shown(value)}; it must be {' or '.join(map(repr, allowed))}")

    return check


def _directory(value: str | os.PathLike[str]) -> Path:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    # Callers without a type checker may give anything.
    if not isinstance(path, str):
        raise TypeError(f"Spool.directory is {shown(value)}; it must be a str or a path")
    if not path or "\0" in path:
        raise ValueError(f"Spool.directory is {shown(value)}; it must be the path of a directory")
    return Path(path)


@attrs.frozen
class Spool:
    """A directory in which a batcher keeps its spans until they are accounted for.

    The spans, prompts included, lie there in plain text. The batcher makes a directory of mode 0700 inside, which all
    batchers with the same directory and the same endpoint may share. It must be on a local file system.

    Attributes:
        directory: The path of the directory. It is made if only its last part is missing.
        durability: What committed spans survive: ``"process"`` is the end of the process, ``kill -9`` included;
            ``"power"`` also a power failure, at the price of a sync for each commit.
        max_bytes: The most bytes of records.
        max_age: Seconds after which a span is dropped, and reported as a loss; None for no limit.
        commit_interval: Seconds from the first span that is not committed until a commit begins.
        when_full: ``"wait"``: adding spans waits for space, or raises `trio.WouldBlock`. ``"drop_oldest"``: the oldest
            records are dropped, and reported as losses.
    """

    directory: Path = attrs.field(converter=_directory)
    durability: Literal["process", "power"] = attrs.field(
        default="process", kw_only=True, validator=_one_of("process", "power")
    )
    max_bytes: int = attrs.field(default=1024 * MIB, kw_only=True, validator=_count)
    max_age: float | None = attrs.field(default=None, kw_only=True, validator=optional(_seconds))
    commit_interval: float = attrs.field(default=0.2, kw_only=True, validator=_finite)
    when_full: Literal["wait", "drop_oldest"] = attrs.field(
        default="wait", kw_only=True, validator=_one_of("wait", "drop_oldest")
    )
