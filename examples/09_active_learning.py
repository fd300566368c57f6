"""Active learning: simulate, ask the model, decide, and repeat until the search converges.

Which angle and how much backspin make a golf ball fly farthest? Every round simulates a few flights
in parallel. A Gaussian process, fitted to all flights so far, predicts where the expected
improvement is largest; the next flights start there. The search has converged when the expected
improvement is below 10 cm in two consecutive rounds. Meanwhile the model comments on the round. The
comment is printed and has no influence: the embedded model is not a real model.

Needs nothing but Rhapsody. Takes 2 seconds.

    python examples/09_active_learning.py
"""

import asyncio
import math
import random
import tempfile
import textwrap
from collections.abc import Callable
from operator import mul
from statistics import NormalDist, fmean, pstdev

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend

FLIGHTS, ROUNDS, ENOUGH = 4, 12, 0.1  # flights per round; most rounds; metres
Point = tuple[float, float]  # angle and backspin, both scaled to 0..1


def launch(point: Point) -> Point:
    """Return the angle in degrees and the backspin in rpm."""
    return 2 + 28 * point[0], 500 + 6000 * point[1]


def carry(point: Point, step: float = 0.005) -> float:
    """Follow a ball hit at 70 m/s, with drag and lift after Smits and Smith (1994), in metres."""
    angle, spin = launch(point)
    radius, mass, density = 0.02135, 0.04593, 1.2
    vx, vy = 70 * math.cos(math.radians(angle)), 70 * math.sin(math.radians(angle))
    x = y = 0.0
    while y >= 0:
        speed = math.hypot(vx, vy)
        ratio = spin * math.tau / 60 * radius / speed
        push = density * math.pi * radius**2 / (2 * mass) * speed * step
        drag, lift = (0.24 + 0.18 * ratio) * push, 0.54 * ratio**0.4 * push
        vx, vy = vx - drag * vx - lift * vy, vy - drag * vy + lift * vx - 9.81 * step
        x, y = x + vx * step, y + vy * step
    return x - vx * y / vy  # where it hits the ground, between the last two steps


def fit(known: dict[Point, float]) -> Callable[[Point], tuple[float, float]]:
    """Fit a Gaussian process; return its prediction, a mean and a standard deviation."""
    centre, scale = fmean(known.values()), pstdev(known.values())
    points, rows = list(known), []  # the rows of the Cholesky factor of the covariances

    def solve(values: list[float]) -> list[float]:
        solved: list[float] = []
        for row, value in zip(rows, values, strict=True):
            solved.append((value - sum(map(mul, row, solved))) / row[-1])
        return solved

    def covariances(point: Point) -> list[float]:
        return [math.exp(-(math.dist(point, p) ** 2) / 0.2) for p in points[: len(rows)]]

    for point in points:
        row = solve(covariances(point))
        rows.append([*row, math.sqrt(1 + 1e-6 - sum(x * x for x in row))])
    heights = solve([(value - centre) / scale for value in known.values()])

    def predict(point: Point) -> tuple[float, float]:
        row = solve(covariances(point))
        variance = max(1e-9, 1 - sum(x * x for x in row))
        return centre + scale * sum(map(mul, row, heights)), scale * math.sqrt(variance)

    return predict


def propose(known: dict[Point, float]) -> tuple[float, list[Point]]:
    """Return the largest expected improvement, and the points of the next flights."""
    dice, expected, gains = random.Random(len(known)), dict(known), []
    for _ in range(FLIGHTS):
        predict, best = fit(expected), max(expected, key=expected.__getitem__)
        anywhere = [(dice.random(), dice.random()) for _ in range(200)]
        nearby = [tuple(min(1, max(0, dice.gauss(x, 0.05))) for x in best) for _ in range(100)]
        improvements = {}
        for point in anywhere + nearby:
            mean, deviation = predict(point)
            z = (mean - expected[best]) / deviation
            improvements[point] = deviation * (z * NormalDist().cdf(z) + NormalDist().pdf(z))
        point = max(improvements, key=improvements.__getitem__)
        gains.append(improvements[point])
        expected[point] = predict(point)[0]  # assumed, so that the other flights start elsewhere
    return gains[0], list(expected)[-FLIGHTS:]


async def main() -> None:
    model = DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", use_service=False
    )
    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create([ConcurrentExecutionBackend(), model], work_dir=folder)

        @flow.function_task
        async def simulate(point):
            return carry(point)

        @flow.function_task
        async def decide(known):
            return propose(known)

        @flow.ai_task(max_tokens=24, system_prompt="You comment on experiments in one sentence.")
        async def comment(summary):
            return f"{summary}. What does that say about the flight of a ball?"

        dice, known, before = random.Random(0), {}, math.inf
        points = [(dice.random(), dice.random()) for _ in range(6)]
        for number in range(1, ROUNDS + 1):
            known |= zip(points, await asyncio.gather(*map(simulate, points)), strict=True)
            best = max(known, key=known.__getitem__)
            angle, spin = launch(best)
            found = f"{known[best]:.2f} m, at {angle:.1f} degrees and {spin:.0f} rpm"
            words = comment(f"The longest of {len(known)} flights was {found}")
            gain, points = await decide(known)
            print(f"Round {number}: {len(known)} flights, the longest {found}")
            print(f"  expected improvement: {gain:.2f} m")
            print(textwrap.fill(f"  the model says: {await words}", 78, subsequent_indent="  "))
            if max(gain, before) < ENOUGH:
                print(f"Converged after {number} rounds: {found}.")
                break
            before = gain
        else:
            print(f"Not converged within {ROUNDS} rounds; the best so far is {found}.")

        grid = [(i / 20, j / 20) for i in range(21) for j in range(21)]
        longest = max(await asyncio.gather(*map(simulate, grid)))
        print(f"For comparison, the longest of {len(grid)} flights on a grid: {longest:.2f} m.")
        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
