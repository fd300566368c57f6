"""`Session.report`: the content of a run's page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import (
    ConcurrentExecutionBackend,
    DragonVllmInferenceBackend,
    EndpointInferenceBackend,
    NoopExecutionBackend,
)
from rhapsody.backends.core.history import RECORDS
from tests.support.held import HeldBackend
from tests.support.openai_server import OpenAIServer

VOID = {"meta", "br", "link", "input"}


class Page(HTMLParser):
    """A parsed page: its text, and the data of its charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._open: list[str] = []
        self._attributes: dict[str, Any] = {}
        self.words: list[str] = []
        self.links: list[str] = []
        self.data: dict[str, Any] = {}
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._attributes = dict(attrs)
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script" and self._attributes.get("type") == "application/json":
            self.data = json.loads(data)
        elif inside not in ("script", "style") and data.strip():
            self.words.append(" ".join(data.split()))


def work() -> None:
    pass


def broken(message: str) -> None:
    raise ValueError(message)


async def run(session: Session, *tasks: Any) -> None:
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)


def tasks_of(page: Page, uid: str) -> dict[str, Any]:
    """Return a task's values by column."""
    columns = page.data["tasks"]
    row = columns["uid"].index(uid)
    return {name: values[row] for name, values in columns.items()}


async def test_page_has_the_tasks_of_every_backend(tmp_path: Path) -> None:
    model = DragonVllmInferenceBackend(
        None, "embedded", num_gpus=0, engine="embedded", launcher="local", use_service=False
    )
    async with Session([ConcurrentExecutionBackend(), model]) as session:
        prompts = [AITask(f"What is {n}?", max_tokens=5) for n in range(4)]
        await run(session, ComputeTask(function=work, uid="first"), *prompts)
        page = Page(session.report(tmp_path / "run.html", title="Five tasks"))
    assert {"Five tasks", "concurrent", "dragon_vllm"} <= set(page.words)
    assert [group["label"] for group in page.data["groups"]] == [
        "concurrent",
        "dragon_vllm, replica 0",
    ]
    first = tasks_of(page, "first")
    assert page.data["names"][first["name"]] == "work"
    assert page.data["states"][first["state"]] == "DONE"
    assert 0 <= first["submitted"] <= first["began"] <= first["ended"] <= page.data["seconds"]
    (batches,) = page.data["batches"]
    assert sum(batches["size"]) == 4


async def test_page_says_how_replicas_followed_the_load(tmp_path: Path) -> None:
    options: dict[str, Any] = {"engine": "embedded", "launcher": "local", "use_service": False}
    elastic = DragonVllmInferenceBackend(None, "embedded", replicas=(0, 2), **options)
    async with Session([ConcurrentExecutionBackend(), elastic]) as session:
        await run(session, AITask("hi", max_tokens=5))
        page = Page(session.report(tmp_path / "run.html"))
    assert (
        "dragon_vllm, replicas: 1 now, 1 wanted, 0 to 2 allowed; 1 added, 0 removed, 0 failed; "
        "0 prompts wait"
    ) in page.words
    assert not any(words.startswith("concurrent, replicas") for words in page.words)


async def test_page_shows_endpoints_by_their_hosts(tmp_path: Path) -> None:
    async with (
        OpenAIServer().running() as server,
        Session([EndpointInferenceBackend(server.url)]) as session,
    ):
        await run(session, AITask("hi"))
        words = Page(session.report(tmp_path / "run.html")).words
    first = words.index("endpoint", words.index("Model servers"))
    host = urlsplit(server.url).netloc
    assert words[first : first + 5] == ["endpoint", "0", "ready", host, "0"]


@pytest.mark.parametrize(
    "statistics",
    [
        {"replicas": 3},
        {"replicas": [1, 2]},
        {"replicas": [{"name": "a"}], "scaling": True},
        {"clients": {"a": 1}, "scaling": {"factor": 2}},
    ],
)
async def test_statistics_of_other_shapes_are_not_shown(
    tmp_path: Path, statistics: dict[str, Any]
) -> None:
    class Custom(NoopExecutionBackend):
        asked = 0

        def get_statistics(self) -> dict[str, Any]:
            self.asked += 1
            return statistics

    async with Session([custom := Custom("custom")]) as session:
        words = Page(session.report(tmp_path / "run.html")).words
        assert custom.asked == 1
    assert "Model servers" not in words


async def test_page_needs_no_other_file(tmp_path: Path) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        await run(session, ComputeTask(function=work))
        path = session.report(tmp_path / "run.html")
    assert Page(path).links == ["data:,"]  # no icon is asked for
    assert not re.search(r"https?://|@import|url\(", path.read_text(encoding="utf-8"))


async def test_page_says_where_functions_print_to(tmp_path: Path) -> None:
    backends = [ConcurrentExecutionBackend("process"), NoopExecutionBackend()]
    async with Session(backends) as session:
        page = Page(session.report(tmp_path / "run.html"))
    words = " ".join(page.words)
    assert "concurrent: functions print to the standard output and error of this program." in words
    assert "noop: functions print" not in words


async def test_failures_are_listed_by_reason(tmp_path: Path) -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        bad = [ComputeTask(function=broken, args=["the step is < 0"], uid=f"b.{n}") for n in (1, 2)]
        await run(session, *bad)
        page = Page(session.report(tmp_path / "run.html"))
    words = " ".join(page.words)
    assert "2 concurrent ValueError: the step is < 0" in words
    failed = tasks_of(page, "b.2")
    assert page.data["reasons"][failed["reason"]] == "ValueError: the step is < 0"


