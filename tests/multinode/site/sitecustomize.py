"""Makes Dragon's TCP agents sleep between polls; read by every Python of the two nodes.

`Queue.poll` of Dragon 0.15 ignores its timeout and returns at once, so each TCP agent, two on each
node, polls without a pause. On real nodes this takes two CPUs; two nodes on one small machine would
have no CPU left for the tests.
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

    Queue.poll = poll
