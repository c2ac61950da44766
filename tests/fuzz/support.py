"""Helpers for the fuzzing tests: hostile objects, damaged bytes, and a check for memory growth.

Like other property tests, these repeat the same examples in each run. To fuzz for longer, with new examples each time
(a failure prints a line, ``@reproduce_failure``, that repeats it)::

    FUZZ_FACTOR=50 python -m pytest tests/fuzz
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

# Multiplies the number of examples of each test.
_FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))

# Bytes by which memory may grow during the rounds: a resized table, a cached string. A leak of one pointer for each
# input of each round would exceed it.
_NOISE = 4 * 1024
_ROUNDS = 20


def fuzz(max_examples: int, *, shrink: bool = True) -> settings:
    """Return the settings of a test; if ``FUZZ_FACTOR`` is set, each run has different examples.

    Args:
        max_examples: The number of examples.
        shrink: Whether to shrink a failing example. That takes minutes if one example takes long.
    """
    return settings(
        phases=[Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if shrink else [])],
        max_examples=max_examples * _FACTOR,
        derandomize=_FACTOR == 1,
        print_blob=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def assert_no_growth(run: Callable[[], object]) -> None:
    """Fail if each call of ``run`` leaks memory.

    Memory that the first calls allocate once does not count. Growth is measured up to six times: a leak occurs each
    time, while one of Python's tables grows only now and then, and attribute names are cached only once.
    """

    async def run_in_task() -> None:
        await trio.lowlevel.checkpoint()
        run()

    trio.run(assert_no_growth_in_task, run_in_task)


async def assert_no_growth_in_task(run: Callable[[], Awaitable[None]]) -> None:
    """Do the same as `assert_no_growth` with an async function."""
    await run()
    tracemalloc.start()
    try:
        await run()
        growths: list[int] = []
        while len(growths) < 6 and (not growths or growths[-1] > _NOISE):
            growths.append(await _growth(run))
        if growths[-1] > _NOISE:
            pytest.fail(f"bytes more after {_ROUNDS} rounds, each time: {growths}\n{await _what_grows(run)}")
    finally:
        tracemalloc.stop()


async def _growth(run: Callable[[], Awaitable[None]]) -> int:
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(_ROUNDS):
        await run()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


async def _what_grows(run: Callable[[], Awaitable[None]]) -> str:
    before = tracemalloc.take_snapshot()
    await _growth(run)
    return "\n".join(map(str, tracemalloc.take_snapshot().compare_to(before, "lineno")[:8]))


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Fail if anything is logged. This is not a fixture because it is needed for each example."""
    handler = _Records()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.messages == []


# -- hostile objects -------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False, repr=False)
class Boxed:
    """A wrapper of a hostile object that protects Hypothesis, which calls ``repr`` to report a failure."""

    content: Any
    description: str

    def __repr__(self) -> str:
        return f"<{self.description}>"


class StrRaises(Exception):
    """An exception that fails while it is being reported."""

    def __str__(self) -> str:
        raise ValueError("no str of this exception")

    __repr__ = __str__


class AttributeErrorWhoseStrRaises(StrRaises, AttributeError):
    pass


_ERRORS: tuple[Callable[[], Exception], ...] = (
    *(kind for kind in (ValueError, TypeError, AttributeError, StopIteration, RecursionError, MemoryError)),
    *(kind for kind in (RuntimeError, OSError, AssertionError, ZeroDivisionError, StopAsyncIteration)),
    StrRaises,
    AttributeErrorWhoseStrRaises,
    lambda: KeyError("x" * 100_000),
    lambda: AttributeError("y" * 100_000),
    lambda: UnicodeEncodeError("utf-8", "\ud800", 0, 1, "lone surrogate"),
    lambda: ExceptionGroup("several", [ValueError("one"), StrRaises()]),
)

_METHODS = (
    *("__len__", "__iter__", "__getitem__", "__contains__", "__str__", "__repr__", "__hash__", "__bool__", "__eq__"),
    *("__lt__", "__le__", "__gt__", "__ge__", "__int__", "__float__", "__index__", "__bytes__", "__format__"),
    *(
        "__getattr__",
        "__getattribute__",
        "__class__",
        "__and__",
        "__neg__",
        "__length_hint__",
        "__copy__",
        "__reduce__",
    ),
    *("items", "values", "keys", "get", "copy", "encode", "to_bytes", "is_integer", "_name_", "_immutable", "real"),
)
_PROPERTIES = frozenset(("__class__", "_name_", "_immutable", "real"))


class _PlainMapping(Mapping[Any, Any]):
    def __getitem__(self, key: object) -> object:
        values: dict[object, object] = {"key": 1, "other": "text"}
        return values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("key", "other"))

    def __len__(self) -> int:
        return 2


class _PlainSequence(Sequence[Any]):
    def __getitem__(self, index: Any) -> Any:
        return (1, "two")[index]

    def __len__(self) -> int:
        return 2


class _NumberLike:
    """A number that is not of a builtin type, like NumPy's scalars."""

    def __int__(self) -> int:
        return 5

    def __float__(self) -> float:
        return 5.5


