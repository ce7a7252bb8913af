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
_TERMINAL_NAMES = tuple(FineTuningJob.State.Name(state) for state in _TERMINAL)
# Without a server after there was one.
_LONGEST_SILENCE_SECONDS = 600.0
# How often a sweep is looked at: it has no stream of its own.
_LOOK_SECONDS = 1.0
# What a look comes to without a server, or with a network that swallows it.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


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
        self._away_since = 0.0

    def request(self) -> WatchFineTuningJobRequest:
        return WatchFineTuningJobRequest(name=self._name, after_sequence=self._sequence)

    def time_left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def take(self, message: WatchFineTuningJobResponse) -> JobUpdate | None:
        """What to deliver; None for a heartbeat and for an event that was delivered before."""
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
        now = time.monotonic()
        if self._failures == 1:  # not when it was last heard: the caller may have been busy with that for an hour
            self._away_since = now
        if self._end is not None and now >= self._end:
            raise Error(grpc.StatusCode.DEADLINE_EXCEEDED, f"{self._name} was not over in time") from error
        if error is not None and (not is_broken_stream(error) or self._gives_up()):
            raise from_grpc(error, self._server) from error
        if self._connected_once and not self._interrupted:
            why = from_grpc(error, self._server).message if error is not None else "the server ended it"
            _LOG.warning("the watch of %s was interrupted after event %d: %s", self._name, self._sequence, why)
            self._interrupted = True
        pause = self._policy.pause(self._failures)
        return pause if self._end is None else min(pause, self._end - now)

    def _gives_up(self) -> bool:
        if self._connected_once:
            return time.monotonic() - self._away_since > _LONGEST_SILENCE_SECONDS
        return self._failures >= self._policy.attempts


def is_sweep_over(sweep: Sweep) -> bool:
    """Whether all of its jobs are. By their counts: a sweep of a list has no jobs in it."""
    counts = {state for state, count in sweep.job_counts.items() if count > 0}
    return bool(counts) and counts.issubset(_TERMINAL_NAMES)


def best_of(sweep: Sweep) -> SweepJob | None:
    """Of the jobs that have succeeded; None if none of them has the metric, and of a sweep of a list."""
    return next((job for job in sweep.jobs if job.job == sweep.best_job), None)


class SweepCursor:
    """Where a watch of a sweep is."""

    def __init__(self, name: str, timeout: float | None) -> None:
        self._name = name
        self._end = None if timeout is None else time.monotonic() + timeout
        self._seen = Sweep()
        self._away_since: float | None = None

    def take(self, sweep: Sweep) -> bool:
        """Whether it is another than it was when it was last looked at."""
        self._away_since = None
        changed = sweep != self._seen
        self._seen.CopyFrom(sweep)  # the caller's may change: to read a count that is not there puts a zero there
        return changed

    def pause_after(self, error: Error | None) -> float:
        """How long to wait before the next look. Raises if there is none."""
        now = time.monotonic()
        if self._end is not None and now >= self._end:
            raise Error(grpc.StatusCode.DEADLINE_EXCEEDED, f"{self._name} was not over in time") from error
        if error is not None:
            was_there = bool(self._seen.name)
            if error.code not in _AWAY or not was_there:
                raise error
            if self._away_since is None:
                self._away_since = now
                _LOG.warning("the watch of %s waits: %s", self._name, error.message)
            if now - self._away_since > _LONGEST_SILENCE_SECONDS:
                raise error
        return _LOOK_SECONDS if self._end is None else min(_LOOK_SECONDS, self._end - now)
