"""The streaming user for locust: asks, reads the whole stream, compares every character with the exact answer.

Headless through `make load`, with locust's web page through `make load-web`. The key comes from FLM_LOAD_KEY.
FLM_LOAD_PLANT, a directive of the demo engine, makes every third answer wrong: that must turn the run red.
"""

from __future__ import annotations

import itertools
import os

from locust import FastHttpUser, constant_throughput, task

from loadtests.answers import body_of, stream_fault
from loadtests.rates import REQUESTS_PER_MINUTE, USERS

_numbers = itertools.count(1)


class StreamingUser(FastHttpUser):
    wait_time = constant_throughput(REQUESTS_PER_MINUTE / 60 / USERS)
    network_timeout = 30.0

    @task
    def stream(self) -> None:
        number = next(_numbers)
        planted = os.environ.get("FLM_LOAD_PLANT", "") if number % 3 == 0 else ""
        headers = {"authorization": f"Bearer {os.environ['FLM_LOAD_KEY']}", "content-type": "application/json"}
        body = body_of(number, stream=True, system=planted).decode()
        with self.client.post(
            "/v1/chat/completions", data=body, headers=headers, stream=True, catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            fault = stream_fault(response.content or b"", number)  # reads to the end of the stream
            if fault is not None:
                response.failure(fault)
