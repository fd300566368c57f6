"""Readers and subscribers of a manager."""

from rhapsody.telemetry import TelemetryManager, TelemetryReader, TelemetrySubscriber


async def test_subscriber_gets_events_and_reader_filters_spans() -> None:
    manager = TelemetryManager("session.1")
    seen: list[str] = []
    TelemetrySubscriber(manager).subscribe(lambda event: seen.append(event.event_type))
    await manager.start()
    for uid in ("a", "b"):
        task = {"uid": uid, "backend": "local", "function": print}
        manager.on_task_submitted(task)
        manager.on_task_state(task, "DONE")
    await manager.stop()
    assert seen.count("TaskCompleted") == 2
    reader = TelemetryReader(manager)
    assert len(reader.read_traces()) == 3
    [span] = reader.read_traces(task_id="b")
    assert span.attributes["task_id"] == "b"
    [root] = reader.read_traces(session_id="session.1")
    assert root.name == "session"
    assert reader.read_metrics() is not None
