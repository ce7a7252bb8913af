"""The API as functions that block."""

from __future__ import annotations

import abc
import datetime
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import grpc

from luthier import calls, channel
from luthier.calls import Call, Listing, full_name
from luthier.errors import Error
from luthier.files import Damaged, DatasetUpload, FolderDownload, Path
from luthier.retry import Attempts, RetryPolicy
from luthier.v1 import (
    admin_pb2_grpc, datasets_pb2, datasets_pb2_grpc, jobs_pb2, jobs_pb2_grpc, models_pb2, models_pb2_grpc, nodes_pb2,
    nodes_pb2_grpc, queues_pb2, queues_pb2_grpc, sweeps_pb2_grpc,
)
from luthier.v1.jobs_pb2 import FineTuningJob, FineTuningSpec, ModelExport
from luthier.v1.sweeps_pb2 import Sweep, SweepJob
from luthier.watch import JobUpdate, SweepCursor, WatchCursor, best_of, is_sweep_over

Reply = TypeVar("Reply")


class Stubs:
    """The generated stubs, for what has no function of its own. Pass `metadata=client.metadata`, which is the token."""

    def __init__(self, to: Any) -> None:
        self.admin = admin_pb2_grpc.AdminServiceStub(to)
        self.datasets = datasets_pb2_grpc.DatasetServiceStub(to)
        self.jobs = jobs_pb2_grpc.FineTuningServiceStub(to)
        self.models = models_pb2_grpc.ModelServiceStub(to)
        self.nodes = nodes_pb2_grpc.NodeServiceStub(to)
        self.queues = queues_pb2_grpc.QueueServiceStub(to)
        self.sweeps = sweeps_pb2_grpc.SweepServiceStub(to)


class Connection(abc.ABC):
    """What Client and AsyncClient have in common: where, as whom, and how long. Times are in seconds."""

    @abc.abstractmethod
    def _dial(self, tls: channel.Tls | None) -> Any:
        """The channel."""

    def __init__(
        self,
        server: str | None = None,
        *,
        token: str | None = None,
        tls: channel.Tls | None = None,
        retry: RetryPolicy = RetryPolicy(),
        timeout: float = 30.0,
        long_timeout: float = 3600.0,
    ) -> None:
        """What is not given comes from the environment, as for the program `luthier`: LUTHIER_SERVER, LUTHIER_TOKEN or
        LUTHIER_TOKEN_FILE, LUTHIER_TLS_CA, LUTHIER_TLS_CERT and LUTHIER_TLS_KEY. `long_timeout` is that of calls that
        read or hash files before they answer."""
        self.server = channel.checked_server(server or channel.server_from_environment())
        self.retry = retry
        token = channel.token_from_environment() if token is None else channel.checked_token(token, "token")
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._timeout = timeout
        self._long_timeout = long_timeout
        self._channel = self._dial(tls or channel.Tls.from_environment())
        self.stubs = Stubs(self._channel)

    def _attempts(self, call: Call[Any]) -> Attempts:
        timeout = self._long_timeout if call.long else self._timeout
        return Attempts(self.retry, self.server, timeout, repeatable=call.repeatable)

    def _cursor(self, name: str, after_sequence: int, timeout: float | None) -> WatchCursor:
        return WatchCursor(full_name("jobs", name), after_sequence, timeout, self.retry, self.server)


