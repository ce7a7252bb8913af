"""How a watch resumes, without the connection: `Client` and `AsyncClient` drive it."""

from __future__ import annotations

import dataclasses
import logging
import time

import grpc

from luthier.errors import Error, from_grpc
from luthier.retry import RetryPolicy, is_broken_stream
from luthier.v1.jobs_pb2 import FineTuningJob, JobEvent, WatchFineTuningJobRequest, WatchFineTuningJobResponse
from luthier.v1.sweeps_pb2 import Sweep, SweepJob

_LOG = logging.getLogger("luthier")
_TERMINAL = (FineTuningJob.SUCCEEDED, FineTuningJob.FAILED, FineTuningJob.CANCELLED)
# Without a server after there was one.
_LONGEST_SILENCE_SECONDS = 600.0
# How often a sweep is looked at: it has no stream of its own.
_LOOK_SECONDS = 1.0


def is_over(job: FineTuningJob) -> bool:
    """SUCCEEDED, FAILED, CANCELLED, or ended in a state that only a newer client knows."""
    return job.state in _TERMINAL or job.HasField("end_time")


@dataclasses.dataclass(frozen=True)
class JobUpdate:
    """The job as it was last seen whole: at the start, after each resumption, and once it is over; and what happened
    to it since, if this is an event."""

    job: FineTuningJob
    event: JobEvent | None = None


class WatchCursor:
    """Where a watch is. Every event is delivered once, in order, without gaps."""

    def __init__(self, name: str, after_sequence: int, timeout: float | None, policy: RetryPolicy, server: str) -> None:
        self._name = name
        self._sequence = after_sequence
        self._end = None if timeout is None else time.monotonic() + timeout
        self._policy = policy
        self._server = server
        self._job = FineTuningJob()
        self._failures = 0
        self._connected_once = False
        self._interrupted = False
        self._last_heard = time.monotonic()

    def request(self) -> WatchFineTuningJobRequest:
        return WatchFineTuningJobRequest(name=self._name, after_sequence=self._sequence)

    def time_left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def take(self, message: WatchFineTuningJobResponse) -> JobUpdate | None:
        """What to deliver; None for a heartbeat and for an event that was delivered before."""
        self._last_heard = time.monotonic()
        self._connected_once = True
        self._failures = 0
        if self._interrupted:
            _LOG.warning("the watch of %s goes on after event %d", self._name, self._sequence)
            self._interrupted = False
        if message.HasField("job"):
            self._job = message.job
            # Less than what was delivered: the server was restored from a backup, and goes on numbering from there.
            self._sequence = min(self._sequence, self._job.last_event_sequence)
            return JobUpdate(self._job)
        if message.HasField("event") and message.event.sequence > self._sequence:
            self._sequence = message.event.sequence
            return JobUpdate(self._job, message.event)
        return None

    def over(self, error: grpc.RpcError | None) -> bool:
        """Whether a stream that ended like this was the last one."""
        return error is None and is_over(self._job)

    def pause_after(self, error: grpc.RpcError | None) -> float:
        """How long to wait before the next stream. Raises if there is none."""
        self._failures += 1
        if self._end is not None and time.monotonic() >= self._end:
            raise Error(grpc.StatusCode.DEADLINE_EXCEEDED, f"{self._name} was not over in time") from error
        if error is not None and (not is_broken_stream(error) or self._gives_up()):
            raise from_grpc(error, self._server) from error
        if self._connected_once and not self._interrupted:
            why = from_grpc(error, self._server).message if error is not None else "the server ended it"
            _LOG.warning("the watch of %s was interrupted after event %d: %s", self._name, self._sequence, why)
            self._interrupted = True
        return self._policy.pause(self._failures)

    def _gives_up(self) -> bool:
        if self._connected_once:
            return time.monotonic() - self._last_heard > _LONGEST_SILENCE_SECONDS
        return self._failures >= self._policy.attempts


def is_sweep_over(sweep: Sweep) -> bool:
    """Whether all of its jobs are."""
    return all(job.state in _TERMINAL for job in sweep.jobs)


def best_of(sweep: Sweep) -> SweepJob | None:
    """Of the jobs that have succeeded; None if none of them has the metric."""
    return next((job for job in sweep.jobs if job.job == sweep.best_job), None)


class SweepCursor:
    """Where a watch of a sweep is."""

    def __init__(self, name: str, timeout: float | None) -> None:
        self._name = name
        self._end = None if timeout is None else time.monotonic() + timeout
        self._last_heard: float | None = None
        self._seen: Sweep | None = None

    def take(self, sweep: Sweep) -> bool:
        """Whether it is another than it was when it was last looked at."""
        self._last_heard = time.monotonic()
        changed = sweep != self._seen
        self._seen = sweep
        return changed

    def pause_after(self, error: Error | None) -> float:
        """How long to wait before the next look. Raises if there is none."""
        if self._end is not None and time.monotonic() >= self._end:
            raise Error(grpc.StatusCode.DEADLINE_EXCEEDED, f"{self._name} was not over in time") from error
        if error is not None:
            away = error.code == grpc.StatusCode.UNAVAILABLE and self._last_heard is not None
            if not away or time.monotonic() - (self._last_heard or 0.0) > _LONGEST_SILENCE_SECONDS:
                raise error
            _LOG.warning("the watch of %s waits: %s", self._name, error.message)
        return _LOOK_SECONDS if self._end is None else min(_LOOK_SECONDS, max(0.0, self._end - time.monotonic()))