async def test_text_of_a_task_is_escaped(tmp_path: Path) -> None:
    async with Session([ConcurrentExecutionBackend(name="<b>")]) as session:
        evil = "</script><script>alert(1)</script>"
        await run(session, ComputeTask(function=broken, args=[evil]))
        path = session.report(tmp_path / "run.html", title=evil)
    assert "<script>alert" not in path.read_text(encoding="utf-8")
    assert Page(path).data["reasons"] == [f"ValueError: {evil}"]


async def test_unfinished_task_is_shown_as_active(tmp_path: Path) -> None:
    held = HeldBackend()
    async with Session([held]) as session:
        await session.submit_tasks([ComputeTask(function=work, uid="slow")])
        await held.wait_entered()
        page = Page(session.report(tmp_path / "run.html"))
        held.release()
    assert "still active" in page.words
    slow = tasks_of(page, "slow")
    assert (page.data["states"][slow["state"]], slow["ended"]) == ("RUNNING", None)


async def test_concurrent_tasks_have_separate_lanes(tmp_path: Path) -> None:
    held = HeldBackend()
    async with Session([held]) as session:
        tasks = [ComputeTask(function=work) for _ in range(5)]
        await session.submit_tasks(tasks)
        await held.wait_entered()
        held.release()
        await session.wait_tasks(tasks)
        page = Page(session.report(tmp_path / "run.html"))
    columns = page.data["tasks"]
    stretches: dict[int, float] = {}
    rows = sorted(zip(columns["began"], columns["ended"], columns["lane"], strict=True))
    for began, ended, lane in rows:
        assert stretches.get(lane, 0.0) <= began
        stretches[lane] = ended
    assert page.data["groups"][0]["lanes"] == len(stretches)


async def test_page_of_long_run_notes_omitted_tasks(tmp_path: Path) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        await run(session, *(ComputeTask(function=work) for _ in range(RECORDS + 1)))
        page = Page(session.report(tmp_path / "run.html"))
    assert len(page.data["tasks"]["uid"]) == RECORDS
    assert any("only the latest 20,000 tasks" in words for words in page.words)
    assert f"{RECORDS + 1:,}" in page.words


async def test_report_after_close_replaces_an_older_one(tmp_path: Path) -> None:
    session = Session([NoopExecutionBackend()])
    path = session.report(tmp_path / "run.html")
    assert Page(path).data["tasks"]["uid"] == []
    await run(session, ComputeTask(function=work, uid="one"))
    await session.close()
    session.report(path)
    assert Page(path).data["tasks"]["uid"] == ["one"]


async def test_session_reports_only_its_own_tasks(tmp_path: Path) -> None:
    backend = NoopExecutionBackend()
    sessions = []
    for uid in ("one", "two"):
        async with Session([backend]) as session:
            await run(session, ComputeTask(function=work, uid=uid))
        sessions.append(session)
    pages = [Page(s.report(tmp_path / "run.html")) for s in sessions]
    assert [page.data["tasks"]["uid"] for page in pages] == [["one"], ["two"]]


async def test_session_keeps_the_history_of_a_backend_without_one(
    tmp_path: Path,
) -> None:
    async with Session([Foreign()]) as session:
        good, bad = ComputeTask(function=work, uid="g"), ComputeTask(function=broken, uid="b")
        await run(session, good, bad)
        page = Page(session.report(tmp_path / "run.html"))
        assert session.get_statistics()["tasks"] == {"DONE": 1, "FAILED": 1}
    assert tasks_of(page, "g")["began"] <= tasks_of(page, "g")["ended"]
    assert page.data["reasons"] == ["OSError: no disk"]


class Foreign:
    """A backend of another package, with only the protocol's members."""

    name = "foreign"
    supports_implicit_data_linking = False
    supports_explicit_data_linking = False

    def __init__(self) -> None:
        self.attached_to: list[str] = []

    def register_callback(self, callback: Any) -> None:
        self._callback = callback

    async def submit_tasks(self, tasks: list[Any]) -> None:
        for task in tasks:
            self._callback(task, "RUNNING")
            if task["function"] is broken:
                task["exception"] = OSError("no disk")
                self._callback(task, "FAILED")
            else:
                task["return_value"] = None
                self._callback(task, "DONE")

    async def shutdown(self) -> None:
        pass


async def test_non_utf_8_text_is_escaped(tmp_path: Path) -> None:
    def parse(name: str) -> None:
        raise ValueError(f"cannot parse {name}")

    async with Session([ConcurrentExecutionBackend()]) as session:
        await run(session, ComputeTask(function=parse, args=["caf\udce9.txt"], uid="n\udce9"))
        text = session.report(tmp_path / "run.html").read_text(encoding="utf-8")
    assert "cannot parse caf\\udce9.txt" in text


async def test_failed_report_keeps_the_older_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.html"
    path.write_text("old")

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    async with Session([NoopExecutionBackend()]) as session:
        monkeypatch.setattr(Path, "write_bytes", fail)
        monkeypatch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="the disk is full"):
            session.report(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


async def test_report_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    target, link = tmp_path / "run-1.html", tmp_path / "latest.html"
    link.symlink_to(target)
    async with Session([NoopExecutionBackend()]) as session:
        assert session.report(link) == link
    assert link.is_symlink()
    assert target.read_text().startswith("<!doctype")


def test_unwritable_path_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "run.html"
    with Session([NoopExecutionBackend()]) as session, pytest.raises(FileNotFoundError) as caught:
        session.report(path)
    assert caught.value.filename == str(path)
