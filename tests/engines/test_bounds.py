"""Whatever an engine says of its models, what is kept of it can be published and is no burden."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.engines.bounds import (
    MAX_DETAIL_CHARS,
    MAX_LIST_BYTES,
    MAX_NAME_CHARS,
    MAX_NAMES,
    MAX_NUMBER,
    MAX_VERSION_CHARS,
    bounded_detail,
    bounded_models,
    bounded_version,
)
from flm.snapshot import Engine, Model

NUMBERS = st.none() | st.integers(-(2**70), 2**70)
TEXTS = st.text(st.characters(), max_size=5) | st.integers(500, 520).map(lambda length: "n" * length)
MODELS = st.builds(
    Model,
    TEXTS,
    context_length=NUMBERS,
    trained_context_length=NUMBERS,
    loaded=st.none() | st.booleans(),
    capabilities=st.lists(TEXTS, max_size=70).map(tuple),
    created=st.integers(-(2**70), 2**70),
    other_names=st.lists(TEXTS, max_size=70).map(tuple),
)


@given(st.lists(MODELS, max_size=4))
def test_what_is_kept_can_be_published_and_read_again(models: list[Model]) -> None:
    kept, _ = bounded_models(models)
    data = msgspec.msgpack.encode(Engine("a", "k", "http://a", "RunningHealthy", models=kept))
    assert msgspec.msgpack.decode(data, type=Engine).models == kept
    assert msgspec.json.decode(msgspec.json.encode(kept), type=tuple[Model, ...]) == kept
    assert bounded_models(kept) == (kept, ())


@pytest.mark.parametrize("number", [-1, MAX_NUMBER + 1, 2**64])
def test_a_number_out_of_range_is_not_known(number: int) -> None:
    model = Model("m", context_length=number, trained_context_length=number, created=number)
    assert bounded_models([model]) == ((Model("m"),), ())


def test_numbers_and_names_up_to_the_bounds_stay() -> None:
    model = Model(
        "n" * MAX_NAME_CHARS, MAX_NUMBER, 0, True, ("c",) * MAX_NAMES, MAX_NUMBER, ("日本 語",), any_case=True
    )
    assert bounded_models([model]) == ((model,), ())


@pytest.mark.parametrize("name", ["", "n" * (MAX_NAME_CHARS + 1), "a\r\nb", "\x00", "\u202e", "\ud800"])
def test_a_model_without_a_usable_name_is_left_out_and_that_is_said(name: str) -> None:
    kept, said = bounded_models([Model("m"), Model(name), Model("o")])
    assert [model.name for model in kept] == ["m", "o"]
    assert said == ("1 models left out whose name is longer than 512 characters or not printable",)


def test_further_names_and_capabilities_are_bounded_each() -> None:
    many = tuple(f"c{number}" for number in range(MAX_NAMES + 1))
    (kept,), said = bounded_models([Model("m", capabilities=("c" * 1_200_000, "tools"), other_names=many)])
    assert (kept.capabilities, kept.other_names) == (("tools",), many[:-1])
    assert said == ("2 capabilities and further names left out: more than 64 of one model, too long or unprintable",)


def test_a_list_is_kept_up_to_its_size() -> None:
    model = Model("m" * MAX_NAME_CHARS)
    kept, said = bounded_models([model] * 5_000)
    assert len(kept) == MAX_LIST_BYTES // len(msgspec.msgpack.encode(model))
    assert said == (f"{5_000 - len(kept)} models left out: the list is longer than {MAX_LIST_BYTES} bytes",)


@pytest.mark.parametrize("version", [None, "", "v" * (MAX_VERSION_CHARS + 1), "0.1\r\nX: y", "\ud800"])
def test_what_cannot_be_a_version_is_none(version: str | None) -> None:
    assert bounded_version(version) is None


def test_a_version_and_a_detail() -> None:
    assert bounded_version("0.34.4") == "0.34.4"
    assert bounded_detail(None) is None
    assert bounded_detail("it\r\nsays \ud800") == "it??says ?"
    assert bounded_detail("d" * 5_000) == "d" * MAX_DETAIL_CHARS
