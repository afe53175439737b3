"""A replica: an engine with all tasks, its HTTP endpoints, and what the rest of the cluster asks of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray import serve

from .batch_record import BatchRecord
from .engine import Engine
from .errors import UnknownTask
from .follower import Follower
from .http.app import make_app
from .ray_engine import ClusterEngine, TaskChanges, unavailable
from .ray_settings import Arguments
from .request import Answer, Request
from .vitals import Vitals
from .wanted import TasksFolder, Wanted

POLL = 1.0  # seconds between two looks at the record of tasks
Accepted = Future[Answer] | Exception


@dataclass(frozen=True)
class ReplicaState:
    """What a replica tells of itself.

    Attributes:
        replica: Its id.
        pid: Its process.
        version: Of the tasks that it has.
        tasks: Their names.
        failed: Why tasks that it should have could not be loaded, by name.
        batches: How many batches it has answered.
        mixed: How many of them were for more than one task.
    """

    replica: str
    pid: int
    version: int
    tasks: Sequence[str]
    failed: Mapping[str, str]
    batches: int
    mixed: int


class Replica:
    """An engine with all tasks of a folder. It is ready when they are loaded.

    Args:
        arguments: Of the application.
        changes: Changes tasks on every replica.

    Raises:
        FileNotFoundError: The backbone cannot be had.
        ValueError: The record of tasks is damaged.
    """

    def __init__(self, arguments: Arguments, changes: Callable[[str], TaskChanges]) -> None:
        self._arguments = arguments
        self._engine = Engine(
            arguments.model,
            placement=arguments.placement,
            memory_budget=arguments.memory_budget,
            precision=arguments.precision,
            device=arguments.device,
            limits=arguments.limits,
        )
        self._batches = self._mixed = 0
        self._engine.observers.append(self._count)
        context = serve.get_replica_context()
        self._id, self._changes = context.replica_tag, changes(context.app_name)
        self._follower = Follower(self._engine, TasksFolder(arguments.tasks))
        self._follower.follow(POLL)
        self._vitals = Vitals(self._engine, self._follower)
        self._encoding = ThreadPoolExecutor(1, "peft_aot encodes")

    # requests

    # What shares a batch of the model is the engine's to choose, by length and fair turns. Another wait for company
    # here would only delay that: so this batch waits 0 s, and nobody in it waits for another's answer, since it returns
    # answers to come. What it is for: whatever has arrived is encoded in one
    # visit to another thread, while the loop that serves HTTP goes on, and is in the engine's queue together. Not
    # `serve.multiplexed`: that would make a batch per task, and send a task to few replicas.
    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0, max_concurrent_batches=2)
    async def hand_over(self, requests: list[Request]) -> list[Accepted]:
        """Put requests of any tasks into the engine's queue; each gets its answer to come, or its own error."""
        return await asyncio.get_running_loop().run_in_executor(self._encoding, self._submit, requests)

    def _submit(self, requests: Sequence[Request]) -> list[Accepted]:
        accepted: list[Accepted] = []
        for request in requests:
            try:
                accepted.append(self._engine.submit(request))
            except Exception as error:  # it concerns this request alone
                accepted.append(error)
        return accepted

    async def ask(self, request: Request) -> Answer:
        """Answer a request; cancelling withdraws it.

        Raises:
            TaskUnavailable: The adapter of its task could not be loaded.
            Exception: What `Engine.submit` raises.
        """
        try:
            return await self._ask(request)
        except Exception as error:
            self._vitals.note(error)
            raise

    async def _ask(self, request: Request) -> Answer:
        accepted = await self.hand_over(request)
        if isinstance(accepted, UnknownTask):
            for problem in (await self.find_tasks([request.task])).values():
                raise problem
            accepted = await self.hand_over(request)
        if isinstance(accepted, Exception):
            raise accepted
        return await asyncio.wrap_future(accepted)

    async def find_tasks(self, names: Collection[str]) -> Mapping[str, Exception]:
        """Load tasks that this replica has not heard of yet; return why others that it should have are not there."""
        await asyncio.to_thread(self._follower.catch_up)
        return self._follower.problems(names)

    # tasks

    async def load(self, name: str, adapter: str, revision: str | None = None) -> Wanted:
        """Add or replace a task here and in the record, see `Follower.load`."""
        return await asyncio.to_thread(self._follower.load, name, adapter, revision)

    async def unload(self, name: str) -> Wanted:
        """Remove a task from the record and here, see `Follower.unload`."""
        return await asyncio.to_thread(self._follower.unload, name)

    async def apply(self, wanted: Wanted) -> ReplicaState:
        """Do what is wanted, unless something later is wanted already; return how it is afterwards."""
        await asyncio.to_thread(self._follower.apply, wanted)
        return await self.state()

    # itself

    async def state(self) -> ReplicaState:
        """Tell of itself."""
        return ReplicaState(
            self._id,
            os.getpid(),
            self._follower.version,
            tuple(self._engine.tasks),
            self._follower.failed,
            self._batches,
            self._mixed,
        )

    async def check_health(self) -> None:
        """Tell Serve whether to replace this replica, see `Vitals.check`."""
        await self._vitals.check()

    def __serve_build_asgi_app__(self) -> Any:
        """Make the HTTP application; it closes the engine when Serve has drained this replica."""
        engine = ClusterEngine(self._engine, self.ask, asyncio.get_running_loop(), self._changes, self._follower.stop)
        given = self._arguments
        return make_app(engine, given.http.settings(given.tasks, given.limits), self._find_tasks)

    async def _find_tasks(self, names: Collection[str]) -> Mapping[str, Exception]:
        return {name: unavailable(error) for name, error in (await self.find_tasks(names)).items()}

    def _count(self, record: BatchRecord) -> None:
        self._batches += 1
        self._mixed += record.tasks > 1
