"""Sweeps, blocking and with asyncio, against the real server; one with a real agent and trainer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pathlib
import time

import grpc
import luthier
import pytest
from conftest import SOURCE, Server
from lost_answers import Proxy
from luthier import AsyncClient, Client, DatasetSelection, FineTuningJob, FineTuningSpec, Sweep, TrainingConfig
from luthier.watch import SweepCursor


def test_a_grid_and_points_are_jobs_with_their_values(server: Server, spec: FineTuningSpec) -> None:
    with Client(server.address) as client:
        with pytest.raises(luthier.Error, match="sweep.metric: test.loss"):
            client.create_sweep(spec, grid={"lora.rank": [4, 8]}, metric="test.loss")
        spec.dataset.CopyFrom(DatasetSelection(train="rows/train", test="rows/train"))
        grid = client.create_sweep(
            spec, grid={"lora.rank": [4, 8], "training.schedule": ["cosine"]}, metric="test.loss", sweep_id="g",
            max_parallel=1,
        )
        assert [job.job for job in grid.jobs] == ["jobs/g-1", "jobs/g-2"]
        assert dict(grid.jobs[1].values) == {"lora.rank": "8", "training.schedule": "cosine"}
        assert grid.metric == "test.loss" and grid.max_parallel == 1
        points = client.create_sweep(
            FineTuningJob(spec=spec, labels={"team": "support"}),
            points=[{"lora.target_modules": ["q_proj"], "training.seed": 3}, {"lora.rank": 2}],
        )
        assert len(points.jobs) == 2
        job = client.get_job(points.jobs[0].job)
        assert list(job.spec.lora.target_modules) == ["q_proj"] and job.labels["team"] == "support"
        assert [sweep.name for sweep in client.list_sweeps()] == [points.name, "sweeps/g"]
        assert not any(luthier.is_sweep_over(sweep) for sweep in client.list_sweeps()), "those have no jobs in them"
        assert client.best_job("g") is None
        with pytest.raises(TypeError, match="lora.rank is '16'; give a list"):
            client.create_sweep(spec, grid={"lora.rank": "16"})
        with pytest.raises(luthier.Error, match="lora.rank: 999"):
            client.create_sweep(spec, grid={"lora.rank": [4, 999]}, validate_only=True)
        assert len(client.list_sweeps(limit=1)) == 1
        with pytest.raises(luthier.Error, match="NOT_FOUND"):
            client.get_sweep("none")


def test_a_count_that_a_caller_looks_for_is_no_change() -> None:
    cursor = SweepCursor("sweeps/s", None)
    seen, same = (Sweep(name="sweeps/s", job_counts={"RUNNING": 1}) for _ in range(2))
    assert cursor.take(seen)
    assert seen.job_counts["FAILED"] == 0 and seen != same, "protobuf has put a zero there"
    assert not cursor.take(same)
    seen.job_counts["RUNNING"] = 0
    seen.job_counts["SUCCEEDED"] = 1
    assert luthier.is_sweep_over(seen) and not luthier.is_sweep_over(same)


def test_a_sweep_that_is_away_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    cursor = SweepCursor("sweeps/s", None)
    away = luthier.Unreachable(grpc.StatusCode.UNAVAILABLE, "no server answers")
    with pytest.raises(luthier.Unreachable):
        cursor.pause_after(away)
    assert cursor.take(Sweep(name="sweeps/s"))
    for error in (away, luthier.Error(grpc.StatusCode.DEADLINE_EXCEEDED, "did not answer in time"), away):
        assert cursor.pause_after(error) > 0
    assert [record.getMessage() for record in caplog.records] == ["the watch of sweeps/s waits: no server answers"]


def test_a_sweep_on_hold_starts_as_one(server: Server, spec: FineTuningSpec) -> None:
    with Client(server.address) as client:
        held = client.create_sweep(spec, grid={"training.seed": [1, 2]}, sweep_id="s", hold=True)
        assert dict(held.job_counts) == {"HELD": 2}
        client.cancel_job("s-1")
        assert dict(client.start_sweep("s").job_counts) == {"CANCELLED": 1, "QUEUED": 1}


def test_a_sweep_whose_answer_is_lost_is_made_once(server: Server, spec: FineTuningSpec) -> None:
    proxy = Proxy(server.address)
    with Client(proxy.address) as unlucky, Client(server.address) as client:
        assert unlucky.list_sweeps() == []
        proxy.losing = True
        with concurrent.futures.ThreadPoolExecutor() as pool:
            created = pool.submit(unlucky.create_sweep, spec, grid={"training.seed": [1, 2]})
            end = time.monotonic() + 20
            while not client.list_sweeps():
                assert time.monotonic() < end
                time.sleep(0.01)
            proxy.cut()
            name = created.result(timeout=20).name
        assert [sweep.name for sweep in client.list_sweeps()] == [name] and len(client.list_jobs()) == 2
    proxy.close()


def test_a_watch_goes_on_over_a_restart_until_every_job_is_over(server: Server, spec: FineTuningSpec) -> None:
    with Client(server.address) as client, concurrent.futures.ThreadPoolExecutor() as pool:
        client.create_sweep(spec, grid={"training.seed": [1, 2]}, sweep_id="s")
        with pytest.raises(luthier.Error) as late:
            client.wait_sweep("s", timeout=0.3)
        assert late.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        seen = pool.submit(lambda: list(client.watch_sweep("s", timeout=25)))
        server.kill()
        server.start()
        with Client(server.address) as other:
            other.cancel_job("s-1")
            time.sleep(1.5)  # a state that the watch has to see
            assert not seen.done()
            assert other.cancel_sweep("s").job_counts["CANCELLED"] == 2
        sweeps = seen.result(timeout=25)
    assert luthier.is_sweep_over(sweeps[-1]) and not luthier.is_sweep_over(sweeps[0])
    assert all(one != later for one, later in zip(sweeps, sweeps[1:])), "it says what changes only"


def test_the_asyncio_client_does_the_same(server: Server, spec: FineTuningSpec) -> None:
    async def scenario() -> None:
        async with AsyncClient(server.address) as client:
            created = await client.create_sweep(spec, grid={"training.seed": [1, 2, 3]}, sweep_id="s", hold=True)
            assert len(created.jobs) == 3
            assert (await client.start_sweep("s")).job_counts["QUEUED"] == 3
            watching = asyncio.create_task(client.wait_sweep("s", timeout=25))
            await asyncio.sleep(0)
            assert (await client.cancel_sweep("s")).job_counts["CANCELLED"] == 3
            assert luthier.is_sweep_over(await watching)
            assert [sweep.name for sweep in await client.list_sweeps()] == ["sweeps/s"]
            assert (await client.get_sweep("s")).best_job == "" and await client.best_job("s") is None

    asyncio.run(scenario())


def test_the_best_of_a_sweep_that_was_trained(tmp_path: pathlib.Path) -> None:
    server = Server(tmp_path, "--with-local-worker", "--worker-metrics-listen", "127.0.0.1:0")
    try:
        with Client(server.address) as client:
            client.register_base_model("luthier-tiny", str(SOURCE / "examples/base/luthier-tiny"))
            rows = tmp_path / "rows.jsonl"
            rows.write_text('{"prompt": "hello", "completion": "yes"}\n{"prompt": "bye", "completion": "no"}\n' * 8)
            client.upload_dataset("rows", {"train": rows, "validation": rows})
            spec = FineTuningSpec(
                base_model="luthier-tiny", dataset=DatasetSelection(dataset="rows"), training=TrainingConfig(max_steps=8)
            )
            client.create_sweep(spec, grid={"training.learning_rate": [1e-9, 1e-3]}, sweep_id="rates")
            over = client.wait_sweep("rates", timeout=110)
            assert over.job_counts["SUCCEEDED"] == 2
            best = client.best_job("rates")
            assert best is not None and best == luthier.best_of(over)
            assert best.values["training.learning_rate"] == "0.001", "the other one has learned nothing"
            assert best.metric == min(job.metric for job in over.jobs)
            client.download_model(best.model_version, tmp_path / "best")
    finally:
        server.stop()
