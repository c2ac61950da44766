"""Which locations are valid names of tables of Unity Catalog."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_spanbatch import InvalidLocationError
from trio_spanbatch._settings.header_checks import check_header_location
from trio_spanbatch._spans.checks import shown
from trio_spanbatch.destinations.tables import check_table_name


@pytest.mark.parametrize(
    "location",
    [
        "main.agents.spans",
        "Main.Agents.Spans",
        "dev-eu.team_1.2024-otel_spans",
        "a.b.c",
        "$a#.b@c.d(e)",
        ".".join(["x" * 255] * 3),
    ],
)
def test_three_names_separated_by_periods_are_a_table(location: str) -> None:
    check_table_name(location)


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("", "it has 1 part"),
        ("spans", "it has 1 part"),
        ("agents.spans", "it has 2 parts"),
        ("main.agents.spans.more", "it has 4 parts"),
        ("main..spans", "a part of it is empty"),
        (".agents.spans", "a part of it is empty"),
        ("main.agents.", "a part of it is empty"),
        ("..", "a part of it is empty"),
        ("main.agents." + "x" * 256, "a part of it has 256 characters"),
        ("main.agents.my spans", "it contains ' '"),
        (" main.agents.spans", "it contains ' '"),
        ("main.agents.spans\r\nX-Evil: 1", "it contains '\\r'"),
        ("main.agents.spans\n", "it contains '\\n'"),
        ("main.agents.sp\0ans", "it contains '\\x00'"),
        ("main.agents.sp\x7fans", "it contains '\\x7f'"),
        ("main.agents.a/b", "it contains '/'"),
        ("main.agents.`my-spans`", "it contains '`'"),
        ("`main`.`agents`.`a.b`", "it contains '`'"),
        ("main.agents.späne", "it contains 'ä'"),
        ("main.agents.\ud800", "it contains '\\ud800'"),
    ],
)
def test_a_name_that_is_not_a_table_is_refused_with_the_value_and_the_rule(location: str, problem: str) -> None:
    with pytest.raises(InvalidLocationError) as caught:
        check_table_name(location)
    assert str(caught.value) == (
        f"location {shown(location)} is not a table of Unity Catalog: {problem}; it must be "
        "<catalog>.<schema>.<table>, each of 1 to 255 characters of printable ASCII, without spaces, periods, slashes "
        "and backquotes"
    )


@given(st.text(alphabet=st.sampled_from("a.`/ \n\x7fä~!")))
def test_every_valid_name_can_be_sent_in_a_header(location: str) -> None:
    try:
        check_table_name(location)
    except InvalidLocationError:
        return
    check_header_location(location)
    assert len(location.split(".")) == 3
