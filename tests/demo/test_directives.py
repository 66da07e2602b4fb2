"""The grammar by which tests tell the demo engine to misbehave."""

from __future__ import annotations

import pytest

from flm.demo.directives import NONE, DirectiveError, Directives, find, parse


def test_a_line_with_blanks_commas_and_flags() -> None:
    read = parse("demo: first=0.5,between=0.01 cut=200 end=rst endless")
    assert read == Directives(first=0.5, between=0.01, cut=200, end="rst", endless=True)


def test_an_empty_line_asks_for_nothing() -> None:
    assert parse("demo:") is NONE


@pytest.mark.parametrize(
    "line", ["cutt=1", "cut", "cut=x", "cut=-2", "end=bang", "first=-1", "status=999", "flood=5000"]
)
def test_what_is_not_understood_is_refused_with_the_line(line: str) -> None:
    with pytest.raises(DirectiveError, match=line.split("=")[0]):
        parse(f"demo: {line}")


def test_the_first_directive_line_counts() -> None:
    assert find([None, "", "a demo: cut=1", "demo:cut=2", "demo:cut=3"]) == Directives(cut=2)
    assert find(["plain"]) is NONE
