"""Run tasks by Ray: in processes of this machine, or on all machines of a cluster."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from configs import UserError, extras
from configs.streams import messages
from tokenizer.shards.parts import Answer, Engine, Request

_CONNECT_SECONDS, _ANSWER_SECONDS = 4.0, 15.0
_TRIES = 10
"""Tries of a task whose process or machine dies again and again."""
_STORE_BYTES = 100_000_000
"""Memory that Ray shares between processes: answers are small."""


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[Engine]:
    """Return a context with an engine: the cluster at `address`, else so many processes here, None: one a core.

    A cluster that does not answer is a UserError.
    """
    extras.require("ray", extra="ray", purpose="--workers ray")
    # Ray listens on all interfaces: only a client with the token may submit tasks.
    environment = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address is None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:
        environment |= {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE") or "token"}
        _check(address)
    os.environ |= environment
    if address is not None:
        _ask(address)
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        try:
            if address is None:
                ray.init(
                    "local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                    **quiet,
                )
            else:
                ray.init(address, **quiet)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {address}" if address else "Ray"
            raise UserError(f"{where} does not start work ({error}): see its state by ray status") from error
        try:
            yield _run
        finally:
            ray.shutdown()


def _check(address: str) -> None:
    """Raise a UserError if nobody answers at HOST:PORT."""
    try:
        place = urlsplit(f"//{address}")
        host, port = place.hostname, place.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise UserError(f"--address {address}: name the HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}): start its head by ray start --head, or check the address"
        ) from error


def _ask(address: str) -> None:
    """Raise a UserError if it is no Ray cluster that answers; Ray itself would try for minutes."""
    ask = [sys.executable, "-P", "-m", "ray.scripts.scripts", "status", "--address", address]
    fault = f"no answer within {_ANSWER_SECONDS:g} s"
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
        if not answer.returncode:
            return
        errors = [line for line in answer.stderr.splitlines() if "Error: " in line]
        fault = errors[-1].partition(". ")[0] if errors else fault
    except subprocess.TimeoutExpired:
        pass
    raise UserError(
        f"no Ray cluster lets us in at {address} ({fault}): check the address, and that the token is its own"
    )


def _run(task: Callable[[Request], Answer], requests: Sequence[Request]) -> list[Answer]:
    import ray

    remote: Any = ray.remote(num_cpus=1, max_retries=_TRIES)(task)
    name = task.__name__.strip("_").replace("_", " ")
    submitted = [remote.options(name=name).remote(request) for request in requests]
    waiting, shown = submitted, tqdm(total=len(submitted), desc=name, unit=" parts", disable=None, file=messages())
    with shown:
        while waiting:
            ready, waiting = ray.wait(waiting)
            for one in ready:
                _answer(one)
                shown.update()
    return [_answer(one) for one in submitted]


def _answer(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"Ray gave up on a part: {error}") from error
