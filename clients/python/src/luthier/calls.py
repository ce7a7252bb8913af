"""What each function of a client sends: one place for `Client` and `AsyncClient`."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from luthier.v1 import datasets_pb2, jobs_pb2, models_pb2, nodes_pb2, queues_pb2, sweeps_pb2

Reply = TypeVar("Reply", covariant=True)

# A list asks for pages of this size; the server gives no larger ones.
PAGE_SIZE = 1000


@dataclasses.dataclass(frozen=True)
class Call(Generic[Reply]):
    """One call of `service`.`method`, whose answer is a Reply."""

    service: str
    method: str
    request: Message
    # Whether making it twice is the same as making it once.
    repeatable: bool = True
    # Whether the server reads or hashes files before it answers: a submit encodes every row, an import copies a model.
    long: bool = False


@dataclasses.dataclass(frozen=True)
class Listing(Generic[Reply]):
    """Calls of `service`.`method`, a page each, whose answers hold Replies in their field `items`."""

    service: str
    method: str
    request: Any  # its page_size and page_token are set for each page
    items: str


def page_size(limit: int | None, found: int) -> int:
    """What to ask for next. `limit`: None for all."""
    return PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - found)


def full_name(collection: str, name: str) -> str:
    """`jobs/j1` of `j1` and of `jobs/j1`."""
    return name if name.startswith(collection + "/") else f"{collection}/{name}"


def new_request_id() -> str:
    """A UUID of version 7 (RFC 9562). It begins with the time, so that the server's index of requests grows at its end."""
    number = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 7 << 76
    return str(uuid.UUID(int=number & ~(3 << 62) | 2 << 62))


def create_job(
    job: jobs_pb2.FineTuningJob | jobs_pb2.FineTuningSpec, job_id: str, request_id: str, hold: bool, validate_only: bool
) -> Call[jobs_pb2.FineTuningJob]:
    if isinstance(job, jobs_pb2.FineTuningSpec):
        job = jobs_pb2.FineTuningJob(spec=job)
    # The same in every try, so that one submit is one job.
    request_id = request_id or new_request_id()
    request = jobs_pb2.CreateFineTuningJobRequest(
        job_id=job_id, job=job, request_id=request_id, hold=hold, validate_only=validate_only
    )
    return Call("jobs", "CreateFineTuningJob", request, long=True)


def clone_job(
    name: str,
    changes: jobs_pb2.FineTuningJob | None,
    fields: Iterable[str],
    job_id: str,
    request_id: str,
    hold: bool,
    validate_only: bool,
) -> Call[jobs_pb2.FineTuningJob]:
    fields = [fields] if isinstance(fields, str) else list(fields)
    if changes is not None and not fields:  # the server takes what is named, and would take nothing
        raise ValueError("fields: are missing; name those of `changes` to take, such as spec.training.epochs")
    request = jobs_pb2.CloneFineTuningJobRequest(
        name=full_name("jobs", name),
        job=changes,
        job_id=job_id,
        request_id=request_id or new_request_id(),
        hold=hold,
        validate_only=validate_only,
    )
    request.update_mask.paths.extend(fields)
    return Call("jobs", "CloneFineTuningJob", request, long=True)


def export_model_version(
    name: str,
    form: jobs_pb2.ModelExport.Format,
    output_model: str,
    job: jobs_pb2.FineTuningJob | None,
    job_id: str,
    request_id: str,
    hold: bool,
    validate_only: bool,
) -> Call[jobs_pb2.FineTuningJob]:
    request = jobs_pb2.ExportModelVersionRequest(
        name=full_name("models", name),
        format=form,
        output_model=output_model,
        job=job,
        job_id=job_id,
        request_id=request_id or new_request_id(),
        hold=hold,
        validate_only=validate_only,
    )
    return Call("jobs", "ExportModelVersion", request, long=True)


def update_job(
    name: str,
    priority: int | None,
    labels: Mapping[str, str] | None,
    retention: datetime.timedelta | None,
    deadline: datetime.datetime | None,
    no_deadline: bool,
    etag: str,
) -> Call[jobs_pb2.FineTuningJob]:
    request = jobs_pb2.UpdateFineTuningJobRequest(request_id=new_request_id())
    request.job.name = full_name("jobs", name)
    request.job.etag = etag
    if priority is not None:
        request.job.priority = priority
        request.update_mask.paths.append("priority")
    if labels is not None:
        request.job.labels.update(labels)
        request.update_mask.paths.append("labels")
    if retention is not None:
        request.job.retention.FromTimedelta(retention)
        request.update_mask.paths.append("retention")
    if deadline is not None and no_deadline:
        raise ValueError("no_deadline: is given with a deadline; give one of them")
    if deadline is not None:
        request.job.deadline.FromDatetime(deadline)
    if deadline is not None or no_deadline:
        request.update_mask.paths.append("deadline")
    return Call("jobs", "UpdateFineTuningJob", request)


