"""Draws the pictures of the documentation: `python docs/images/draw.py` writes SVG files beside it.

All pictures have one style: boxes, arrows and text on a transparent background, in colours that
follow the reader's light or dark scheme. Lengths are in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from rhapsody.allocation import Node
from rhapsody.inference.replicas.placement import place

HERE = Path(__file__).parent

STYLE = """
    text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2933 }
    .small { font-size: 12px; fill: #52606d }
    .bold { font-weight: 600 }
    .code { font-family: ui-monospace, Menlo, "DejaVu Sans Mono", monospace; font-size: 13px }
    .box, .dot { stroke-width: 1.5 }
    .plain { fill: #f5f7fa; stroke: #9aa5b1 }
    .blue { fill: #e3eefc; stroke: #2f6fc0 }
    .green { fill: #e2f5e9; stroke: #2b8a57 }
    .amber { fill: #fdf1d8; stroke: #b7791f }
    .red { fill: #fde5e5; stroke: #c03b3b }
    .area { fill: none; stroke: #9aa5b1; stroke-width: 1.5; stroke-dasharray: 5 4 }
    .line { fill: none; stroke: #52606d; stroke-width: 1.5 }
    .head { fill: #52606d }
    @media (prefers-color-scheme: dark) {
      text { fill: #e4e7eb }
      .small { fill: #b0b8c1 }
      .plain { fill: #323f4b; stroke: #7b8794 }
      .blue { fill: #1f3a5f; stroke: #6ea8f0 }
      .green { fill: #1c4532; stroke: #5fc08c }
      .amber { fill: #55400f; stroke: #e0b050 }
      .red { fill: #5c2323; stroke: #ee8a8a }
      .area { stroke: #7b8794 }
      .line { stroke: #b0b8c1 }
      .head { fill: #b0b8c1 }
    }
""".strip("\n")


class Drawing:
    """A picture.

    Args:
        width: Width of the picture.
        height: Height of the picture.
        title: Description for readers who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = width, height
        self._title = title
        self._items: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "middle") -> None:
        """Draw a line of text with its baseline at `y`."""
        kind = f' class="{style}"' if style else ""
        self._items.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, *lines: str, colour: str = "plain"
    ) -> None:
        """Draw a box with centred lines: the first is bold, and lines with a leading ` are code."""
        self._items.append(
            f'<rect class="box {colour}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
            ' rx="6"/>'
        )
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for index, line in enumerate(lines):
            style = "code" if line.startswith("`") else "small" if index else "bold"
            self.text(x + width / 2, top + 18 * index, line.lstrip("`"), style)

    def area(self, x: float, y: float, width: float, height: float, name: str) -> None:
        """Draw a dashed frame with a name in its upper left corner."""
        self._items.append(
            f'<rect class="area" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>'
        )
        self.text(x + 12, y + 20, name, "small", "start")

    def arrow(self, *points: tuple[float, float], both: bool = False) -> None:
        """Draw an arrow along points, with a head at the end or at both ends."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        start = ' marker-start="url(#head)"' if both else ""
        self._items.append(f'<path class="line" d="{path}" marker-end="url(#head)"{start}/>')

    def line(self, *points: tuple[float, float]) -> None:
        """Draw a line along points."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        self._items.append(f'<path class="line" d="{path}"/>')

    def dot(self, x: float, y: float) -> None:
        """Draw a dot."""
        self._items.append(f'<circle class="dot blue" cx="{x:g}" cy="{y:g}" r="4"/>')

    def svg(self) -> str:
        """Return the text of the SVG file."""
        width, height = self._size
        items = "\n  ".join(self._items)
        return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
width="{width}" height="{height}" role="img" aria-label="{escape(self._title)}">
  <title>{escape(self._title)}</title>
  <style>
{STYLE}
  </style>
  <defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" \
orient="auto-start-reverse"><path class="head" d="M0 0.5 L8 4 L0 7.5 z"/></marker></defs>
  {items}
</svg>
"""


def overview() -> Drawing:
    """The parts of a program."""
    d = Drawing(760, 372, "A session or an AsyncFlow engine sends tasks to backends")
    d.area(8, 8, 744, 112, "your program")
    d.box(40, 36, 310, 68, "Session", "`ComputeTask, AITask", colour="blue")
    decorators = "`@flow.function_task, @flow.ai_task"
    d.box(410, 36, 310, 68, "AsyncFlow engine", decorators, colour="blue")
    d.box(40, 150, 680, 36, "one protocol for all backends")
    for x in (195, 565):
        d.arrow((x, 104), (x, 148))
    backends = (
        ("concurrent", "threads, processes,", "of this machine"),
        ("dask", "the workers of", "a Dask cluster"),
        ("dragon", "the nodes of", "a Dragon runtime"),
        ("dragon_vllm", "model servers:", "replicas of a model"),
    )
    for index, (name, *where) in enumerate(backends):
        x = 40 + index * 175
        d.arrow((x + 77, 186), (x + 77, 226))
        d.box(x, 228, 155, 40, f"`{name}", colour="green" if index < 3 else "amber")
        d.arrow((x + 77, 268), (x + 77, 300))
        d.text(x + 77, 318, where[0], "small")
        d.text(x + 77, 335, where[1], "small")
    d.text(292, 362, "functions and executables", "bold")
    d.text(642, 362, "prompts", "bold")
    return d


def states() -> Drawing:
    """The states of a task."""
    d = Drawing(700, 212, "The states of a task: PENDING, RUNNING, then DONE, FAILED or CANCELED")
    d.box(10, 80, 120, 48, "PENDING", "queued")
    d.box(220, 80, 120, 48, "RUNNING", "on a worker", colour="blue")
    d.box(480, 8, 205, 48, "DONE", "has a result", colour="green")
    d.box(480, 80, 205, 48, "FAILED", "has an exception", colour="red")
    d.box(480, 152, 205, 48, "CANCELED", "its work was stopped", colour="amber")
    d.arrow((130, 104), (218, 104))
    d.arrow((340, 104), (478, 104))
    d.arrow((410, 104), (410, 32), (478, 32))
    d.arrow((410, 104), (410, 176), (478, 176))
    d.line((70, 128), (70, 176), (410, 176))
    d.text(240, 168, "cancelled before the start", "small")
    return d


def two_loops() -> Drawing:
    """The caller's event loop and the service loop."""
    d = Drawing(760, 226, "Your event loop, the service loop, and where tasks run")
    d.area(8, 8, 226, 210, "your loop, your thread")
    d.box(24, 44, 194, 46, "your coroutines", colour="blue")
    d.box(24, 100, 194, 46, "Session, engine", colour="blue")
    d.box(24, 156, 194, 46, "functions of AI tasks", colour="blue")
    d.area(300, 8, 206, 210, "service loop, its own thread")
    d.box(316, 44, 174, 46, "backends", colour="green")
    d.box(316, 100, 174, 46, "batcher, monitoring", colour="green")
    d.box(316, 156, 174, 46, "HTTP server", colour="green")
    d.area(572, 8, 180, 210, "workers and servers")
    d.box(584, 44, 156, 46, "threads, processes")
    d.box(584, 100, 156, 46, "Dask, Dragon")
    d.box(584, 156, 156, 46, "replicas")
    for x in (234, 506):
        d.arrow((x + 4, 95), (x + 62, 95))
        d.arrow((x + 62, 142), (x + 4, 142))
        d.text(x + 33, 86, "tasks", "small")
        d.text(x + 33, 162, "results", "small")
    return d


def prompt_path() -> Drawing:
    """Draw the path of a prompt to a replica."""
    d = Drawing(760, 268, "Prompts from tasks, Python and HTTP reach the replicas")
    d.box(8, 18, 160, 46, "AI tasks", "of sessions and engines", colour="blue")
    d.box(8, 84, 160, 46, "`generate(...)", "from Python", colour="blue")
    d.box(8, 150, 160, 46, "`POST /generate", "over HTTP", colour="blue")
    d.box(8, 214, 160, 46, "`/v1/...", "OpenAI clients", colour="blue")
    d.box(240, 62, 130, 90, "batcher", "groups prompts", "that arrive", "together")
    d.box(424, 62, 136, 90, "pool", "spreads batches,", "restarts replicas,", "retries prompts")
    for index in range(3):
        d.box(630, 18 + 82 * index, 122, 56, f"replica {index}", "a model server", colour="amber")
        d.arrow((560, 107), (594, 107), (594, 46 + 82 * index), (628, 46 + 82 * index))
    for y in (41, 107, 173):
        d.arrow((168, y), (204, y), (204, 107), (238, 107))
    d.arrow((370, 107), (422, 107))
    d.arrow((168, 237), (492, 237), (492, 154))
    d.text(330, 229, "forwarded, with streaming", "small")
    return d


def _bar(d: Drawing, x: float, y: float, width: float, words: str, colour: str) -> None:
    d.box(x, y, width, 26, colour=colour)
    d.text(x + width / 2, y + 18, words, "small")


def batching() -> Drawing:
    """Draw when a batch is sent."""
    d = Drawing(760, 330, "A batch is sent at once while a replica has room; else prompts wait")
    scenes = (
        ("A replica has room:", "sent at once", [(60, 1)], 60, None),
        ("All are busy:", "sent when one has room", [(60, 1), (110, 2), (170, 1)], 250, "busy"),
        ("Many prompts:", "sent when the batch is full", [(60, 2), (90, 3), (120, 3)], 120, "busy"),
        ("Busy for long:", "sent after the longest wait", [(60, 1), (150, 1)], 360, "busy"),
    )
    for row, (case, action, arrivals, sent, busy) in enumerate(scenes):
        y = 44 + 74 * row
        d.text(8, y, case, "bold", "start")
        d.text(8, y + 18, action, "small", "start")
        d.line((230, y + 8), (640, y + 8))
        if busy:
            free = 250 if row == 1 else 410
            _bar(d, 230, y + 12, free, "all replicas are busy", "red")
            if row == 1:
                _bar(d, 230 + free, y + 12, 160, "room", "green")
        else:
            _bar(d, 230, y + 12, 410, "room", "green")
        for at, count in arrivals:
            for n in range(count):
                d.dot(230 + at, y - 2 - 9 * n)
        d.arrow((230 + sent + 14, y + 6), (230 + sent + 14, y - 26))
        total = sum(count for _, count in arrivals)
        d.text(230 + sent + 22, y - 16, f"batch of {total}", "small", "start")
    d.text(650, 56, "time →", "small", "start")
    d.text(650, 204, "max_batch_size", "code small", "start")
    d.text(650, 278, "max_batch_", "code small", "start")
    d.text(650, 293, "wait_ms", "code small", "start")
    return d


def _nodes(
    d: Drawing, x: float, y: float, count: int, *, first: int = 0, tp_size: int = 1, gpus: int = 4
) -> None:
    """Draw nodes with the replicas that a service with these parameters places on them."""
    hosts = [Node(f"node {first + n}", gpus=tuple(range(gpus))) for n in range(count)]
    places = place(hosts, num_nodes=count, num_gpus=gpus, tp_size=tp_size, offset=0)
    for row, host in enumerate(hosts):
        top = y + 114 * row
        d.area(x, top, 24 + 74 * gpus, 104, host.name)
        for number, where in enumerate(places):
            if where.node != host:
                continue
            left = x + 12 + 74 * int(where.gpus[0])
            colour = "amber" if tp_size == 1 else "green"
            d.box(left, top + 30, 74 * tp_size - 6, 64, colour=colour)
            d.text(left + 37 * tp_size - 3, top + 50, f"r{number}", "bold")
            for index, gpu in enumerate(where.gpus):
                d.box(left + 5 + 74 * index, top + 60, 58, 26, f"`GPU {gpu}")


def placement_one() -> Drawing:
    """One node with one GPU."""
    d = Drawing(330, 128, "One replica on the one GPU of one node")
    _nodes(d, 8, 12, 1, gpus=1)
    d.text(128, 56, "1 node with 1 // 1", "small", "start")
    d.text(128, 76, "= 1 replica", "bold", "start")
    return d


def placement_many() -> Drawing:
    """Four nodes with four GPUs each."""
    d = Drawing(690, 490, "Sixteen replicas of one GPU each on four nodes, or eight of two GPUs")
    for x, tp_size, replicas in ((8, 1, 16), (352, 2, 8)):
        d.text(x, 20, f"tp_size={tp_size}: {replicas} replicas", "code", "start")
        _nodes(d, x, 32, 4, tp_size=tp_size)
    return d


def placement_offset() -> Drawing:
    """Two services on different nodes."""
    d = Drawing(690, 490, "Two services: one on nodes 0 and 1, one on nodes 2 and 3")
    services = (
        ("small", 0, 1, "8 replicas, port 8000"),
        ("large", 2, 4, "2 replicas, port 8001"),
    )
    for name, offset, tp_size, what in services:
        y = 12 + 124 * offset
        _nodes(d, 8, y, 2, first=offset, tp_size=tp_size)
        d.text(356, y + 88, name, "bold", "start")
        numbers = (f"offset={offset}, num_nodes=2", f"num_gpus=4, tp_size={tp_size}", what)
        for index, line in enumerate(numbers):
            d.text(356, y + 112 + 20 * index, line, "code", "start")
    return d


def cluster() -> Drawing:
    """A batch job on several nodes."""
    d = Drawing(760, 300, "A batch job: the program on the first node, workers and replicas on all")
    d.box(8, 116, 120, 62, "`sbatch job.sh", "login node")
    d.area(170, 8, 582, 284, "the job's nodes")
    d.arrow((128, 147), (168, 147))
    nodes = (("node 0", 36), ("node 1", 122), ("node 2", 208))
    for index, (name, y) in enumerate(nodes):
        d.text(184, y + 42, name, "small", "start")
        if not index:
            lines = "your program", "session or engine,", "HTTP server"
            d.box(238, y, 150, 74, *lines, colour="blue")
        d.box(424, y, 140, 74, "workers", "functions,", "executables", colour="green")
        d.box(586, y, 150, 74, "replicas", "a model server", "per tp_size GPUs", colour="amber")
    d.arrow((388, 73), (422, 73))
    d.line((405, 73), (405, 245))
    d.arrow((405, 159), (422, 159))
    d.arrow((405, 245), (422, 245))
    d.text(312, 150, "the job script runs", "small")
    d.text(312, 168, "dragon program.py", "code")
    return d


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "overview": overview,
    "states": states,
    "two-loops": two_loops,
    "prompt-path": prompt_path,
    "batching": batching,
    "placement-one": placement_one,
    "placement-many": placement_many,
    "placement-offset": placement_offset,
    "cluster": cluster,
}


def drawings() -> Iterator[tuple[Path, str]]:
    """Yield each file with its content."""
    for name, draw in DRAWINGS.items():
        yield HERE / f"{name}.svg", draw().svg()


if __name__ == "__main__":
    for path, text in drawings():
        path.write_text(text)
