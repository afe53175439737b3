"""Changes of tasks that reach every replica of a Serve application before they return."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from peft_aot.suggestions import did_you_mean

from .ray_replica import Replica, ReplicaState
from .wanted import Wanted

DEPLOYMENT = "peft_aot"
PAUSE = 0.1  # seconds before replicas that come and go are asked once more


@dataclass(frozen=True)
class ClusterTasks:
    """The tasks of a running application.

    Attributes:
        app: Its name in Serve.
        timeout: Seconds that a change may take.

    Example:
        >>> tasks = ClusterTasks("default")
        >>> tasks.load("trec", "/mnt/tasks/trec-2")
    """

    app: str = "default"
    timeout: float = 60.0

    def load(self, name: str, adapter: str | Path, revision: str | None = None) -> list[str]:
        """Add or replace a task on every replica; one tries the adapter before anything changes.

        Args:
            name: What to call it.
            adapter: Folder or hub id of a saved adapter; a folder must be there on every node.
            revision: Of the hub's repository. Without one, replicas that start later may get a later one.

        Returns:
            Ids of the replicas that have it.

        Raises:
            FileNotFoundError: No adapter there.
            TypeError: Another method's adapter.
            ValueError: No such application, the name is no good, or the adapter does not fit. Nothing has changed.
            RuntimeError: The adapter loads on one replica and not on another; those try again.
            TimeoutError: Not every replica has it yet; they go on by themselves.
        """
        deadline = time.monotonic() + self.timeout
        where = str(Path(adapter).absolute()) if Path(adapter).is_dir() else str(adapter)
        wanted = self._change(deadline, "load", name, where, revision)
        return self._spread(wanted, name, deadline)

    def unload(self, name: str) -> list[str]:
        """Remove a task from every replica.

        Returns:
            Ids of the replicas that no longer have it.

        Raises:
            UnknownTask: There is none of that name.
            TimeoutError: Not every replica has forgotten it yet; they go on by themselves.
        """
        deadline = time.monotonic() + self.timeout
        return self._spread(self._change(deadline, "unload", name), name, deadline)

    def states(self) -> list[ReplicaState]:
        """Return what every replica tells of itself."""
        return list(self._handle().broadcast("state").results(timeout_s=self.timeout))

    def _handle(self) -> DeploymentHandle[Replica]:
        running = serve.status().applications
        if self.app not in running:
            hint = did_you_mean(self.app, running) if running else "there is none, start one with `serve run`"
            raise ValueError(f"expected the name of a running application, got '{self.app}'; {hint}")
        return serve.get_deployment_handle(DEPLOYMENT, self.app)

    def _change(self, deadline: float, method: str, *arguments: str | None) -> Wanted:
        while True:
            response = self._handle().options(method_name=method).remote(*arguments)
            try:
                wanted: Wanted = response.result(timeout_s=max(0.0, deadline - time.monotonic()))
                return wanted
            except (RayActorError, DeploymentUnavailableError):  # it died; another is asked
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)
            except TimeoutError as error:
                if isinstance(error, RayTaskError):  # a replica's own
                    raise
                raise TimeoutError(
                    f"expected a replica of the application '{self.app}' to {method} '{arguments[0]}' within "
                    f"{self.timeout:g} s, got none that did; see `serve status`, and allow more time"
                ) from error

    def _spread(self, wanted: Wanted, name: str, deadline: float) -> list[str]:
        while True:
            states = self._tell(wanted, deadline)
            for state in states:
                if state.version == wanted.version and name in state.failed:
                    raise RuntimeError(
                        f"expected the adapter of task '{name}' to load on every replica, got {state.failed[name]} on "
                        f"replica {state.replica}; see that every node finds the same files"
                    )
            running = self._running()
            if states and len(states) >= running:
                return sorted(state.replica for state in states)
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"expected all {running} replicas to have version {wanted.version} of the tasks within "
                    f"{self.timeout:g} s, got {len(states)}; they go on by themselves, see `serve status`"
                )
            time.sleep(PAUSE)

    def _tell(self, wanted: Wanted, deadline: float) -> list[ReplicaState]:
        try:
            response = self._handle().broadcast("apply", wanted)
            found = response.results(timeout_s=max(PAUSE, deadline - time.monotonic()), return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError):
            return []
        for each in found:
            if isinstance(each, Exception) and not isinstance(each, (RayActorError, TimeoutError)):
                raise each
        return [each for each in found if isinstance(each, ReplicaState)]

    def _running(self) -> int:
        deployment = serve.status().applications[self.app].deployments[DEPLOYMENT]
        return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")
