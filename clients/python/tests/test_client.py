"""Retries, idempotency, resumption and errors of `Client`, against the real server."""

from __future__ import annotations

import concurrent.futures
import datetime
import inspect
import json
import pathlib
import pickle
import time
import types

import grpc
import luthier
import pytest
from conftest import SOURCE, Server
from broken_disk import break_the_disk, fill_the_disk, note_streams
from lost_answers import Proxy
from luthier import Client, FineTuningJob, FineTuningSpec, RetryPolicy
from luthier.files import FolderDownload
from luthier.v1 import datasets_pb2, jobs_pb2, models_pb2, nodes_pb2, queues_pb2, sweeps_pb2
from luthier.v1.jobs_pb2 import PENDING_REASON_NO_NODE
from luthier.watch import WatchCursor


@pytest.fixture
def client(server: Server):
    with Client(server.address) as client:
        yield client


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_create_whose_answer_is_lost_makes_one_job(server: Server, client: Client, spec: FineTuningSpec) -> None:
    proxy = Proxy(server.address)
    with Client(proxy.address) as unlucky, concurrent.futures.ThreadPoolExecutor() as pool:
        assert unlucky.list_jobs() == []  # connected
        proxy.losing = True
        created = pool.submit(unlucky.create_job, spec)
        wait_until(lambda: len(client.list_jobs()) == 1)
        assert not created.done()
        proxy.cut()
        name = created.result(timeout=20).name
    proxy.close()
    assert [job.name for job in client.list_jobs()] == [name]
    assert client.create_job(spec).name != name  # without the same request id it would have been another job
    assert len(client.list_jobs()) == 2


def test_a_retry_and_an_update_whose_answers_are_lost_are_done_once(
    server: Server, client: Client, spec: FineTuningSpec
) -> None:
    client.cancel_job(client.create_job(spec, job_id="j").name)
    proxy = Proxy(server.address)
    with Client(proxy.address) as unlucky, concurrent.futures.ThreadPoolExecutor() as pool:
        assert unlucky.get_job("j").state == FineTuningJob.CANCELLED  # connected
        proxy.losing = True
        retried = pool.submit(unlucky.retry_job, "j")
        wait_until(lambda: client.get_job("j").state == FineTuningJob.QUEUED)
        client.cancel_job("j")
        proxy.cut()
        assert retried.result(timeout=20).state == FineTuningJob.CANCELLED, "not tried again once more"
        etag = unlucky.get_job("j").etag
        proxy.losing = True
        updated = pool.submit(unlucky.update_job, "j", labels={"team": "support"}, etag=etag)
        wait_until(lambda: client.get_job("j").etag != etag)
        proxy.cut()
        assert updated.result(timeout=20).labels["team"] == "support"
    proxy.close()


def test_what_must_not_be_done_twice_is_not_tried_again(server: Server, client: Client, spec: FineTuningSpec) -> None:
    proxy = Proxy(server.address)
    with Client(proxy.address) as unlucky, concurrent.futures.ThreadPoolExecutor() as pool:
        assert unlucky.list_jobs() == []
        proxy.losing = True
        deleted = pool.submit(unlucky.delete_dataset, "rows")
        wait_until(lambda: client.list_datasets() == [])
        proxy.cut()
        with pytest.raises(luthier.Error) as failure:
            deleted.result(timeout=20)
        assert failure.value.code == grpc.StatusCode.UNAVAILABLE, "not the NOT_FOUND of a second try"
    proxy.close()


