"""The scaling policy, on simulated loads."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.inference.replicas.scaling import Load, ScalingPolicy

LIMIT = 10
UP, DOWN = 5.0, 60.0


def load(prompts: int, replicas: int, *, tasks_wait: bool = False) -> Load:
    return Load(prompts, replicas, LIMIT, tasks_wait)


def test_first_prompt_starts_a_replica_at_once() -> None:
    policy = ScalingPolicy(0, 4, UP, DOWN)
    assert policy.decide(0, load(0, 0)) == 0
    assert policy.decide(1, load(1, 0)) == 1


def test_unknown_limit_starts_one_replica() -> None:
    assert ScalingPolicy(0, 4, UP, DOWN).decide(0, Load(100, 0, 0)) == 1


def test_load_must_last_before_replicas_are_added() -> None:
    policy = ScalingPolicy(1, 4, UP, DOWN)
    assert policy.decide(0, load(30, 1)) == 1
    assert policy.decide(4.9, load(30, 1)) == 1
    assert policy.decide(5, load(30, 1)) == 4


def test_pause_in_the_load_begins_the_time_anew() -> None:
    policy = ScalingPolicy(1, 4, UP, DOWN)
    assert policy.decide(0, load(30, 1)) == 1
    assert policy.decide(4, load(3, 1)) == 1
    assert policy.decide(6, load(30, 1)) == 1


def test_replicas_go_when_none_was_needed_for_the_whole_time() -> None:
    policy = ScalingPolicy(0, 4, UP, DOWN)
    assert policy.decide(0, load(30, 4)) == 4
    assert policy.decide(1, load(14, 4)) == 4
    assert policy.decide(60, load(0, 4)) == 4
    assert policy.decide(60.5, load(0, 4)) == 2
    assert policy.decide(61.5, load(0, 2)) == 0


def test_waiting_tasks_get_idle_replicas_sooner() -> None:
    policy = ScalingPolicy(0, 4, UP, DOWN)
    assert policy.decide(0, load(30, 4)) == 4
    assert policy.decide(4, load(0, 4, tasks_wait=True)) == 4
    assert policy.decide(6, load(0, 4, tasks_wait=True)) == 0


def test_waiting_tasks_get_no_replica_that_is_needed() -> None:
    policy = ScalingPolicy(0, 4, UP, DOWN)
    assert policy.decide(0, load(30, 4, tasks_wait=True)) == 4


@given(
    bounds=st.tuples(st.integers(0, 5), st.integers(1, 5)).filter(lambda b: b[0] <= b[1]),
    steps=st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 500), st.integers(0, 6), st.booleans()),
        max_size=30,
    ),
)
def test_bounds_are_kept(
    bounds: tuple[int, int], steps: list[tuple[float, int, int, bool]]
) -> None:
    policy = ScalingPolicy(*bounds, UP, DOWN)
    now = 0.0
    for pause, prompts, replicas, tasks_wait in steps:
        now += pause
        wanted = policy.decide(now, load(prompts, replicas, tasks_wait=tasks_wait))
        assert bounds[0] <= wanted <= bounds[1]


@dataclass
class Cluster:
    """Simulated replicas that start in a minute and share their prompts evenly.

    Each takes 10 prompts at a time. Without GPUs no replica starts.
    """

    policy: ScalingPolicy
    start_seconds: float = 60.0
    work_seconds: float = 10.0
    gpus: Callable[[float], int] = lambda now: 100
    now: float = 0.0
    ready: int = 0
    starting: list[float] = field(default_factory=list)
    waiting: deque[float] = field(default_factory=deque)
    ends: deque[float] = field(default_factory=deque)
    waits: list[float] = field(default_factory=list)
    history: list[int] = field(default_factory=list)
    """The number of replicas in each second."""

    def run(self, seconds: int, rate: Callable[[float], float]) -> "Cluster":
        """Simulate some seconds, with so many new prompts a second as `rate` returns."""
        due = 0.0
        for _ in range(seconds):
            self.now += 1
            due += rate(self.now)
            self.waiting.extend([self.now] * math.floor(due))
            due -= math.floor(due)
            self._step()
        return self

    def _step(self) -> None:
        while self.ends and self.ends[0] <= self.now:
            self.ends.popleft()
        self.ready += sum(at <= self.now for at in self.starting)
        self.starting = [at for at in self.starting if at > self.now]
        while self.waiting and len(self.ends) < self.ready * LIMIT:
            self.waits.append(self.now - self.waiting.popleft())
            self.ends.append(self.now + self.work_seconds)
        running = self.ready + len(self.starting)
        gpus = self.gpus(self.now)
        prompts = len(self.waiting) + len(self.ends)
        wanted = self.policy.decide(self.now, Load(prompts, running, LIMIT, running > gpus))
        for _ in range(min(wanted, gpus) - running):
            self.starting.append(self.now + self.start_seconds)
        while running > wanted and (self.starting or self.ready):
            if self.starting:
                self.starting.pop()
            else:
                self.ready -= 1
            running -= 1
        self.history.append(self.ready + len(self.starting))

    @property
    def changes(self) -> int:
        """How often the number of replicas changed from growing to shrinking, or back."""
        signs = [b > a for a, b in pairwise(self.history) if a != b]
        return sum(a != b for a, b in pairwise(signs))


def part_within(waits: list[float], seconds: float) -> float:
    return sum(wait <= seconds for wait in waits) / len(waits)


def test_steady_load_settles_on_one_number() -> None:
    cluster = Cluster(ScalingPolicy(0, 8, UP, 300)).run(3600, lambda now: 3)
    assert len(set(cluster.history[600:])) == 1
    assert cluster.changes <= 1
    assert max(cluster.waits[len(cluster.waits) // 5 :]) <= UP


def test_daily_curve_is_followed_without_waiting() -> None:
    day = 86_400

    def rate(now: float) -> float:
        return 3 - 2.9 * math.cos(2 * math.pi * now / day)

    cluster = Cluster(ScalingPolicy(1, 8, UP, 300)).run(day, rate)
    assert max(cluster.history) == 8
    assert cluster.history[-1] == 1
    assert cluster.changes <= 4
    assert part_within(cluster.waits, UP) > 0.99


@pytest.mark.parametrize("pause", [30, 120, 280])
def test_bursts_with_pauses_do_not_flap(pause: int) -> None:
    def rate(now: float) -> float:
        return 6 if now % (60 + pause) < 60 else 0

    cluster = Cluster(ScalingPolicy(0, 8, UP, 300)).run(7200, rate)
    assert cluster.changes <= 1, "replicas stay over pauses shorter than down_after"


def test_rare_bursts_end_at_zero_in_between() -> None:
    cluster = Cluster(ScalingPolicy(0, 8, UP, 300)).run(
        6 * 3600, lambda now: 6 if now % 3600 < 60 else 0
    )
    assert cluster.history[-2] == 0
    assert cluster.changes <= 2 * 6, "up and down once for each burst"


def test_short_burst_that_one_replica_absorbs_starts_no_other() -> None:
    cluster = Cluster(ScalingPolicy(1, 8, UP, 300), work_seconds=2, ready=1)
    cluster.run(600, lambda now: 6 if now % 300 < 3 else 0)
    assert max(cluster.history) == 1


def test_phase_of_simulation_gets_the_gpus_and_returns_them() -> None:
    """The model serves for 20 minutes, tasks take all GPUs but one for 20, then it serves again."""

    def gpus(now: float) -> int:
        return 1 if 1200 <= now < 2400 else 8

    def rate(now: float) -> float:
        return 0.2 if 1190 <= now < 2400 else 5

    cluster = Cluster(ScalingPolicy(1, 8, UP, 300), gpus=gpus).run(3600, rate)
    assert cluster.history[1100] == 7
    assert set(cluster.history[1230:2400]) == {1}, "not after down_after, but at once"
    assert cluster.history[-1] == 7
    assert cluster.changes <= 3, "up, with one more for the prompts that waited, down, and again"
