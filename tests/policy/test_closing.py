"""Which routes are closed, that no spelling of one gets around it, and how one is opened."""

from __future__ import annotations

from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.errors import ErrorKind, RequestError
from flm.policy.closing import Opening, check_open, parse_openings
from flm.policy.paths import normalised


class Rule(msgspec.Struct, frozen=True):
    path: str
    why: str = "does harm"
    method: str = "*"


RULES = (
    Rule("/api/delete", "deletes a model"),
    Rule("/slots/*", method="POST"),
    Rule("/props", method="POST"),
    Rule("/Models/Load"),
    Rule("/secret", method="GET"),
)


def refusal(method: str, raw: str, rules: tuple[Rule, ...] = RULES, setting: str = "") -> RequestError | None:
    path = normalised(raw.encode())
    try:
        check_open(rules, parse_openings(setting), "e", method, path)
    except RequestError as error:
        return error
    return None


def is_open(method: str, raw: str, rules: tuple[Rule, ...] = RULES, setting: str = "") -> bool:
    error = refusal(method, raw, rules, setting)
    return error is None or (error.kind, error.status) != (ErrorKind.ROUTE_DISABLED, 403)


@pytest.mark.parametrize("method", ["DELETE", "delete", "POST", "GET", "HEAD", "FOO"])
@pytest.mark.parametrize(
    "path",
    ["/api/delete", "/API/Delete", "/api/delete/", "/%61pi/delete", "/api%2Fdelete", "/api%2fDELETE",
     "/%41PI/d%65lete/",
     "/prefix/api/delete", "/a/b/api/delete/",
     "/api/%EF%BD%84elete", "/api/de%EF%BD%8Cete", "/api/%E2%93%93elete"],
)  # fmt: skip
def test_no_spelling_opens_a_closed_route(method: str, path: str) -> None:
    assert not is_open(method, path)


@pytest.mark.parametrize(
    "path", ["/api//delete", "/api/./delete", "/api/x/../delete", "/api/delete%00", "/api/delete;"]
)
def test_other_spellings_are_no_paths_at_all(path: str) -> None:
    with pytest.raises(RequestError) as refused:
        normalised(path.encode())
    assert refused.value.kind is ErrorKind.INVALID_REQUEST


@pytest.mark.parametrize("path", ["/", "/api", "/api/deleted", "/api/delete/x", "/api/tags", "/xapi/delete", "/delete"])
def test_other_routes_are_open(path: str) -> None:
    assert is_open("DELETE", path)


def test_what_lies_below_is_closed_where_the_rule_says_so() -> None:
    for path in ("/slots", "/slots/", "/slots/0", "/slots/0/x", "/SLOTS/0"):
        assert not is_open("POST", path)
        assert is_open("GET", path)
    assert is_open("POST", "/slotsx")


def test_head_counts_as_get_and_nothing_else() -> None:
    assert not is_open("HEAD", "/secret")
    assert not is_open("head", "/secret")
    assert is_open("POST", "/secret")
    assert is_open("HEAD", "/props")


def test_a_rule_is_compared_without_regard_to_its_own_case() -> None:
    assert not is_open("POST", "/models/load")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("e:DELETE /api/delete", True), ("*:* /*", True), ("e:* /api/*", True), ("*:DELETE /API/Delete", True),
        ("x:POST /y, e:DELETE /api/delete", True), (" e:DELETE /api/delete , x:POST /y ", True),
        ("e:* /api/delete/", True),
        ("", False), ("f:DELETE /api/delete", False), ("e:POST /api/delete", False), ("e:DELETE /api", False),
        ("e:DELETE /delete", False), ("e:DELETE /api/delete/*", True), ("e:DELETE /api/deleted", False),
    ],
)  # fmt: skip
def test_the_setting_opens_what_it_names(setting: str, expected: bool) -> None:
    assert is_open("DELETE", "/api/delete", setting=setting) is expected


def test_an_opening_counts_only_where_it_was_written() -> None:
    assert not is_open("DELETE", "/prefix/api/delete", setting="e:DELETE /api/delete")
    assert is_open("DELETE", "/prefix/api/delete", setting="e:DELETE /prefix/api/delete")


def test_the_refusal_says_why_and_how_to_open_it() -> None:
    with pytest.raises(RequestError) as refused:
        check_open(RULES, (), "e", "delete", "/api/delete")
    message = refused.value.message
    assert "deletes a model" in message
    assert "flm config set passthrough.open_routes 'e:DELETE /api/delete'" in message
    assert parse_openings(message.split("'")[-2]) == (Opening("e", "DELETE", "/api/delete"),)


def test_the_command_that_opens_it_keeps_what_is_open() -> None:
    error = refusal("DELETE", "/api/delete", setting="e:GET /x/*,  *:* /slots/1")
    assert error is not None
    assert error.message.endswith(
        "flm config set passthrough.open_routes 'e:GET /x/*, *:* /slots/1, e:DELETE /api/delete'"
    )


@given(st.text(st.characters(exclude_characters="%\\;?#/.", exclude_categories=("C", "Z")), min_size=1, max_size=300))
def test_the_refusal_repeats_nothing_that_would_break_its_line(text: str) -> None:
    try:
        error = refusal("GET", "/" + quote(text), (Rule("/*"),))
    except RequestError as invalid:
        error = invalid  # a character that is one of the forbidden ones when folded
    assert error is not None
    assert error.message.isprintable()
    assert len(error.message) < 800
