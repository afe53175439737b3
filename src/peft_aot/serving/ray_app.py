"""The engine as a Ray Serve application: `serve run` with a configuration whose import_path is this file's `app`.

Needs Ray and the HTTP server (`pip install "peft_aot[ray,serve]"`). One deployment: each replica holds an engine with
all tasks and answers HTTP itself, so that requests of any tasks share batches wherever Serve's proxies send them.
"""

# No `from __future__ import annotations`: Serve reads the type of `app`'s argument from its signature.

from pathlib import Path

try:
    from ray import serve
except ImportError as error:
    raise ImportError(
        f'expected the extras "ray" and "serve", got no Ray Serve ({error}); do: pip install "peft_aot[ray,serve]"'
    ) from error

from .ray_replica import Replica, ReplicaState
from .ray_settings import Arguments
from .ray_tasks import DEPLOYMENT, ClusterTasks

__all__ = ["Arguments", "ClusterTasks", "ReplicaState", "app", "load_adapter", "unload_adapter"]


def app(args: Arguments) -> serve.Application:
    """Build the application.

    Args:
        args: Of the application in Serve's configuration. How many replicas there are, and what each gets, stands there
            too, under the deployment's name, "peft_aot".

    Raises:
        ValueError: An argument is no good.
    """
    args.http.settings(args.tasks, args.limits)  # said here rather than by each replica
    make = serve.deployment(
        name=DEPLOYMENT,
        # the engine's own limit is the one that is met: it knows tasks, and says when to try again
        max_ongoing_requests=2 * args.limits.queue,
    )
    deployment: serve.Deployment = make(serve.ingress()(Replica))
    return deployment.bind(args, ClusterTasks)


def load_adapter(
    name: str, adapter: str | Path, *, revision: str | None = None, app: str = "default", timeout: float = 60.0
) -> list[str]:
    """Add or replace a task of a running application, see `ClusterTasks.load`."""
    return ClusterTasks(app, timeout).load(name, adapter, revision)


def unload_adapter(name: str, *, app: str = "default", timeout: float = 60.0) -> list[str]:
    """Remove a task of a running application, see `ClusterTasks.unload`."""
    return ClusterTasks(app, timeout).unload(name)
