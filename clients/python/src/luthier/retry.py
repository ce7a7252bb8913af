"""When a call that failed is made again, and after which pause. The same rules as client/lib/retry.cc."""

from __future__ import annotations

import dataclasses
import random
import time

import grpc

from luthier.errors import code_of, from_grpc


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """Times in seconds."""

    # About 2 s in all with the pauses below: a restarting server is back by then.
    attempts: int = 4
    initial_pause: float = 0.25
    longest_pause: float = 5.0

    def pause(self, failures: int) -> float:
        """The pause after so many failures in a row, from 1. Random, so that clients do not come back all at once."""
        doubled: float = self.initial_pause * 2 ** min(failures - 1, 20)
        return min(doubled, self.longest_pause) * random.uniform(0.5, 1.5)


class Attempts:
    """The tries of one call, which all have to fit into its timeout."""

    def __init__(self, policy: RetryPolicy, server: str, timeout: float, *, repeatable: bool) -> None:
        self._policy = policy
        self._server = server
        self._end = time.monotonic() + timeout
        self._left = policy.attempts if repeatable else 1
        self._failures = 0

    def time_left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def pause_after(self, error: grpc.RpcError) -> float:
        """How long to wait before the next try. Raises if there is none."""
        self._failures += 1
        pause = self._policy.pause(self._failures)
        unavailable = code_of(error) == grpc.StatusCode.UNAVAILABLE
        if not unavailable or self._failures >= self._left or pause >= self.time_left():
            raise from_grpc(error, self._server) from error
        return pause


def is_broken_stream(error: grpc.RpcError) -> bool:
    """Whether a stream was broken on the way, by a restart or by the network: a cursor makes it whole again."""
    return code_of(error) in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # a watcher that was too slow is cut and told to resume
        grpc.StatusCode.INTERNAL,  # a reset in the middle of a message, as proxies send it
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,  # by the server's end
    )
