"""What every real engine is asked in tests/real, asked of vLLM: the very same tests."""

from __future__ import annotations

from tests.real.test_chat import (
    test_awkward_text_arrives_unharmed,
    test_content_in_parts_and_developer_role_are_understood,
    test_json_mode_and_schema_force_json,
    test_models_are_listed_and_found_by_id,
    test_stop_text_ends_the_answer,
    test_stream_is_exact_and_well_formed,
    test_token_limit_is_told,
    test_two_streams_have_two_ids,
    test_whole_answer_is_exact_and_complete,
)
from tests.real.test_errors import (
    test_parameters_an_engine_lacks_are_told,
    test_unknown_engine_is_not_found,
    test_unknown_model_is_not_found,
    test_wrong_key_is_refused,
    test_wrong_types_are_bad_requests,
)
from tests.real.test_tools import (
    test_a_result_given_back_gets_its_answer,
    test_calls_in_a_whole_answer,
    test_streamed_calls,
    test_the_clients_own_accumulator_accepts_the_pieces,
)

__all__ = [
    "test_a_result_given_back_gets_its_answer",
    "test_awkward_text_arrives_unharmed",
    "test_calls_in_a_whole_answer",
    "test_content_in_parts_and_developer_role_are_understood",
    "test_json_mode_and_schema_force_json",
    "test_models_are_listed_and_found_by_id",
    "test_parameters_an_engine_lacks_are_told",
    "test_stop_text_ends_the_answer",
    "test_stream_is_exact_and_well_formed",
    "test_streamed_calls",
    "test_the_clients_own_accumulator_accepts_the_pieces",
    "test_token_limit_is_told",
    "test_two_streams_have_two_ids",
    "test_unknown_engine_is_not_found",
    "test_unknown_model_is_not_found",
    "test_whole_answer_is_exact_and_complete",
    "test_wrong_key_is_refused",
    "test_wrong_types_are_bad_requests",
]
