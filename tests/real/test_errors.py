"""What goes wrong, as the official client's exceptions: never a hang, never a silent end."""

from __future__ import annotations

import openai
import pytest

from tests.real.asking import Streamed, ask, ask_streamed, gather, messages
from tests.real.conftest import Target
from tests.real.installation import Installation

WRONG: list[dict[str, object]] = [{"temperature": "hot"}, {"max_tokens": "many"}, {"messages": "Hi"}]
BAD_CALL: dict[str, object] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}
ENGINE_FAILURES = ("engine_error", "engine_protocol_error")
OLLAMAS = ("ollama-old", "ollama-rendered", "ollama-native")
STOP_REPEATING = ("ollama-old", "ollama-rendered")
"""They break off a model that repeats itself, the first without a word; the others let it go on."""
REFUSE_LONG = ("llama", "ollama-native")
"""They refuse a prompt that exceeds the model's context; the others cut it and answer."""
GO_ON_REPEATING = ("llama", "ollama-native")


def test_unknown_model_is_not_found(client: openai.OpenAI, target: Target) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=f"flm://{target.name}/nobody", messages=messages(), stream=stream)
        assert caught.value.code == "model_not_found"
        assert caught.value.request_id


def test_unknown_engine_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "flm://nowhere/scripted")
    assert caught.value.code == "engine_not_found"


def test_a_name_that_several_engines_have_lists_the_ids(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "scripted:latest")
    assert caught.value.code == "invalid_model"
    assert "flm://ollama-old/scripted:latest" in str(caught.value)
    assert "flm://ollama-native/scripted:latest" in str(caught.value)


@pytest.mark.parametrize("key", ["nonsense", "flm_0000000000000000_nonsense"])
def test_wrong_key_is_refused(flm: Installation, target: Target, key: str) -> None:
    with flm.client(key) as stranger, pytest.raises(openai.AuthenticationError) as caught:
        ask(stranger, target.model())
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_types_are_bad_requests(client: openai.OpenAI, target: Target, wrong: dict[str, object]) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=target.model(), messages=messages(), stream=stream, extra_body={"max_tokens": 3, **wrong}
            )
        assert caught.value.type
        assert caught.value.message


@pytest.mark.parametrize("target", OLLAMAS, indirect=True)
def test_no_messages_is_a_bad_request(client: openai.OpenAI, target: Target) -> None:
    """The engine itself would take it for an order to load the model, and answer 200."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=target.model(), messages=[])
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("target", STOP_REPEATING, indirect=True)
def test_an_answer_the_engine_breaks_off_is_an_error_not_an_end(client: openai.OpenAI, target: Target) -> None:
    streamed = Streamed()
    stream = client.chat.completions.create(model=target.model(), messages=messages("repeat"), stream=True)
    with stream, pytest.raises(openai.APIError) as caught:
        gather(stream, streamed)
    assert streamed.content.startswith("na na na ")
    assert streamed.finish_reasons == []
    assert caught.value.code in ENGINE_FAILURES
    with pytest.raises(openai.InternalServerError) as whole:
        ask(client, target.model(), "repeat")
    assert (whole.value.status_code, whole.value.code in ENGINE_FAILURES) == (502, True)


@pytest.mark.parametrize("target", GO_ON_REPEATING, indirect=True)
def test_a_repeating_answer_the_engine_lets_pass_is_passed_on(client: openai.OpenAI, target: Target) -> None:
    streamed = ask_streamed(client, target.model(), "repeat", max_tokens=150)
    assert (streamed.content.count("na "), streamed.finish_reasons) == (150, ["length"])


@pytest.mark.parametrize("target", REFUSE_LONG, indirect=True)
def test_a_prompt_too_long_for_the_model_is_told(client: openai.OpenAI, target: Target) -> None:
    long = "word " * 5000
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=target.model(), messages=[{"role": "user", "content": long}], stream=stream
            )
        assert "context size" in caught.value.message
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "sh"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"description": "no name"}}]}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [BAD_CALL]}, *messages()]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_a_mistake_of_the_caller_is_not_a_failure_of_the_engine(
    client: openai.OpenAI, target: Target, wrong: dict[str, object], param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=target.model(), messages=messages(), stream=stream, extra_body=wrong)
        assert str(caught.value.param).startswith(param)


def test_an_empty_stop_does_not_end_the_answer(client: openai.OpenAI, target: Target) -> None:
    whole = ask(client, target.model()).choices[0].message.content
    assert whole
    for stop in ("", ["", "not in the answer"]):
        assert ask(client, target.model(), stop=stop).choices[0].message.content == whole


def test_parameters_an_engine_lacks_are_told(client: openai.OpenAI, target: Target) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=target.model(), messages=messages(), temperature=2.5, logit_bias={"300": -1}
    )
    warnings = raw.headers.get("x-flm-warnings", "")
    assert "temperature;action=clamped;value=2" in warnings
    assert ("logit_bias;action=dropped" in warnings) == (target.engine.kind == "ollama")
    assert raw.parse().choices[0].finish_reason == "stop"