def get_job(name: str) -> Call[jobs_pb2.FineTuningJob]:
    return Call("jobs", "GetFineTuningJob", jobs_pb2.GetFineTuningJobRequest(name=full_name("jobs", name)))


def cancel_job(name: str) -> Call[jobs_pb2.FineTuningJob]:
    return Call("jobs", "CancelFineTuningJob", jobs_pb2.CancelFineTuningJobRequest(name=full_name("jobs", name)))


def pause_job(name: str) -> Call[jobs_pb2.FineTuningJob]:
    return Call("jobs", "PauseFineTuningJob", jobs_pb2.PauseFineTuningJobRequest(name=full_name("jobs", name)))


def resume_job(name: str) -> Call[jobs_pb2.FineTuningJob]:
    return Call("jobs", "ResumeFineTuningJob", jobs_pb2.ResumeFineTuningJobRequest(name=full_name("jobs", name)))


def start_job(name: str) -> Call[jobs_pb2.FineTuningJob]:
    return Call("jobs", "StartFineTuningJob", jobs_pb2.StartFineTuningJobRequest(name=full_name("jobs", name)))


def retry_job(name: str) -> Call[jobs_pb2.FineTuningJob]:
    request = jobs_pb2.RetryFineTuningJobRequest(name=full_name("jobs", name), request_id=new_request_id())
    return Call("jobs", "RetryFineTuningJob", request)


def create_checkpoint(name: str) -> Call[jobs_pb2.CreateJobCheckpointResponse]:
    request = jobs_pb2.CreateJobCheckpointRequest(parent=full_name("jobs", name))
    return Call("jobs", "CreateJobCheckpoint", request)


def explain_job(name: str) -> Call[jobs_pb2.ExplainFineTuningJobResponse]:
    return Call("jobs", "ExplainFineTuningJob", jobs_pb2.ExplainFineTuningJobRequest(name=full_name("jobs", name)))


def estimate_job(spec: jobs_pb2.FineTuningSpec) -> Call[jobs_pb2.EstimateFineTuningJobResponse]:
    return Call("jobs", "EstimateFineTuningJob", jobs_pb2.EstimateFineTuningJobRequest(spec=spec), long=True)


def _value(value: Any) -> str:
    """As the API takes it: JSON, or a word."""
    return value if isinstance(value, str) else json.dumps(value)


def create_sweep(
    job: jobs_pb2.FineTuningJob | jobs_pb2.FineTuningSpec,
    grid: Mapping[str, Iterable[Any]],
    points: Iterable[Mapping[str, Any]],
    metric: str,
    sweep_id: str,
    request_id: str,
    max_parallel: int,
    hold: bool,
    validate_only: bool,
) -> Call[sweeps_pb2.Sweep]:
    if isinstance(job, jobs_pb2.FineTuningSpec):
        job = jobs_pb2.FineTuningJob(spec=job)
    sweep = sweeps_pb2.Sweep(job=job, metric=metric, max_parallel=max_parallel)
    for field, values in grid.items():
        if isinstance(values, str):  # would be a value for each of its letters
            raise TypeError(f"grid: {field} is {values!r}; give a list of values")
        sweep.grid.add(field=field, values=[_value(value) for value in values])
    for point in points:
        sweep.points.add(values={field: _value(value) for field, value in point.items()})
    # The same in every try, so that one call is one sweep.
    request_id = request_id or new_request_id()
    request = sweeps_pb2.CreateSweepRequest(
        sweep_id=sweep_id, sweep=sweep, request_id=request_id, hold=hold, validate_only=validate_only
    )
    return Call("sweeps", "CreateSweep", request, long=True)


def get_sweep(name: str) -> Call[sweeps_pb2.Sweep]:
    return Call("sweeps", "GetSweep", sweeps_pb2.GetSweepRequest(name=full_name("sweeps", name)))


def start_sweep(name: str) -> Call[sweeps_pb2.Sweep]:
    return Call("sweeps", "StartSweep", sweeps_pb2.StartSweepRequest(name=full_name("sweeps", name)))


def cancel_sweep(name: str) -> Call[sweeps_pb2.Sweep]:
    return Call("sweeps", "CancelSweep", sweeps_pb2.CancelSweepRequest(name=full_name("sweeps", name)))


def list_sweeps() -> Listing[sweeps_pb2.Sweep]:
    return Listing("sweeps", "ListSweeps", sweeps_pb2.ListSweepsRequest(), "sweeps")


def get_queue(limit: int) -> Call[queues_pb2.Queue]:
    return Call("queues", "GetQueue", queues_pb2.GetQueueRequest(limit=limit))


def get_dataset(name: str) -> Call[datasets_pb2.Dataset]:
    return Call("datasets", "GetDataset", datasets_pb2.GetDatasetRequest(name=full_name("datasets", name)))