class Client(Connection):
    """A connection to one server; may be used by several threads. Reads, and writes that the API makes safe to repeat,
    are tried again while the server is unavailable. Functions raise `Error`. Names may be given without collection:
    `intents` is `jobs/intents`."""

    def _dial(self, tls: channel.Tls | None) -> grpc.Channel:
        if tls is None:
            return grpc.insecure_channel(self.server, channel.CHANNEL_OPTIONS)
        return grpc.secure_channel(self.server, tls.credentials(), channel.CHANNEL_OPTIONS)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_job(
        self,
        job: FineTuningJob | FineTuningSpec,
        *,
        job_id: str = "",
        request_id: str = "",
        hold: bool = False,
        validate_only: bool = False,
    ) -> FineTuningJob:
        """Creates one job, however often the answer is lost on the way. Give a `request_id` (a UUID) of your own if this
        program may be started again: the same id is the same job."""
        return self._call(calls.create_job(job, job_id, request_id, hold, validate_only))

    def get_job(self, name: str) -> FineTuningJob:
        return self._call(calls.get_job(name))

    def list_jobs(
        self,
        states: Iterable[FineTuningJob.State] = (),
        *,
        matching: str = "",
        order_by: str = "",
        limit: int | None = None,
    ) -> list[FineTuningJob]:
        """Newest first, or as `order_by` says (`create_time`). `matching`: comparisons joined by AND, such as
        `base_model = tiny AND labels.team = "search"`."""
        return self._list(calls.list_jobs(states, matching, order_by), limit)

    def cancel_job(self, name: str) -> FineTuningJob:
        return self._call(calls.cancel_job(name))

    def pause_job(self, name: str) -> FineTuningJob:
        return self._call(calls.pause_job(name))

    def resume_job(self, name: str) -> FineTuningJob:
        return self._call(calls.resume_job(name))

    def start_job(self, name: str) -> FineTuningJob:
        return self._call(calls.start_job(name))

    def retry_job(self, name: str) -> FineTuningJob:
        """Tries a failed or cancelled job again."""
        return self._call(calls.retry_job(name))

    def update_job(
        self,
        name: str,
        *,
        priority: int | None = None,
        labels: Mapping[str, str] | None = None,
        retention: datetime.timedelta | None = None,
        deadline: datetime.datetime | None = None,
        no_deadline: bool = False,
        etag: str = "",
    ) -> FineTuningJob:
        """Changes what is given. A `deadline` without a time zone is one of UTC; `no_deadline` takes away the one that
        it has. With the `etag` of a job that was got, only if nobody has changed it since."""
        return self._call(calls.update_job(name, priority, labels, retention, deadline, no_deadline, etag))

    def clone_job(
        self,
        name: str,
        changes: FineTuningJob | None = None,
        fields: Iterable[str] = (),
        *,
        job_id: str = "",
        request_id: str = "",
        hold: bool = False,
        validate_only: bool = False,
    ) -> FineTuningJob:
        """A new job with the spec of another, and the `fields` (such as `spec.training.epochs`) of `changes`."""
        return self._call(calls.clone_job(name, changes, fields, job_id, request_id, hold, validate_only))

    def export_model_version(
        self,
        name: str,
        form: ModelExport.Format,
        *,
        output_model: str = "",
        job: FineTuningJob | None = None,
        job_id: str = "",
        request_id: str = "",
        hold: bool = False,
        validate_only: bool = False,
    ) -> FineTuningJob:
        """A job that writes the adapter of a version in another form, and publishes that as a version of
        `output_model` (default: the model's name with `-merged` or `-gguf`). `job`: what it has besides, such as its
        priority. One job, as with `create_job`."""
        return self._call(
            calls.export_model_version(name, form, output_model, job, job_id, request_id, hold, validate_only)
        )

    def explain_job(self, name: str) -> jobs_pb2.ExplainFineTuningJobResponse:
        """Why it waits, what is ahead of it, when it is expected to start."""
        return self._call(calls.explain_job(name))

    def estimate_job(self, spec: FineTuningSpec) -> jobs_pb2.EstimateFineTuningJobResponse:
        return self._call(calls.estimate_job(spec))

    def create_checkpoint(self, name: str) -> None:
        """Orders one of a running job, after the step that it is at; `list_checkpoints` has it once it is there."""
        self._call(calls.create_checkpoint(name))

    def list_checkpoints(self, name: str, *, limit: int | None = None) -> list[jobs_pb2.Checkpoint]:
        """Those that a job has reported, oldest first."""
        return self._list(calls.list_checkpoints(name), limit)

    def list_job_events(self, name: str, types: Iterable[str] = ()) -> list[jobs_pb2.JobEvent]:
        """Oldest first."""
        return self._list(calls.list_job_events(name, types), None)

    def watch_job(self, name: str, *, after_sequence: int = 0, timeout: float | None = None) -> Iterator[JobUpdate]:
        """Follows a job to its end across restarts of the server and breaks of the network: every event after
        `after_sequence` once, in order, without gaps. Raises if no server answers at the start, or for ten minutes
        later, or if the job is not over after `timeout`."""
        cursor = self._cursor(name, after_sequence, timeout)
        while True:
            stream = self.stubs.jobs.WatchFineTuningJob(
                cursor.request(), timeout=cursor.time_left(), metadata=self.metadata
            )
            error: grpc.RpcError | None = None
            try:
                for message in stream:
                    if (update := cursor.take(message)) is not None:
                        yield update
            except grpc.RpcError as broken:
                error = broken
            finally:
                stream.cancel()  # also if nobody asks for more
            if cursor.over(error):
                return
            time.sleep(cursor.pause_after(error))

    def wait_job(self, name: str, *, timeout: float | None = None) -> FineTuningJob:
        """The job once it is over."""
        job = FineTuningJob()
        for update in self.watch_job(name, timeout=timeout):
            job = update.job
        return job

    def create_sweep(
        self,
        job: FineTuningJob | FineTuningSpec,
        *,
        grid: Mapping[str, Iterable[Any]] = {},
        points: Iterable[Mapping[str, Any]] = (),
        metric: str = "",
        sweep_id: str = "",
        request_id: str = "",
        max_parallel: int = 0,
        hold: bool = False,
        validate_only: bool = False,
    ) -> Sweep:
        """A job for each combination of the values of `grid`, such as `{"lora.rank": [4, 8]}`, or for each of `points`,
        such as `[{"lora.rank": 4, "training.epochs": 2}]`. One sweep, as with `create_job`. `max_parallel`: how many of
        its jobs run at once; 0: no limit."""
        return self._call(
            calls.create_sweep(job, grid, points, metric, sweep_id, request_id, max_parallel, hold, validate_only)
        )

    def get_sweep(self, name: str) -> Sweep:
        return self._call(calls.get_sweep(name))

    def list_sweeps(self, *, limit: int | None = None) -> list[Sweep]:
        """Without their jobs, newest first."""
        return self._list(calls.list_sweeps(), limit)

    def start_sweep(self, name: str) -> Sweep:
        """Releases all of its jobs that are on hold."""
        return self._call(calls.start_sweep(name))

    def cancel_sweep(self, name: str) -> Sweep:
        """Cancels all of its jobs that are not over."""
        return self._call(calls.cancel_sweep(name))

    def watch_sweep(self, name: str, *, timeout: float | None = None) -> Iterator[Sweep]:
        """The sweep whenever it has changed, until all of its jobs are over; across restarts of the server. Raises as
        `watch_job` does."""
        cursor = SweepCursor(full_name("sweeps", name), timeout)
        while True:
            lost: Error | None = None
            try:
                sweep = self.get_sweep(name)
                if cursor.take(sweep):
                    yield sweep
                if is_sweep_over(sweep):
                    return
            except Error as error:
                lost = error
            time.sleep(cursor.pause_after(lost))

    def wait_sweep(self, name: str, *, timeout: float | None = None) -> Sweep:
        """The sweep once all of its jobs are over."""
        sweep = Sweep()
        for sweep in self.watch_sweep(name, timeout=timeout):
            pass
        return sweep

    def best_job(self, name: str) -> SweepJob | None:
        """Of the jobs of a sweep that have succeeded, by its metric; None if none of them has it."""
        return best_of(self.get_sweep(name))

    def get_queue(self, limit: int = 100) -> queues_pb2.Queue:
        return self._call(calls.get_queue(limit))

    def upload_dataset(self, dataset_id: str, files: Mapping[str, Path]) -> datasets_pb2.Dataset:
        """`files`: a path for each part, `train`, `validation` and `test`. Uploading the same again is no error."""
        upload = DatasetUpload(dataset_id, files, self.retry, self.server)
        while True:
            try:
                dataset: datasets_pb2.Dataset = self.stubs.datasets.UploadDataset(
                    upload.messages(), metadata=self.metadata
                )
                return dataset
            except grpc.RpcError as error:
                time.sleep(upload.pause_after(error))

    def get_dataset(self, name: str) -> datasets_pb2.Dataset:
        return self._call(calls.get_dataset(name))

    def list_datasets(self, *, limit: int | None = None) -> list[datasets_pb2.Dataset]:
        return self._list(calls.list_datasets(), limit)

    def delete_dataset(self, name: str) -> None:
        self._call(calls.delete_dataset(name))

    def register_base_model(
        self, base_model_id: str, source_path: str, *, source: str = "", revision: str = ""
    ) -> models_pb2.BaseModel:
        """`source_path`: a folder in Hugging Face format on the server's machine. `source` and `revision` say where it
        came from, for the record. Repeating it is no error."""
        return self._call(calls.register_base_model(base_model_id, source_path, source, revision))

    def get_base_model(self, name: str) -> models_pb2.BaseModel:
        return self._call(calls.get_base_model(name))

    def list_base_models(self, *, limit: int | None = None) -> list[models_pb2.BaseModel]:
        return self._list(calls.list_base_models(), limit)

    def list_models(self, *, limit: int | None = None) -> list[models_pb2.Model]:
        return self._list(calls.list_models(), limit)

    def get_model_version(self, name: str) -> models_pb2.ModelVersion:
        """`models/{model}/versions/{version}`, where the version may be `latest` or an alias."""
        return self._call(calls.get_model_version(name))

    def list_model_versions(self, model: str, *, limit: int | None = None) -> list[models_pb2.ModelVersion]:
        return self._list(calls.list_model_versions(model), limit)

    def promote_model_version(
        self, name: str, alias: str, *, metric: str = "", at_least: float = 0.0
    ) -> models_pb2.ModelVersion:
        """Points an alias, such as `production`, to a version; if a `metric` such as `exact_match` is given, only if its
        job reached `at_least` that on the test part, from 0 to 1."""
        return self._call(calls.promote_model_version(name, alias, metric, at_least))

    def delete_model_alias(self, name: str) -> None:
        """`models/{model}/versions/{alias}`."""
        self._call(calls.delete_model_alias(name))

    def delete_model_version(self, name: str) -> None:
        """`models/{model}/versions/{number}`, to which no alias points."""
        self._call(calls.delete_model_version(name))

    def delete_base_model(self, name: str) -> None:
        """One that no job uses. What was tuned from it stays."""
        self._call(calls.delete_base_model(name))

    def download_model(self, version: str, to: Path) -> pathlib.Path:
        """Downloads a model version into a new folder, which appears once every file is verified. A download that was
        interrupted goes on where it was; one that is done is not made again."""
        found = self.get_model_version(version)
        return self._download(FolderDownload(found.name, found.files, to, self.retry, self.server))

    def sign_model_version_urls(
        self, name: str, *, lifetime: float = 3600.0
    ) -> models_pb2.SignModelVersionUrlsResponse:
        """URLs with which whoever has them gets the version's files from the server's bucket for `lifetime` seconds,
        without a token."""
        return self._call(calls.sign_model_version_urls(name, lifetime))

    def download_base_model(self, name: str, to: Path) -> pathlib.Path:
        found = self.get_base_model(name)
        return self._download(FolderDownload(found.name, found.files, to, self.retry, self.server))

    def list_nodes(self, *, limit: int | None = None) -> list[nodes_pb2.Node]:
        return self._list(calls.list_nodes(), limit)

    def drain_node(self, name: str, *, requeue: bool = False) -> nodes_pb2.Node:
        return self._call(calls.drain_node(name, requeue))

    def undrain_node(self, name: str) -> nodes_pb2.Node:
        return self._call(calls.undrain_node(name))

    def _call(self, call: Call[Reply]) -> Reply:
        attempts = self._attempts(call)
        method = getattr(getattr(self.stubs, call.service), call.method)
        while True:
            try:
                reply: Reply = method(call.request, timeout=attempts.time_left(), metadata=self.metadata)
                return reply
            except grpc.RpcError as error:
                time.sleep(attempts.pause_after(error))

    def _list(self, listing: Listing[Reply], limit: int | None) -> list[Reply]:
        found: list[Reply] = []
        request = listing.request
        while limit is None or len(found) < limit:
            request.page_size = calls.page_size(limit, len(found))
            response: Any = self._call(Call(listing.service, listing.method, request))
            found.extend(getattr(response, listing.items))
            request.page_token = response.next_page_token
            if not request.page_token:
                break
        return found

    def _download(self, download: FolderDownload) -> pathlib.Path:
        if download.is_there():
            return download.target
        with download.lock():
            for file in download.files():
                while not file.complete():
                    stream = getattr(self.stubs.models, file.method())(file.request(), metadata=self.metadata)
                    try:
                        for message in stream:
                            file.take(message)
                        file.end_of_stream()
                    except (grpc.RpcError, Damaged) as error:
                        time.sleep(file.pause_after(error))
                    finally:
                        stream.cancel()  # also if the disk is full: the server has room for few
            return download.publish()
