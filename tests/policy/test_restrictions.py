"""Patterns of models, held against what a regular expression says; and what a restriction allows."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.policy.restrictions import NOTHING, Restriction, matches

TEXTS = st.text("ab/:*[]?.", max_size=12)


@given(TEXTS, TEXTS)
def test_a_star_stands_for_anything_and_nothing_else_is_special(pattern: str, text: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None
    assert matches(pattern, text) == expected


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("*", ""), ("*", "flm://e/a/b"), ("a*", "a"), ("*a*a*", "aa"), ("a*a", "aa"), ("llama3*", "llama3.2:1b")],
)
def test_what_matches(pattern: str, text: str) -> None:
    assert matches(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", "a"),
        ("a", "A"),
        ("a", "ab"),
        ("a*a", "a"),
        ("a*b*a", "aba "),
        ("ab*ba", "aba"),
        ("*a*a*", "a"),
        ("[a]", "a"),
    ],
)
def test_what_does_not(pattern: str, text: str) -> None:
    assert not matches(pattern, text)


def test_a_pattern_of_many_stars_ends_at_once() -> None:
    begun = time.process_time()
    assert not matches("a*" * 256 + "b", "a" * 100_000)
    assert time.process_time() - begun < 1, "a backtracking matcher would go on for ever"


def test_both_of_a_restriction_must_allow() -> None:
    both = Restriction(models=("llama*", "flm://e2/qwen"), engines=("e1", "e2"))
    assert both.allows_engine("e1")
    assert not both.allows_engine("e3")
    assert both.allows_model("flm://e1/llama3", "llama3")
    assert both.allows_model("flm://e2/qwen", "qwen")
    assert not both.allows_model("flm://e1/qwen", "qwen")


def test_an_empty_one_allows_all_and_nothing_allows_nothing() -> None:
    assert Restriction().allows_engine("e")
    assert Restriction().allows_model("flm://e/m", "m")
    assert not NOTHING.allows_engine("e")
    assert not NOTHING.allows_model("flm://e/m", "m")