def test_a_watch_goes_on_after_the_server_was_killed_and_misses_nothing(
    server: Server, client: Client, spec: FineTuningSpec
) -> None:
    job = client.create_job(spec, job_id="j", hold=True)
    seen: list[int] = []
    snapshots: list[FineTuningJob] = []

    def watch() -> None:
        for update in client.watch_job("j", timeout=25):
            if update.event is None:
                snapshots.append(update.job)
            else:
                seen.append(update.event.sequence)

    with concurrent.futures.ThreadPoolExecutor() as pool, Client(server.address) as other:
        watching = pool.submit(watch)
        other.start_job("j")
        wait_until(lambda: len(seen) >= 2)
        server.kill()
        server.start()
        for _ in range(5):  # these happen while the watch is away, or just back
            other.pause_job("j")
            other.resume_job("j")
        wait_until(lambda: len(seen) >= 12)
        server.kill()
        server.start()
        other.cancel_job("j")
        watching.result(timeout=25)
    assert seen == list(range(1, len(seen) + 1)), "once, in order, without gaps"
    assert seen == [event.sequence for event in client.list_job_events("j")]
    assert len(snapshots) >= 4, "one at the start, one after each resumption, one at the end"
    assert snapshots[-1].state == FineTuningJob.CANCELLED and luthier.is_over(snapshots[-1])
    assert [update.event.sequence for update in client.watch_job(job.name, after_sequence=3) if update.event][0] == 4


def test_a_job_that_ended_in_a_state_of_a_newer_server_is_over() -> None:
    job = FineTuningJob(state=99)  # type: ignore[arg-type]
    assert not luthier.is_over(job)
    job.end_time.GetCurrentTime()
    assert luthier.is_over(job)


def test_what_an_older_server_lacks_is_said(server: Server) -> None:
    with grpc.insecure_channel(server.address) as to, pytest.raises(grpc.RpcError) as lacking:
        to.unary_unary("/luthier.v1.FineTuningService/OfTomorrow")(b"")
    error = luthier.errors.from_grpc(lacking.value, "host:1")
    assert error.code == grpc.StatusCode.UNIMPLEMENTED and "host:1 has no such call: it is older" in error.message


