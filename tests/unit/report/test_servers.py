"""Model servers in statistics: what is shown of backends of this and of other packages."""

from typing import Any

import pytest

from rhapsody.report.servers import clients_of, replicas_of, scaling_note, scaling_of, servers_table

REPLICA = {"index": 0, "state": "READY", "in_flight": 2}
SCALING = {"wanted": 1, "smallest": 0, "largest": 2, "up": 1, "down": 0, "failed": 0}


@pytest.mark.parametrize("other", [None, 3, "two", {"index": 0}, [1], [{"index": 0}]])
def test_entries_of_other_shapes_are_left_out(other: Any) -> None:
    statistics = {"replicas": other, "clients": other, "scaling": other}
    assert replicas_of(statistics) == clients_of(statistics) == []
    assert scaling_of(statistics) is None
    assert scaling_note(statistics) == ""


def test_node_of_an_endpoint_is_its_host() -> None:
    rows = servers_table("chat", {"replicas": [{**REPLICA, "address": "http://host:8000/v1"}]})
    assert rows == [
        {
            **REPLICA,
            "address": "http://host:8000/v1",
            "backend": "chat",
            "node": "host:8000",
            "restarts": None,
        }
    ]


def test_note_counts_the_prompts_that_no_replica_has() -> None:
    statistics = {"replicas": [REPLICA], "scaling": SCALING, "pending_prompts": 5}
    assert scaling_note(statistics) == (
        "replicas: 1 now, 1 wanted, 0 to 2 allowed; 1 added, 0 removed, 0 failed; 3 prompts wait"
    )