class _IntegerLike(_NumberLike):
    pass


class _RealLike(_NumberLike):
    pass


Integral.register(_IntegerLike)
Real.register(_RealLike)

# Each type, with arguments for its instances.
_BASES: tuple[tuple[type, tuple[object, ...]], ...] = (
    (object, ()),
    (_PlainMapping, ()),
    (_PlainSequence, ()),
    (_IntegerLike, ()),
    (_RealLike, ()),
    (str, ("http.method",)),
    (str, ("lone \udfff",)),
    (int, (7,)),
    (int, (-7,)),
    (int, (2**130,)),
    (float, (1.5,)),
    (float, (float("nan"),)),
    (bytes, (b"bytes",)),
    (bytearray, (b"bytes",)),
    (list, ([1, "two"],)),
    (tuple, ([1, "two"],)),
    (dict, ({"key": 1},)),
    (set, ([1],)),
)

# Names that ``reprlib`` takes for a builtin type.
_TYPE_NAMES = ("Hostile", "Hostile" * 20, "dict", "list", "set", "str", "int", "array")

_ODD_RESULTS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**70, 1.5, float("nan"), "", "text", "\ud800", b"", (), [1, 2], {}, {"a": 1}, object),
    *([("a", 1)], [("a",)], [(1, 2, 3)], {"b": object()}, NotImplemented, ...),
)


def _raiser(make: Callable[[], Exception]) -> Callable[..., Any]:
    def method(*_arguments: object, **_options: object) -> Any:
        raise make()

    return method


def _giver(result: object) -> Callable[..., Any]:
    return lambda *_arguments, **_options: result


def _endless(*_arguments: object) -> Iterator[Any]:
    return itertools.repeat("more")


class TextOfItsOwn(str):
    """A subclass of str, which ``__str__`` may return and ``str()`` then returns unchanged."""

    __slots__ = ()


class Liar(int):
    """A number that is in every range."""

    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__


_BEHAVIOURS: st.SearchStrategy[Callable[..., Any]] = st.one_of(
    st.sampled_from(_ERRORS).map(_raiser),
    st.sampled_from(_ODD_RESULTS).map(_giver),
    st.just(_giver(TextOfItsOwn("text"))),
    st.just(lambda self, *_rest: self),
)


def _nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = "core"
    for _ in range(depth):
        value = wrap(value)
    return value


def _shared(depth: int) -> list[Any]:
    """A list that contains the same list twice, and so on: small, but endless to write out."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


def _own_parts() -> list[Any]:
    """Containers that contain themselves."""
    one: list[Any] = [1]
    one.append(one)
    two: dict[str, Any] = {}
    two["self"] = (two,)
    three: list[Any] = [{}]
    three[0]["up"] = three
    return [one, two, three]


@st.composite
def hostile_objects(draw: st.DrawFn) -> Any:
    """An instance of a type with one to three methods that raise or return invalid values."""
    base, arguments = draw(st.sampled_from(_BASES))
    names = draw(st.lists(st.sampled_from(_METHODS), min_size=1, max_size=3, unique=True))
    methods: dict[str, Any] = {name: draw(_BEHAVIOURS) for name in names}
    type_name = draw(st.sampled_from(_TYPE_NAMES))
    if base in (list, tuple, _PlainSequence) and draw(st.booleans()):
        methods["__iter__"] = _endless
    members = {name: property(method) if name in _PROPERTIES else method for name, method in methods.items()}
    if "__eq__" in members:
        members.setdefault("__hash__", _giver(1))
    return type(type_name, (base,), members)(*arguments)


GARBAGE: st.SearchStrategy[Any] = st.one_of(
    hostile_objects(),
    st.sampled_from(_ODD_RESULTS),
    st.sampled_from([-5, 2**40, 2**90]).map(Liar),
    st.sampled_from(
        [10**5000, -(10**5000), float("inf"), 10**40, "x" * 100_000, b"\xff" * 1000, range(5), memoryview(b"m")]
    ),
    st.builds(
        _nested, st.sampled_from([10, 31, 47, 48, 100, 5000]), st.sampled_from([lambda v: [v], lambda v: {"k": v}])
    ),
    st.builds(_shared, st.sampled_from([3, 40])),
    st.sampled_from(range(3)).map(lambda index: _own_parts()[index]),
    st.builds(itertools.count),
)


# -- damaged bytes ---------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, data: bytes, *, splices: Sequence[bytes] = (b"",)) -> bytes:
    """``data`` with up to four pieces removed, doubled, overwritten or inserted."""
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        new = draw(st.binary(max_size=8) | st.sampled_from(splices) | st.just(2 * data[start:end]))
        data = data[:start] + new + data[end:]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 5)) == 0 else data


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """``data`` as it may arrive over a network: whole, in a few pieces, or byte by byte."""
    if len(data) < 300 and draw(st.integers(0, 5)) == 0:
        return [data[index : index + 1] for index in range(len(data))]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=5)))
    return [piece for start, end in itertools.pairwise([0, *cuts, len(data)]) if (piece := data[start:end])]
