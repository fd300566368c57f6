"""Plain spans, scopes, and spans as dicts."""

import asyncio
import json

from rhapsody.telemetry.spans import (
    Scope,
    Span,
    SpanTracer,
    StatusCode,
    current_span,
    open_scope,
    span_dict,
)


def tracer() -> tuple[SpanTracer, list[Span]]:
    ended: list[Span] = []
    return SpanTracer(ended.append), ended


def test_root_span_starts_a_trace() -> None:
    made, _ = tracer()
    first, second = (made.start("root", None, {}, 0) for _ in range(2))
    assert first.parent is None
    assert first.context.trace_id != second.context.trace_id


def test_child_span_belongs_to_the_trace_of_its_parent() -> None:
    made, _ = tracer()
    root = made.start("root", None, {}, 0)
    child = made.start("child", root, {}, 1)
    assert child.parent == root.context
    assert child.context.trace_id == root.context.trace_id
    assert child.context.span_id != root.context.span_id


def test_attributes_of_a_span_are_a_copy() -> None:
    made, _ = tracer()
    attributes = {"a": 1}
    span = made.start("span", None, attributes, 0)
    attributes["a"] = 2
    assert span.attributes == {"a": 1}


def test_end_sets_time_and_status_and_reports_the_span() -> None:
    made, ended = tracer()
    good, bad = made.start("good", None, {}, 1), made.start("bad", None, {}, 2)
    made.end(good, 5)
    made.end(bad, 6, "ValueError")
    assert ended == [good, bad]
    assert (good.end_time, good.status.status_code) == (5, StatusCode.UNSET)
    assert (bad.status.status_code, bad.status.description) == (StatusCode.ERROR, "ValueError")


def test_dict_of_a_span_is_json_with_hexadecimal_ids() -> None:
    made, _ = tracer()
    root = made.start("root", None, {}, 0)
    span = made.start("child", root, {"a": 1}, 1_500_000_000)
    made.end(span, 4_000_000_000, "no")
    found = json.loads(json.dumps(span_dict(span)))
    assert int(found["span_id"], 16) == span.context.span_id
    assert found["parent_span_id"] == f"{root.context.span_id:016x}"
    assert (found["start_time"], found["end_time"], found["duration_seconds"]) == (1.5, 4.0, 2.5)
    assert (found["status_code"], found["status_description"]) == ("ERROR", "no")
    assert found["attributes"] == {"a": 1}


def test_current_span_is_the_innermost_of_its_owner() -> None:
    mine, other = object(), object()
    token = open_scope.set(Scope(mine, "outer", None))
    try:
        open_scope.set(Scope(other, "other", open_scope.get()))
        assert current_span(mine) == "outer"
        assert current_span(other) == "other"
        open_scope.set(Scope(mine, "inner", open_scope.get()))
        assert current_span(mine) == "inner"
        assert current_span(object()) is None
    finally:
        open_scope.reset(token)


async def test_asyncio_tasks_inherit_the_scope() -> None:
    owner = object()
    token = open_scope.set(Scope(owner, "span", None))

    async def inside() -> object:
        return current_span(owner)

    task = asyncio.create_task(inside())
    open_scope.reset(token)
    assert await task == "span"
    assert current_span(owner) is None
