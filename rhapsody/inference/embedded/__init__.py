"""The embedded model: a small n-gram language model behind the same routes as a vLLM replica.

It is not a real model. It needs no GPU, no download and no further package, starts in well under a
second, and exists for the quickstart, for tests and for fault drills. Started as a process of its
own: `python -m rhapsody.inference.embedded --model NAME --port 0`.
"""

from rhapsody.inference.embedded.errors import RequestError
from rhapsody.inference.embedded.model import Completion, NgramModel
from rhapsody.inference.embedded.sampling import Sampling

__all__ = ["Completion", "NgramModel", "RequestError", "Sampling"]
