"""The settings of a fetch: what is refused, and that they cross the pipe as they are."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from configs.load import UserError
from ingest.fetch.settings import FetchConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allow_private": ["example.org:80"]}, "network.allow_private: 'example.org:80'"),
        ({"contact": "me"}, "network.contact=me: give an e-mail address or a URL"),
        ({"user_agent": "é"}, "network.user_agent='é': give a name in plain ASCII"),
        ({"max_bytes": 0}, "network.max_bytes=0: give a positive number"),
        ({"retries": -1}, "network.retries=-1: give 0 or more"),
        ({"burst_requests": 0.5}, "network.burst_requests=0.5: give 1 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        FetchConfig(**settings)
    assert message in str(caught.value)


def test_a_child_reads_what_the_parent_has() -> None:
    config = FetchConfig(allow_private=["127.0.0.1:80"], contact="me@example.org").share(3)
    assert FetchConfig(**json.loads(json.dumps(asdict(config)))) == config
