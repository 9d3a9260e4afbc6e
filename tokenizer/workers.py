"""Encode in processes of their own, for the interpreter's lock lets threads do it only one after the other.

They are plain child processes that talk over their standard input and output. Those of `multiprocessing` would either
copy a parent with threads, which can hang, or import its main module, and torch with it, in each.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import cast

from tokenizers import Tokenizer

from tokenizer.lookup import Encoded, Lookup

MAXIMUM_WORKERS = 4
"""More cannot be kept busy by the one process that reads and cleans, and each takes up to 250 MB."""


class Workers:
    """Processes that encode texts as `Lookup` does, started when there is enough text to be worth it."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        """Have at most `count` processes; with 0 everything is encoded here, at once."""
        self._tokenizer = tokenizer
        self.count = count
        self._here: Lookup | None = None
        self._local = threading.local()
        self._open = ExitStack()
        self._threads = self._open.enter_context(ThreadPoolExecutor(max(1, count)))
