"""Worker processes: what each job may expect, and what a worker's end means for the others."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.runtime import jobs
from integration.runtime.poll import gone, until

from aiflow_sdk import errors
from aiflow_servers.runtime._worker import WorkerStartError
from aiflow_servers.runtime.workers import Workers, default_size


@asynccontextmanager
async def working(size: int = 1, **options: Any) -> AsyncIterator[Workers]:
    """Workers that leave no process and no unnoticed exception behind."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    async with Workers(size=size, **options) as workers:
        pids = workers.pids
        yield workers
    assert all(gone(pid) for pid in [*pids, *workers.pids])
    gc.collect()  # asyncio complains of an exception that nobody has seen when it is collected
    assert complaints == []


async def test_a_job_runs_in_another_process_and_returns_its_result() -> None:
    async with working() as workers:
        assert await workers.run(jobs.pid) in workers.pids
        assert os.getpid() not in workers.pids
        assert await workers.run(jobs.echo, data=b"x" * 5_000_000) == b"x" * 5_000_000


async def test_there_is_a_worker_a_core_by_default() -> None:
    assert Workers().size == default_size() == len(os.sched_getaffinity(0))


async def test_no_workers_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="start at least 1"):
        Workers(size=0)


async def test_a_worker_has_initialized_before_its_first_job_and_so_has_its_replacement() -> None:
    async with working(initialize=jobs.initialize) as workers:
        assert await workers.run(jobs.was_initialized)
        with pytest.raises(errors.UnavailableError):
            await workers.run(jobs.leave, 1)
        assert await workers.run(jobs.was_initialized)
    assert not jobs.initialized


async def test_the_modules_of_the_jobs_are_imported_before_the_first_job() -> None:
    async with working(modules=["wave"]) as workers:
        assert await workers.run(jobs.has_imported, "wave")
        assert not await workers.run(jobs.has_imported, "chunk_of_nothing")


async def test_a_module_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(WorkerStartError, match="no_such_module"):
        async with Workers(size=1, modules=["no_such_module"]):
            pass


async def test_workers_that_cannot_initialize_say_why() -> None:
    workers = Workers(size=2, initialize=jobs.broken_initialize)
    with pytest.raises(WorkerStartError, match="No module named 'heavy'"):
        async with workers:
            pass
    assert not workers.pids
    assert not workers.ready


async def test_a_typed_error_arrives_with_every_field() -> None:
    async with working() as workers:
        with pytest.raises(errors.BadInputError) as caught:
            await workers.run(jobs.refuse)
    with pytest.raises(errors.BadInputError) as expected:
        jobs.refuse()
    assert vars(caught.value) == vars(expected.value)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("cls", [errors.AiflowError, *errors.AiflowError.__subclasses__()])
def test_every_error_survives_pickling(cls: type[errors.AiflowError]) -> None:
    error = cls("m", reason="R", retry_after_s=1, violations={"f": "v"}, metadata={"k": "v"})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert vars(copy) == vars(error)


@pytest.mark.parametrize(
    ("job", "expected", "text"),
    [
        pytest.param(jobs.fail, ValueError, "the password is 1234", id="an exception of Python's"),
        pytest.param(
            jobs.fail_awkwardly, RuntimeError, "AwkwardError: this and that", id="one not picklable"
        ),
        pytest.param(
            jobs.leave_politely, RuntimeError, "SystemExit: 3", id="one that would end the server"
        ),
        pytest.param(
            jobs.return_what_cannot_be_pickled, TypeError, "pickle", id="a result not picklable"
        ),
    ],
)
async def test_an_unexpected_error_arrives_with_the_workers_traceback(
    job: Callable[[], Any], expected: type[Exception], text: str
) -> None:
    async with working() as workers:
        before = workers.pids
        with pytest.raises(expected, match=text) as caught:
            await workers.run(job)
        assert "Traceback" in "".join(caught.value.__notes__)
        assert await workers.run(jobs.pid) in before, "an exception costs no process"


async def test_arguments_that_cannot_be_pickled_fail_that_job_and_keep_the_worker() -> None:
    async with working() as workers:
        before = workers.pids
        with pytest.raises((AttributeError, pickle.PicklingError)):
            await workers.run(lambda: 1)
        assert await workers.run(jobs.pid) in before


@pytest.mark.parametrize(
    "job",
    [
        pytest.param((jobs.wait, 60), id="one that sleeps"),
        pytest.param((jobs.compute, 60), id="one that computes in Python"),
        pytest.param((jobs.compute_in_c,), id="one that computes in C and hears no signal"),
    ],
)
async def test_a_cancelled_job_ends_and_frees_its_worker(job: tuple[Any, ...]) -> None:
    async with working() as workers:
        (pid,) = workers.pids
        task = asyncio.create_task(workers.run(*job))
        await until(lambda: workers.busy)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await until(lambda: gone(pid)) < 1
        assert await workers.run(jobs.pid) != pid
        assert workers.restarts["cancelled"] == 1


async def test_a_job_past_its_deadline_frees_its_worker() -> None:
    async with working() as workers:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await workers.run(jobs.wait, 60)
        assert await workers.run(jobs.echo, b"next") == b"next"