def delete_dataset(name: str) -> Call[Empty]:
    request = datasets_pb2.DeleteDatasetRequest(name=full_name("datasets", name))
    # A second try would find nothing, or what somebody has given the name to since.
    return Call("datasets", "DeleteDataset", request, repeatable=False)


def register_base_model(
    base_model_id: str, source_path: str, source: str, revision: str
) -> Call[models_pb2.BaseModel]:
    request = models_pb2.RegisterBaseModelRequest(
        base_model_id=base_model_id, source_path=source_path, source=source, revision=revision
    )
    return Call("models", "RegisterBaseModel", request, long=True)


def get_base_model(name: str) -> Call[models_pb2.BaseModel]:
    return Call("models", "GetBaseModel", models_pb2.GetBaseModelRequest(name=full_name("baseModels", name)))


def get_model_version(name: str) -> Call[models_pb2.ModelVersion]:
    return Call("models", "GetModelVersion", models_pb2.GetModelVersionRequest(name=full_name("models", name)))


def promote_model_version(name: str, alias: str, metric: str, at_least: float) -> Call[models_pb2.ModelVersion]:
    if at_least and not metric:  # would be promoted whatever it reached
        raise ValueError("at_least: is given without a metric; give one, such as exact_match")
    request = models_pb2.PromoteModelVersionRequest(name=full_name("models", name), alias=alias)
    if metric:
        request.minimum.metric = metric
        request.minimum.value = at_least
    return Call("models", "PromoteModelVersion", request)


def delete_model_alias(name: str) -> Call[Empty]:
    request = models_pb2.DeleteModelAliasRequest(name=full_name("models", name))
    return Call("models", "DeleteModelAlias", request, repeatable=False)  # as DeleteDataset


def delete_model_version(name: str) -> Call[Empty]:
    request = models_pb2.DeleteModelVersionRequest(name=full_name("models", name))
    return Call("models", "DeleteModelVersion", request, repeatable=False)  # as DeleteDataset


def delete_base_model(name: str) -> Call[Empty]:
    request = models_pb2.DeleteBaseModelRequest(name=full_name("baseModels", name))
    return Call("models", "DeleteBaseModel", request, repeatable=False)  # as DeleteDataset


def sign_model_version_urls(name: str, lifetime: float) -> Call[models_pb2.SignModelVersionUrlsResponse]:
    request = models_pb2.SignModelVersionUrlsRequest(name=full_name("models", name))
    request.lifetime.FromMilliseconds(round(lifetime * 1000))
    return Call("models", "SignModelVersionUrls", request)


def drain_node(name: str, requeue: bool) -> Call[nodes_pb2.Node]:
    return Call("nodes", "DrainNode", nodes_pb2.DrainNodeRequest(name=full_name("nodes", name), requeue=requeue))


def undrain_node(name: str) -> Call[nodes_pb2.Node]:
    return Call("nodes", "UndrainNode", nodes_pb2.UndrainNodeRequest(name=full_name("nodes", name)))


def list_jobs(
    states: Iterable[jobs_pb2.FineTuningJob.State], matching: str, order_by: str
) -> Listing[jobs_pb2.FineTuningJob]:
    request = jobs_pb2.ListFineTuningJobsRequest(states=states, filter=matching, order_by=order_by)
    return Listing("jobs", "ListFineTuningJobs", request, "jobs")


def list_job_events(name: str, types: Iterable[str]) -> Listing[jobs_pb2.JobEvent]:
    request = jobs_pb2.ListJobEventsRequest(
        parent=full_name("jobs", name), types=[types] if isinstance(types, str) else types
    )
    return Listing("jobs", "ListJobEvents", request, "events")


def list_checkpoints(name: str) -> Listing[jobs_pb2.Checkpoint]:
    request = jobs_pb2.ListJobCheckpointsRequest(parent=full_name("jobs", name))
    return Listing("jobs", "ListJobCheckpoints", request, "checkpoints")


def list_datasets() -> Listing[datasets_pb2.Dataset]:
    return Listing("datasets", "ListDatasets", datasets_pb2.ListDatasetsRequest(), "datasets")


def list_base_models() -> Listing[models_pb2.BaseModel]:
    return Listing("models", "ListBaseModels", models_pb2.ListBaseModelsRequest(), "base_models")


def list_models() -> Listing[models_pb2.Model]:
    return Listing("models", "ListModels", models_pb2.ListModelsRequest(), "models")


def list_model_versions(model: str) -> Listing[models_pb2.ModelVersion]:
    request = models_pb2.ListModelVersionsRequest(parent=full_name("models", model))
    return Listing("models", "ListModelVersions", request, "model_versions")


def list_nodes() -> Listing[nodes_pb2.Node]:
    return Listing("nodes", "ListNodes", nodes_pb2.ListNodesRequest(), "nodes")
