"""Where a model name leads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.errors import ErrorKind, RequestError
from flm.policy.restrictions import Restriction
from flm.policy.routing import RouteIndex
from flm.snapshot import SERVING, Engine, Model

UP, SLOW, DOWN = "RunningHealthy", "RunningDegraded", "ErrorNetwork"


def engine(name: str, status: str, *models: str, error: str | None = None) -> Engine:
    return Engine(name, "openai", "http://127.0.0.1:1", status, models=tuple(map(Model, models)), last_error=error)


def index(*engines: Engine, plain_names: bool = True, **aliases: str) -> RouteIndex[Engine]:
    return RouteIndex(engines, aliases, serving=SERVING, plain_names=plain_names)


def refusal(routes: RouteIndex[Engine], name: str) -> RequestError:
    with pytest.raises(RequestError) as error:
        routes.resolve(name)
    return error.value


ROUTES = index(
    engine("a", UP, "one", "org/two:7b", "both", "half"),
    engine("b", SLOW, "both"),
    engine("c", DOWN, "gone", "half", error="connection refused"),
    short="flm://a/org/two:7b",
    plain="one",
    chain="short",
    both="flm://b/both",
    nowhere="flm://x/y",
)


@pytest.mark.parametrize(
    ("name", "engine_id", "model"),
    [
        ("flm://a/one", "a", "one"),
        ("flm://a/org/two:7b", "a", "org/two:7b"),
        ("flm://b/both", "b", "both"),
        ("one", "a", "one"),
        ("org/two:7b", "a", "org/two:7b"),
        ("short", "a", "org/two:7b"),
        ("plain", "a", "one"),
        ("both", "b", "both"),  # an alias goes before a plain name
        ("half", "a", "half"),  # the other engine that has it is down
    ],
)
def test_a_name_that_leads_somewhere(name: str, engine_id: str, model: str) -> None:
    route = ROUTES.resolve(name)
    assert (route.engine.id, route.model.name) == (engine_id, model)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flm://", ErrorKind.INVALID_MODEL),
        ("flm://a", ErrorKind.INVALID_MODEL),
        ("flm://a/", ErrorKind.INVALID_MODEL),
        ("flm:///one", ErrorKind.INVALID_MODEL),
        ("flm://a b/one", ErrorKind.INVALID_MODEL),
        ("flm://a/one\n", ErrorKind.INVALID_MODEL),
        ("flm://x/one", ErrorKind.ENGINE_NOT_FOUND),
        ("flm://A/one", ErrorKind.ENGINE_NOT_FOUND),
        ("flm://../one", ErrorKind.ENGINE_NOT_FOUND),
        ("nowhere", ErrorKind.ENGINE_NOT_FOUND),
        ("flm://a/One", ErrorKind.MODEL_NOT_FOUND),
        ("flm://a//one", ErrorKind.MODEL_NOT_FOUND),
        ("chain", ErrorKind.MODEL_NOT_FOUND),
        ("FLM://a/one", ErrorKind.MODEL_NOT_FOUND),
        ("", ErrorKind.MODEL_NOT_FOUND),
        ("gone", ErrorKind.ENGINE_UNAVAILABLE),
        ("flm://c/gone", ErrorKind.ENGINE_UNAVAILABLE),
        ("flm://c/unknown", ErrorKind.ENGINE_UNAVAILABLE),  # its list may be out of date
    ],
)
def test_a_name_that_leads_nowhere(name: str, kind: ErrorKind) -> None:
    error = refusal(ROUTES, name)
    assert error.kind is kind
    if kind is ErrorKind.ENGINE_UNAVAILABLE:
        assert "connection refused" in error.message


def test_a_name_of_several_engines_lists_the_ids() -> None:
    error = refusal(index(engine("a", UP, "m"), engine("b", UP, "m"), engine("c", DOWN, "m")), "m")
    assert (error.kind, error.param) == (ErrorKind.INVALID_MODEL, "model")
    assert "flm://a/m, flm://b/m" in error.message
    assert "flm://c/m" not in error.message


def test_plain_names_can_be_off() -> None:
    routes = index(engine("a", UP, "m"), plain_names=False, alias="flm://a/m")
    assert refusal(routes, "m").kind is ErrorKind.MODEL_NOT_FOUND
    assert routes.resolve("alias").model.name == routes.resolve("flm://a/m").model.name == "m"


@given(st.text(max_size=50).map(lambda tail: "flm://" + tail) | st.text(max_size=50))
def test_any_name_is_a_route_or_a_refusal(name: str) -> None:
    status = 200
    try:
        ROUTES.resolve(name)
    except RequestError as error:
        status = error.status
    assert status in (200, 400, 404, 503)


def test_a_list_that_is_cut_short_says_so() -> None:
    def listed(count: int) -> tuple[str, str]:
        routes = index(*(engine(f"e{number:02}", UP, "m") for number in range(count)))
        return refusal(routes, "flm://x/m").message, refusal(routes, "m").message

    assert listed(8)[0].endswith("known engines: e00, e01, e02, e03, e04, e05, e06, e07")
    assert listed(9)[0].endswith(", e07 and 1 more")
    assert listed(20)[0].endswith(", e07 and 12 more")
    assert listed(8)[1].endswith(", flm://e07/m")
    assert listed(20)[1].endswith(", flm://e07/m and 12 more")


@pytest.mark.parametrize("name", ["{}", "flm://{}/m", "flm://a/{}"])
def test_a_name_is_repeated_up_to_200_characters(name: str) -> None:
    for length in (200, 201):
        message = refusal(index(engine("a", UP, "one")), name.format("n" * length)).message
        assert f"{'n' * 200}'" in message
        assert ("…" in message) is (length > 200)


def test_the_error_of_an_alias_names_it() -> None:
    routes = index(engine("a", UP, "m"), gone="flm://a/x")
    with pytest.raises(RequestError) as refused:
        routes.resolve("gone")
    assert refused.value.message.startswith("the alias 'gone' stands for 'flm://a/x': engine 'a' has no model 'x'")
    with pytest.raises(RequestError) as plain:
        routes.resolve("flm://a/x")
    assert "alias" not in plain.value.message


# --- with a restriction ----------------------------------------------------------------------------------------------

SECRET = Model("secret:latest", other_names=("secret",))
OPEN = Model("open:latest", other_names=("open",))
HIDDEN = (
    Engine("mine", "openai", "http://127.0.0.1:1", UP, models=(OPEN, SECRET)),
    Engine("other", "openai", "http://127.0.0.1:2", UP, models=(SECRET, OPEN, Model("open"))),
    engine("third", UP, "secret:latest"),
    engine("down", DOWN, "off", error="connection refused"),
)
MINE = Restriction(models=("open*",), engines=("mine",))


def hidden(*, plain_names: bool = True) -> RouteIndex[Engine]:
    aliases = {"good": "flm://mine/open", "bad": "flm://other/secret", "lost": "flm://nowhere/x", "twice": "secret"}
    return index(*HIDDEN, plain_names=plain_names, **aliases)


@pytest.mark.parametrize("restriction", [MINE, Restriction(models=("flm://mine/open*",)), Restriction(("no*",))])
@pytest.mark.parametrize(
    "name",
    [
        "flm://nowhere/m",
        "flm://other/open",
        "flm://other/m",
        "flm://down/off",
        "flm://down/m",
        "flm://mine/m",
        "flm://mine/secret",
        "flm://mine/secret:latest",
        "m",
        "off",
        "secret",
        "secret:latest",
        "bad",
        "lost",
        "twice",
    ],
)
def test_a_restricted_key_learns_nothing_of_what_it_may_not_use(name: str, restriction: Restriction) -> None:
    with pytest.raises(RequestError) as error:
        hidden().resolve(name, restriction)
    with pytest.raises(RequestError) as unknown:
        index().resolve("never", restriction)
    assert (error.value.kind, error.value.param) == (ErrorKind.PERMISSION_DENIED, "model")
    assert error.value.message == unknown.value.message.replace("never", name), "nothing but what was asked is in it"


@pytest.mark.parametrize("name", ["good", "open", "open:latest", "flm://mine/open", "flm://mine/open:latest"])
def test_aliases_and_other_names_lead_a_restricted_key_to_what_it_may_use(name: str) -> None:
    restricted = Restriction(models=("open:*",), engines=("mine",))
    route = hidden().resolve(name, restricted)
    assert (route.engine.id, route.model.name) == ("mine", "open:latest")


def test_plain_names_that_are_off_are_denied_as_all_else() -> None:
    with pytest.raises(RequestError) as error:
        hidden(plain_names=False).resolve("open", MINE)
    assert error.value.kind is ErrorKind.PERMISSION_DENIED
    assert "plain names" not in error.value.message


def test_a_name_of_several_engines_lists_only_those_a_key_may_use() -> None:
    routes = index(engine("a", UP, "m"), engine("b", UP, "m"), engine("c", UP, "m"))
    with pytest.raises(RequestError) as error:
        routes.resolve("m", Restriction(engines=("a", "b")))
    assert error.value.kind is ErrorKind.INVALID_MODEL
    assert error.value.message.endswith("by its id: flm://a/m, flm://b/m")


@pytest.mark.parametrize(
    ("name", "restriction", "kind"),
    [
        ("flm://down/off", Restriction(engines=("down",)), ErrorKind.ENGINE_UNAVAILABLE),
        ("off", Restriction(models=("off",)), ErrorKind.ENGINE_UNAVAILABLE),
        ("flm://down/new", Restriction(engines=("down",)), ErrorKind.ENGINE_UNAVAILABLE),  # its list may be old
        ("flm://down/new", Restriction(models=("flm://down/n*",)), ErrorKind.ENGINE_UNAVAILABLE),
        ("flm://down/new", Restriction(models=("new",), engines=("down",)), ErrorKind.ENGINE_UNAVAILABLE),
        ("flm://down/new", Restriction(models=("old",), engines=("down",)), ErrorKind.PERMISSION_DENIED),
        ("flm://down/new", Restriction(models=("n*",)), ErrorKind.PERMISSION_DENIED),  # would tell of the engine
        ("flm://down/new", Restriction(models=("*",)), ErrorKind.PERMISSION_DENIED),
        ("flm://mine/new", Restriction(engines=("mine",)), ErrorKind.PERMISSION_DENIED),
    ],
)
def test_an_engine_that_is_down_is_told_to_whom_it_is_open(
    name: str, restriction: Restriction, kind: ErrorKind
) -> None:
    with pytest.raises(RequestError) as error:
        hidden().resolve(name, restriction)
    assert error.value.kind is kind