async def test_a_job_whose_caller_has_gone_is_not_started(tmp_path: Path) -> None:
    async with working() as workers:
        first = asyncio.create_task(workers.run(jobs.fetch, str(tmp_path / "go")))
        gone_caller = asyncio.create_task(workers.run(jobs.touch, str(tmp_path / "ran")))
        third = asyncio.create_task(workers.run(jobs.echo, b"third"))
        await until(lambda: workers.queued == 2)
        gone_caller.cancel()
        await until(lambda: workers.queued == 1)
        (tmp_path / "go").touch()
        assert await third == b"third"
        await first
        assert not (tmp_path / "ran").exists()
        assert workers.restarts == {"cancelled": 0, "died": 0, "recycled": 0}


async def test_jobs_start_in_the_order_they_came() -> None:
    async with working() as workers:
        finished: list[int] = []

        async def one(number: int) -> None:
            await workers.run(jobs.echo, b"")
            finished.append(number)

        await asyncio.gather(*(one(number) for number in range(20)))
        assert finished == list(range(20))


async def test_a_full_queue_refuses_the_next_job_and_says_when_to_come_back(
    tmp_path: Path,
) -> None:
    async with working(max_queue=2) as workers:
        go = tmp_path / "go"
        tasks = [asyncio.create_task(workers.run(jobs.fetch, str(go))) for _ in range(3)]
        await until(lambda: workers.queued == 2)
        with pytest.raises(errors.OverloadedError) as caught:
            await workers.run(jobs.echo, b"")
        assert caught.value.reason == "OVERLOADED"
        assert caught.value.retry_after_s
        assert caught.value.retry_after_s > 0
        go.touch()
        await asyncio.gather(*tasks)
        assert await workers.run(jobs.echo, b"now") == b"now"


@pytest.mark.parametrize(
    ("job", "why"),
    [
        pytest.param((jobs.die, signal.SIGKILL), "SIGKILL", id="killed, as when memory runs out"),
        pytest.param((jobs.die, signal.SIGSEGV), "SIGSEGV", id="a segmentation fault"),
        pytest.param((jobs.leave, 7), "exit code 7", id="a library that calls exit"),
    ],
)
async def test_a_worker_that_dies_fails_its_own_job_alone(job: tuple[Any, ...], why: str) -> None:
    async with working(size=2) as workers:
        other = asyncio.create_task(workers.run(jobs.wait, 0.3))
        waiting = [asyncio.create_task(workers.run(jobs.echo, b"w")) for _ in range(4)]
        with pytest.raises(errors.UnavailableError, match=why) as caught:
            await workers.run(*job)
        assert caught.value.reason == "WORKER_DIED"
        assert caught.value.retry_after_s
        await other
        assert await asyncio.gather(*waiting) == [b"w"] * 4
        await until(lambda: len(workers.pids) == 2)


async def test_idle_workers_that_are_killed_cost_no_job() -> None:
    async with working(size=2) as workers:
        for _ in range(3):
            before = set(workers.pids)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            assert await workers.run(jobs.pid) not in before
            await until(lambda: len(workers._idle) == 2)
        assert workers.restarts["died"] == 6


async def test_a_stopped_worker_is_freed_by_cancelling() -> None:
    async with working() as workers:
        (pid,) = workers.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await workers.run(jobs.echo, b"x" * 1_000_000)
        assert await workers.run(jobs.pid) != pid


async def test_recycling_replaces_processes_and_loses_no_job() -> None:
    async with working(size=2, recycle_after_jobs=3, max_queue=100) as workers:
        pids = await asyncio.gather(*(workers.run(jobs.pid) for _ in range(30)))
        assert max(pids.count(pid) for pid in pids) <= 3
        assert workers.restarts["recycled"] >= 9


async def test_signals_to_the_process_group_do_not_reach_a_job() -> None:
    async with working() as workers:
        assert {"SIGINT", "SIGTERM"} <= set(await workers.run(jobs.ignored_signals))


async def test_the_event_loop_is_not_held_while_every_worker_computes() -> None:
    async with working(size=2) as workers:
        tasks = [asyncio.create_task(workers.run(jobs.compute, 0.4)) for _ in range(2)]
        lags = []
        while not all(task.done() for task in tasks):
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - before - 0.005)
        await asyncio.gather(*tasks)
        lags.sort()
        # Held by one computation it would be 400 ms; the median knows nothing of a busy machine.
        assert len(lags) > 10
        assert lags[len(lags) // 2] < 0.05


async def test_closing_ends_running_and_waiting_jobs_and_every_process(tmp_path: Path) -> None:
    async with Workers(size=1) as workers:
        pids = workers.pids
        begun = tmp_path / "begun"
        running = asyncio.create_task(workers.run(jobs.touch_and_wait, str(begun), 60))
        await until(begun.exists)
        waiting = asyncio.create_task(workers.run(jobs.echo, b""))
        await until(lambda: workers.queued == 1)
    outcomes = await asyncio.gather(running, waiting, return_exceptions=True)
    assert [type(o) for o in outcomes] == [errors.UnavailableError, errors.DrainingError]
    assert all(gone(pid) for pid in pids)
    with pytest.raises(errors.DrainingError):
        await workers.run(jobs.echo, b"")


async def test_waits_are_observed() -> None:
    waits: list[float] = []
    async with working(observe_wait=waits.append) as workers:
        await asyncio.gather(workers.run(jobs.wait, 0.1), workers.run(jobs.echo, b""))
    assert waits[0] == 0
    assert waits[1] > 0.05
