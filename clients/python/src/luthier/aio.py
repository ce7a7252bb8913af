"""The API as coroutines: every function as in `Client`."""

from __future__ import annotations

import asyncio
import datetime
import pathlib
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import grpc

from luthier import calls, channel
from luthier.calls import Call, Listing, full_name
from luthier.client import Client, Connection
from luthier.errors import Error
from luthier.files import Damaged, DatasetUpload, FolderDownload, Path
from luthier.v1 import datasets_pb2, jobs_pb2, models_pb2, nodes_pb2, queues_pb2
from luthier.v1.jobs_pb2 import FineTuningJob, FineTuningSpec, ModelExport
from luthier.v1.sweeps_pb2 import Sweep, SweepJob
from luthier.watch import JobUpdate, SweepCursor, best_of, is_sweep_over

Reply = TypeVar("Reply")


class AsyncClient(Connection):
    """`Client` for asyncio. Make it in the event loop that uses it. Files are hashed in threads; their pieces of a
    megabyte are read and written in the loop's."""

    def _dial(self, tls: channel.Tls | None) -> grpc.aio.Channel:
        if tls is None:
            return grpc.aio.insecure_channel(self.server, channel.CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.server, tls.credentials(), channel.CHANNEL_OPTIONS)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def create_job(
        self,
        job: FineTuningJob | FineTuningSpec,
        *,
        job_id: str = "",
        request_id: str = "",
        hold: bool = False,
        validate_only: bool = False,
    ) -> FineTuningJob:
        return await self._call(calls.create_job(job, job_id, request_id, hold, validate_only))

    async def get_job(self, name: str) -> FineTuningJob:
        return await self._call(calls.get_job(name))

    async def list_jobs(
        self,
        states: Iterable[FineTuningJob.State] = (),
        *,
        matching: str = "",
        order_by: str = "",
        limit: int | None = None,
    ) -> list[FineTuningJob]:
        return await self._list(calls.list_jobs(states, matching, order_by), limit)

    async def cancel_job(self, name: str) -> FineTuningJob:
        return await self._call(calls.cancel_job(name))

    async def pause_job(self, name: str) -> FineTuningJob:
        return await self._call(calls.pause_job(name))

    async def resume_job(self, name: str) -> FineTuningJob:
        return await self._call(calls.resume_job(name))

    async def start_job(self, name: str) -> FineTuningJob:
        return await self._call(calls.start_job(name))

    async def retry_job(self, name: str) -> FineTuningJob:
        return await self._call(calls.retry_job(name))

    async def update_job(
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
        return await self._call(calls.update_job(name, priority, labels, retention, deadline, no_deadline, etag))

    async def clone_job(
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
        return await self._call(calls.clone_job(name, changes, fields, job_id, request_id, hold, validate_only))

    async def export_model_version(
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
        return await self._call(
            calls.export_model_version(name, form, output_model, job, job_id, request_id, hold, validate_only)
        )

    async def explain_job(self, name: str) -> jobs_pb2.ExplainFineTuningJobResponse:
        return await self._call(calls.explain_job(name))

    async def estimate_job(self, spec: FineTuningSpec) -> jobs_pb2.EstimateFineTuningJobResponse:
        return await self._call(calls.estimate_job(spec))

    async def create_checkpoint(self, name: str) -> None:
        await self._call(calls.create_checkpoint(name))

    async def list_checkpoints(self, name: str, *, limit: int | None = None) -> list[jobs_pb2.Checkpoint]:
        return await self._list(calls.list_checkpoints(name), limit)

    async def list_job_events(self, name: str, types: Iterable[str] = ()) -> list[jobs_pb2.JobEvent]:
        return await self._list(calls.list_job_events(name, types), None)

    async def watch_job(
        self, name: str, *, after_sequence: int = 0, timeout: float | None = None
    ) -> AsyncIterator[JobUpdate]:
        cursor = self._cursor(name, after_sequence, timeout)
        while True:
            stream = self.stubs.jobs.WatchFineTuningJob(
                cursor.request(), timeout=cursor.time_left(), metadata=self.metadata
            )
            error: grpc.RpcError | None = None
            try:
                async for message in stream:
                    if (update := cursor.take(message)) is not None:
                        yield update
            except grpc.RpcError as broken:
                error = broken
            finally:
                stream.cancel()  # also if nobody asks for more
            if cursor.over(error):
                return
            await asyncio.sleep(cursor.pause_after(error))

    async def wait_job(self, name: str, *, timeout: float | None = None) -> FineTuningJob:
        job = FineTuningJob()
        async for update in self.watch_job(name, timeout=timeout):
            job = update.job
        return job

    async def create_sweep(
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
        return await self._call(
            calls.create_sweep(job, grid, points, metric, sweep_id, request_id, max_parallel, hold, validate_only)
        )

    async def get_sweep(self, name: str) -> Sweep:
        return await self._call(calls.get_sweep(name))

    async def list_sweeps(self, *, limit: int | None = None) -> list[Sweep]:
        return await self._list(calls.list_sweeps(), limit)

    async def start_sweep(self, name: str) -> Sweep:
        return await self._call(calls.start_sweep(name))

    async def cancel_sweep(self, name: str) -> Sweep:
        return await self._call(calls.cancel_sweep(name))

    async def watch_sweep(self, name: str, *, timeout: float | None = None) -> AsyncIterator[Sweep]:
        cursor = SweepCursor(full_name("sweeps", name), timeout)
        while True:
            lost: Error | None = None
            try:
                sweep = await self.get_sweep(name)
                if cursor.take(sweep):
                    yield sweep
                if is_sweep_over(sweep):
                    return
            except Error as error:
                lost = error
            await asyncio.sleep(cursor.pause_after(lost))

    async def wait_sweep(self, name: str, *, timeout: float | None = None) -> Sweep:
        sweep = Sweep()
        async for sweep in self.watch_sweep(name, timeout=timeout):
            pass
        return sweep

    async def best_job(self, name: str) -> SweepJob | None:
        return best_of(await self.get_sweep(name))

    async def get_queue(self, limit: int = 100) -> queues_pb2.Queue:
        return await self._call(calls.get_queue(limit))

    async def upload_dataset(self, dataset_id: str, files: Mapping[str, Path]) -> datasets_pb2.Dataset:
        upload = await asyncio.to_thread(DatasetUpload, dataset_id, files, self.retry, self.server)
        while True:
            try:
                dataset: datasets_pb2.Dataset = await self.stubs.datasets.UploadDataset(
                    upload.messages(), metadata=self.metadata
                )
                return dataset
            except grpc.RpcError as error:
                await asyncio.sleep(upload.pause_after(error))

    async def get_dataset(self, name: str) -> datasets_pb2.Dataset:
        return await self._call(calls.get_dataset(name))

    async def list_datasets(self, *, limit: int | None = None) -> list[datasets_pb2.Dataset]:
        return await self._list(calls.list_datasets(), limit)

    async def delete_dataset(self, name: str) -> None:
        await self._call(calls.delete_dataset(name))

    async def register_base_model(
        self, base_model_id: str, source_path: str, *, source: str = "", revision: str = ""
    ) -> models_pb2.BaseModel:
        return await self._call(calls.register_base_model(base_model_id, source_path, source, revision))

    async def get_base_model(self, name: str) -> models_pb2.BaseModel:
        return await self._call(calls.get_base_model(name))

    async def list_base_models(self, *, limit: int | None = None) -> list[models_pb2.BaseModel]:
        return await self._list(calls.list_base_models(), limit)

    async def list_models(self, *, limit: int | None = None) -> list[models_pb2.Model]:
        return await self._list(calls.list_models(), limit)

    async def get_model_version(self, name: str) -> models_pb2.ModelVersion:
        return await self._call(calls.get_model_version(name))

    async def list_model_versions(self, model: str, *, limit: int | None = None) -> list[models_pb2.ModelVersion]:
        return await self._list(calls.list_model_versions(model), limit)

    async def promote_model_version(
        self, name: str, alias: str, *, metric: str = "", at_least: float = 0.0
    ) -> models_pb2.ModelVersion:
        return await self._call(calls.promote_model_version(name, alias, metric, at_least))

    async def delete_model_alias(self, name: str) -> None:
        await self._call(calls.delete_model_alias(name))

    async def delete_model_version(self, name: str) -> None:
        await self._call(calls.delete_model_version(name))

    async def delete_base_model(self, name: str) -> None:
        await self._call(calls.delete_base_model(name))

    async def download_model(self, version: str, to: Path) -> pathlib.Path:
        found = await self.get_model_version(version)
        return await self._download(FolderDownload(found.name, found.files, to, self.retry, self.server))

    async def sign_model_version_urls(
        self, name: str, *, lifetime: float = 3600.0
    ) -> models_pb2.SignModelVersionUrlsResponse:
        return await self._call(calls.sign_model_version_urls(name, lifetime))

    async def download_base_model(self, name: str, to: Path) -> pathlib.Path:
        found = await self.get_base_model(name)
        return await self._download(FolderDownload(found.name, found.files, to, self.retry, self.server))

    async def list_nodes(self, *, limit: int | None = None) -> list[nodes_pb2.Node]:
        return await self._list(calls.list_nodes(), limit)

    async def drain_node(self, name: str, *, requeue: bool = False) -> nodes_pb2.Node:
        return await self._call(calls.drain_node(name, requeue))

    async def undrain_node(self, name: str) -> nodes_pb2.Node:
        return await self._call(calls.undrain_node(name))

    async def _call(self, call: Call[Reply]) -> Reply:
        attempts = self._attempts(call)
        method = getattr(getattr(self.stubs, call.service), call.method)
        while True:
            try:
                reply: Reply = await method(call.request, timeout=attempts.time_left(), metadata=self.metadata)
                return reply
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.pause_after(error))

    async def _list(self, listing: Listing[Reply], limit: int | None) -> list[Reply]:
        found: list[Reply] = []
        request = listing.request
        while limit is None or len(found) < limit:
            request.page_size = calls.page_size(limit, len(found))
            response: Any = await self._call(Call(listing.service, listing.method, request))
            found.extend(getattr(response, listing.items))
            request.page_token = response.next_page_token
            if not request.page_token:
                break
        return found

    async def _download(self, download: FolderDownload) -> pathlib.Path:
        if await asyncio.to_thread(download.is_there):
            return download.target
        with download.lock():
            for file in download.files():
                while not await asyncio.to_thread(file.complete):
                    stream = getattr(self.stubs.models, file.method())(file.request(), metadata=self.metadata)
                    try:
                        async for message in stream:
                            file.take(message)
                        file.end_of_stream()
                    except (grpc.RpcError, Damaged) as error:
                        await asyncio.sleep(file.pause_after(error))
                    finally:
                        stream.cancel()  # also if the disk is full: the server has room for few
            return await asyncio.to_thread(download.publish)


for _name, _function in vars(AsyncClient).items():
    if callable(_function) and not _function.__doc__ and (_same := vars(Client).get(_name)):
        _function.__doc__ = _same.__doc__  # for help()
