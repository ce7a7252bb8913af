"""`AsyncClient` keeps the same promises as `Client`."""

from __future__ import annotations

import asyncio
import inspect
import pathlib

import luthier
import pytest
from conftest import SOURCE, Server
from lost_answers import Proxy
from luthier import AsyncClient, Client, FineTuningJob, FineTuningSpec


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


def test_it_has_the_functions_of_the_client_with_their_arguments() -> None:
    def functions(kind: type) -> dict[str, list[str]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(one).parameters) for name, one in found if not name.startswith("_")}

    assert functions(AsyncClient) == functions(Client)


def test_a_create_whose_answer_is_lost_makes_one_job(server: Server, spec: FineTuningSpec) -> None:
    async def scenario() -> None:
        proxy = Proxy(server.address)
        async with AsyncClient(proxy.address) as unlucky, AsyncClient(server.address) as client:
            async def one_job() -> bool:
                return len(await client.list_jobs()) == 1

            assert await unlucky.list_jobs() == []
            proxy.losing = True
            created = asyncio.create_task(unlucky.create_job(spec))
            await until(one_job)
            proxy.cut()
            name = (await created).name
            assert [job.name for job in await client.list_jobs()] == [name]
        proxy.close()

    asyncio.run(scenario())


def test_a_watch_goes_on_after_the_server_was_killed_and_misses_nothing(server: Server, spec: FineTuningSpec) -> None:
    async def scenario() -> None:
        seen: list[int] = []
        async with AsyncClient(server.address) as client:
            await client.create_job(spec, job_id="j", hold=True)

            async def watch() -> FineTuningJob:
                async for update in client.watch_job("j", timeout=25):
                    if update.event is not None:
                        seen.append(update.event.sequence)
                return update.job

            async def two_seen() -> bool:
                return len(seen) >= 2

            watching = asyncio.create_task(watch())
            await client.start_job("j")
            await until(two_seen)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            for _ in range(5):
                await client.pause_job("j")
                await client.resume_job("j")
            await client.cancel_job("j")
            assert (await watching).state == FineTuningJob.CANCELLED
            assert seen == [event.sequence for event in await client.list_job_events("j")]
        assert seen == list(range(1, len(seen) + 1)) and len(seen) >= 12

    asyncio.run(scenario())


def test_files_go_both_ways(server: Server, spec: FineTuningSpec, tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        rows = tmp_path / "rows.jsonl"
        async with AsyncClient(server.address) as client:
            assert (await client.upload_dataset("rows", {"train": rows})).name == "datasets/rows"
            rows.write_text("no JSON\n")
            with pytest.raises(luthier.Error, match="INVALID_ARGUMENT.*train:1"):
                await client.upload_dataset("other", {"train": rows})
            copy = await client.download_base_model("luthier-tiny", tmp_path / "copy")
            original = SOURCE / "examples/base/luthier-tiny/model.safetensors"
            assert (copy / "model.safetensors").read_bytes() == original.read_bytes()

    asyncio.run(scenario())
