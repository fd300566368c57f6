"""The embedded model: a small n-gram language model behind the same routes as a vLLM replica.

It is not a real model. It needs no GPU, no download and no further package, starts in well under a
second, and exists for the quickstart, for tests and for fault drills. It runs in a process of its
own: `python -m rhapsody.inference.embedded --model NAME --port 0`.
"""

from rhapsody.inference.embedded.model import NgramCompletion, NgramModel
from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["NgramCompletion", "NgramModel", "RequestError", "Sampling"]