class Failed(grpc.RpcError):
    """A call that failed, as gRPC hands it to the client."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = lambda: code
        self.details = lambda: details
        self.trailing_metadata = lambda: ()


def test_another_server_is_told_from_one_that_is_older() -> None:
    error = luthier.errors.from_grpc(
        Failed(grpc.StatusCode.UNIMPLEMENTED, "Received http2 header with status: 404"), "host:1"
    )
    assert error.code == grpc.StatusCode.FAILED_PRECONDITION
    assert "what answers at host:1 is no luthierd" in error.message


def test_a_caller_that_was_long_busy_with_an_update_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(luthier.watch, "time", types.SimpleNamespace(monotonic=lambda: now))
    cursor = WatchCursor("jobs/j", 0, None, RetryPolicy(), "host:1")
    assert cursor.take(jobs_pb2.WatchFineTuningJobResponse(job=FineTuningJob(name="jobs/j")))
    now = 3600.0
    assert cursor.pause_after(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "read faster")) > 0
    now += 599.0
    assert cursor.pause_after(Failed(grpc.StatusCode.UNAVAILABLE, "Connection refused")) > 0
    now += 2.0
    with pytest.raises(luthier.Unreachable):
        cursor.pause_after(Failed(grpc.StatusCode.UNAVAILABLE, "Connection refused"))


def test_a_watch_does_not_pause_beyond_its_timeout() -> None:
    cursor = WatchCursor("jobs/j", 0, 2.0, RetryPolicy(initial_pause=100.0, longest_pause=100.0), "host:1")
    assert 0 < cursor.pause_after(Failed(grpc.StatusCode.UNAVAILABLE, "Connection refused")) <= 2.0


def test_a_file_that_cannot_be_read_to_its_end_is_said(
    client: Client, spec: FineTuningSpec, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_the_disk(monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        client.upload_dataset("broken", {"train": tmp_path / "rows.jsonl"})
    assert [dataset.name for dataset in client.list_datasets()] == ["datasets/rows"]


def test_an_upload_whose_server_was_killed_is_sent_again(
    server: Server, client: Client, tmp_path: pathlib.Path
) -> None:
    rows = tmp_path / "many.jsonl"
    with open(rows, "w") as file:
        for number in range(400):
            file.write(json.dumps({"prompt": str(number), "completion": "yes " * 25_000}) + "\n")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        uploaded = pool.submit(client.upload_dataset, "many", {"train": rows})
        wait_until(lambda: any((tmp_path / "data/artifacts/incoming").iterdir()))
        server.kill()
        server.start()
        dataset = uploaded.result(timeout=60)
    assert (dataset.parts[0].rows, dataset.parts[0].size_bytes) == (400, rows.stat().st_size)


def test_a_watch_ends_with_its_timeout(client: Client, spec: FineTuningSpec) -> None:
    client.create_job(spec, job_id="j")
    with pytest.raises(luthier.Error) as failure:
        client.wait_job("j", timeout=0.3)
    assert failure.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.get_job("j").state == FineTuningJob.QUEUED


def test_errors_name_every_field_that_is_wrong(client: Client, spec: FineTuningSpec) -> None:
    spec.lora.rank = -1
    spec.training.learning_rate = -2
    with pytest.raises(luthier.Error) as failure:
        client.create_job(spec)
    assert failure.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert {violation.field for violation in failure.value.violations} == {"lora.rank", "training.learning_rate"}
    with pytest.raises(luthier.Error, match="NOT_FOUND.*nowhere"):
        client.get_job("nowhere")


def test_an_error_has_a_reason_for_programs(client: Client, spec: FineTuningSpec) -> None:
    client.create_job(spec, job_id="j")
    with pytest.raises(luthier.Error) as failure:
        client.create_job(spec, job_id="j")
    assert (failure.value.code, failure.value.reason) == (grpc.StatusCode.ALREADY_EXISTS, "JOB_ID_TAKEN")
    assert failure.value.retry_after is None
    tenant = queues_pb2.Tenant(name="tenants/default", weight=1, max_queued_jobs=1)
    client.stubs.queues.UpdateTenant(queues_pb2.UpdateTenantRequest(tenant=tenant))
    with pytest.raises(luthier.Error) as failure:
        client.create_job(spec)
    assert (failure.value.reason, failure.value.retry_after) == ("TENANT_QUEUE_FULL", 1.0)


def test_an_error_crosses_from_one_process_to_another() -> None:
    error = luthier.Unreachable(grpc.StatusCode.UNAVAILABLE, "away", (luthier.FieldViolation("a", "b"),), "WHY", 2.0)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is luthier.Unreachable and vars(copy) == vars(error) and str(copy) == "UNAVAILABLE: away"


def test_a_list_is_filtered_and_ordered(client: Client, spec: FineTuningSpec) -> None:
    for name in ("a", "b", "c"):
        client.create_job(FineTuningJob(spec=spec, labels={"team": "support" if name == "c" else "search"}), job_id=name)
    found = client.list_jobs([FineTuningJob.QUEUED], matching='labels.team = "search"', order_by="create_time")
    assert [job.name for job in found] == ["jobs/a", "jobs/b"]


def test_a_page_of_a_list_may_be_longer_than_what_gRPC_takes_by_default(client: Client, spec: FineTuningSpec) -> None:
    labels = {f"label-{number}": "x" * 250 for number in range(16)}
    client.create_sweep(
        FineTuningJob(spec=spec, labels=labels), grid={"training.seed": range(1, 1001)}, sweep_id="s", hold=True
    )
    jobs = client.list_jobs(limit=1000)
    assert len(jobs) == 1000 and sum(job.ByteSize() for job in jobs) > 4 << 20


def test_retention_and_deadline_can_be_changed(client: Client, spec: FineTuningSpec) -> None:
    client.create_job(spec, job_id="j")
    late = datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)
    job = client.update_job("j", retention=datetime.timedelta(days=7), deadline=late)
    assert job.retention.ToTimedelta() == datetime.timedelta(days=7)
    assert job.deadline.ToDatetime(datetime.UTC) == late
    assert not client.update_job("j", no_deadline=True).HasField("deadline")
    with pytest.raises(ValueError, match="give one of them"):
        client.update_job("j", deadline=late, no_deadline=True)


def test_urls_are_signed_for_a_version_and_a_time_that_exist(client: Client) -> None:
    with pytest.raises(luthier.Error, match="INVALID_ARGUMENT.*lifetime"):
        client.sign_model_version_urls("m/versions/1", lifetime=0.5)
    with pytest.raises(luthier.Error, match="NOT_FOUND.*models/m/versions/1"):
        client.sign_model_version_urls("m/versions/1")


def test_what_is_exported_is_a_version_that_exists(client: Client) -> None:
    with pytest.raises(luthier.Error, match="NOT_FOUND.*models/m/versions/latest"):
        client.export_model_version("m/versions/latest", luthier.ModelExport.MERGED, validate_only=True)


def test_without_a_server_calls_and_watches_fail_soon_and_say_so(server: Server, client: Client) -> None:
    server.kill()
    impatient = Client(server.address, retry=RetryPolicy(attempts=2, initial_pause=0.01))
    for call in (lambda: impatient.get_job("j"), lambda: list(impatient.watch_job("j"))):
        with pytest.raises(luthier.Unreachable, match=server.address):
            call()


def test_calls_wait_for_a_server_that_restarts(server: Server, client: Client, spec: FineTuningSpec) -> None:
    client.create_job(spec, job_id="j")
    server.kill()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        patient = Client(server.address, retry=RetryPolicy(attempts=50))
        found = pool.submit(patient.get_job, "j")
        server.start()
        assert found.result(timeout=20).name == "jobs/j"


def test_every_step_of_a_job_can_be_taken(client: Client, spec: FineTuningSpec) -> None:
    assert client.estimate_job(spec).train_rows == 2
    assert client.create_job(spec, validate_only=True).resolved
    assert client.create_job(spec, job_id="a", hold=True).state == FineTuningJob.HELD
    assert client.start_job("a").state == FineTuningJob.QUEUED
    assert client.update_job("a", priority=7, labels={"team": "support"}).priority == 7
    changes = FineTuningJob(priority=9)
    changes.spec.training.epochs = 2
    assert client.clone_job("a", job_id="b", validate_only=True).name == "jobs/b"
    clone = client.clone_job("a", changes, ["priority", "spec.training.epochs"], job_id="b")
    assert (clone.priority, clone.spec.training.epochs, clone.labels["team"]) == (9, 2, "support")
    with pytest.raises(ValueError, match="fields: are missing; name those"):
        client.clone_job("a", changes)
    assert [entry.job for entry in client.get_queue().entries] == ["jobs/b", "jobs/a"]
    assert client.explain_job("a").pending_code == PENDING_REASON_NO_NODE
    assert client.pause_job("a").state == FineTuningJob.PAUSED
    assert client.resume_job("jobs/a").state == FineTuningJob.QUEUED
    assert client.cancel_job("a").state == FineTuningJob.CANCELLED
    assert client.retry_job("a").state == FineTuningJob.QUEUED
    assert [job.name for job in client.list_jobs([FineTuningJob.QUEUED])] == ["jobs/b", "jobs/a"]
    assert [job.name for job in client.list_jobs(limit=1)] == ["jobs/b"]
    assert client.list_jobs(limit=0) == []
    assert [event.type for event in client.list_job_events("b")] == ["state"]
    with pytest.raises(luthier.Error, match="FAILED_PRECONDITION"):
        client.delete_dataset("rows")
    assert client.list_nodes() == [] and client.list_models() == []


def test_every_method_that_the_readme_promises_has_a_function() -> None:
    modules = (jobs_pb2, sweeps_pb2, datasets_pb2, models_pb2, nodes_pb2, queues_pb2)
    services = [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    methods = {method.name for service in services for method in service.methods}
    of_tenants = {"ListTenants", "UpdateTenant"}
    parts_of_a_watch = {"StreamJobMetrics", "TailJobLogs"}
    source = "".join(inspect.getsource(module) for module in (luthier.calls, luthier.client, luthier.files))
    assert {name for name in methods - of_tenants - parts_of_a_watch if name not in source} == set()


def test_checkpoints_are_of_running_jobs(client: Client, spec: FineTuningSpec) -> None:
    client.create_job(spec, job_id="j")
    with pytest.raises(luthier.Error, match="FAILED_PRECONDITION.*jobs/j is QUEUED"):
        client.create_checkpoint("j")
    assert client.list_checkpoints("j", limit=5) == []


def test_versions_and_base_models_are_promoted_and_deleted_by_name(client: Client, spec: FineTuningSpec) -> None:
    with pytest.raises(luthier.Error, match="NOT_FOUND.*models/m/versions/1"):
        client.promote_model_version("m/versions/1", "production", metric="exact_match", at_least=0.9)
    with pytest.raises(ValueError, match="at_least: is given without a metric"):
        client.promote_model_version("m/versions/1", "production", at_least=0.9)
    with pytest.raises(luthier.Error, match="NOT_FOUND.*models/m/versions/production"):
        client.delete_model_alias("models/m/versions/production")
    with pytest.raises(luthier.Error, match="NOT_FOUND.*models/m/versions/1"):
        client.delete_model_version("m/versions/1")
    client.delete_base_model("luthier-tiny")
    assert client.list_base_models() == []


def test_a_name_that_no_machine_has_is_unreachable_too() -> None:
    with pytest.raises(luthier.Unreachable, match="no server answers at nowhere.invalid:7070"):
        Client("nowhere.invalid:7070", retry=RetryPolicy(attempts=1)).get_job("j")


def test_a_download_goes_on_from_the_bytes_that_are_there(
    client: Client, spec: FineTuningSpec, tmp_path: pathlib.Path
) -> None:
    original = SOURCE / "examples/base/luthier-tiny"
    weights = (original / "model.safetensors").read_bytes()
    partial = tmp_path / "copy.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (partial / "config.json").write_text("wrong")
    (partial / "left over").write_text("of something else")
    copy = client.download_base_model("luthier-tiny", tmp_path / "copy")
    assert copy == tmp_path / "copy" and not partial.exists()
    files = {file.path for file in client.get_base_model("luthier-tiny").files}
    assert {path.name for path in copy.iterdir()} == files
    assert all((copy / name).read_bytes() == (original / name).read_bytes() for name in files)
    client.download_base_model("luthier-tiny", tmp_path / "copy")
    (copy / "config.json").write_text("changed")
    with pytest.raises(luthier.Error, match="ALREADY_EXISTS.*give another folder"):
        client.download_base_model("luthier-tiny", tmp_path / "copy")


def test_a_download_that_the_disk_ends_leaves_no_stream_open(
    client: Client, spec: FineTuningSpec, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = note_streams(client, monkeypatch)
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left on device"):
        client.download_base_model("luthier-tiny", tmp_path / "copy")
    assert len(opened) == 1 and not opened[0].is_active()


def test_two_downloads_into_one_folder_do_not_mix(client: Client, spec: FineTuningSpec, tmp_path: pathlib.Path) -> None:
    found = client.get_base_model("luthier-tiny")
    other = FolderDownload(found.name, found.files, tmp_path / "copy", RetryPolicy(), client.server)
    with other.lock(), pytest.raises(luthier.Error, match="copy.partial: another download is writing here"):
        client.download_base_model("luthier-tiny", tmp_path / "copy")
    assert client.download_base_model("luthier-tiny", tmp_path / "copy") == tmp_path / "copy"
