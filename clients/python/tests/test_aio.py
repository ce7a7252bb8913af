"""`AsyncClient` keeps the same promises as `Client`."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import pathlib
import threading
from typing import BinaryIO

import luthier
import pytest
from conftest import SOURCE, Server
from broken_disk import break_the_disk, fill_the_disk, note_streams
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
    assert AsyncClient.create_job.__doc__ == Client.create_job.__doc__ is not None


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


def test_a_watch_that_is_cancelled_leaves_the_client_as_it_was(server: Server, spec: FineTuningSpec) -> None:
    async def scenario() -> None:
        async with AsyncClient(server.address) as client:
            await client.create_job(spec, job_id="j", hold=True)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.wait_job("j"), 0.3)
            assert (await client.get_job("j")).state == FineTuningJob.HELD

    asyncio.run(scenario())


def test_a_file_that_cannot_be_read_to_its_end_is_no_cancelled_upload(
    server: Server, spec: FineTuningSpec, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_the_disk(monkeypatch)

    async def scenario() -> None:
        async with AsyncClient(server.address) as client:
            with pytest.raises(OSError, match="Input/output error"):
                await client.upload_dataset("broken", {"train": tmp_path / "rows.jsonl"})
            assert [dataset.name for dataset in await client.list_datasets()] == ["datasets/rows"]

    asyncio.run(scenario())


def test_a_download_that_the_disk_ends_leaves_no_stream_open(
    server: Server, spec: FineTuningSpec, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch)

    async def scenario() -> None:
        async with AsyncClient(server.address) as client:
            opened = note_streams(client, monkeypatch)
            with pytest.raises(OSError, match="No space left on device"):
                await client.download_base_model("luthier-tiny", tmp_path / "copy")
            assert len(opened) == 1 and opened[0].cancelled()

    asyncio.run(scenario())


def test_files_are_hashed_beside_the_loop(
    server: Server, spec: FineTuningSpec, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed_by: set[int] = set()
    real = hashlib.file_digest

    def noted(file: BinaryIO, kind: str) -> object:
        hashed_by.add(threading.get_ident())
        return real(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", noted)

    async def scenario() -> None:
        async with AsyncClient(server.address) as client:
            await client.upload_dataset("more", {"train": tmp_path / "rows.jsonl"})
            await client.download_base_model("luthier-tiny", tmp_path / "copy")
            await client.download_base_model("luthier-tiny", tmp_path / "copy")

    asyncio.run(scenario())
    assert hashed_by and threading.get_ident() not in hashed_by


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
