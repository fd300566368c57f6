"""Read by every Python of the two nodes: gives Dragon's TCP agents time to rest.

Dragon 0.15's `Queue.poll` returns at once whatever its timeout, so each of these agents, two on
each host, asks as fast as it can whether there is a message for it. On real nodes that takes two
CPUs; two nodes on one small machine have nothing left for the tests.
"""

import sys
import time

REST_SECONDS = 0.02

if "dragon-tcp" in getattr(sys, "orig_argv", ()):
    from dragon.native.queue import Queue

    poll_once = Queue.poll

    def poll(self: Queue, timeout: float = 0) -> bool:
        deadline = time.monotonic() + timeout
        while not poll_once(self, 0):
            if time.monotonic() >= deadline:
                return False
            time.sleep(REST_SECONDS)
        return True

    Queue.poll = poll  # type: ignore[method-assign,assignment]
