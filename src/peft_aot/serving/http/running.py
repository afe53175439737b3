"""An application on a port until a signal comes; then what was accepted is answered, and the engine is closed."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from .app import make_app
from .auth import check_exposure
from .contract import Engine
from .health import Readiness
from .logs import log_to_stderr
from .settings import Settings


class DrainingServer(uvicorn.Server):
    """Says that it is not ready as soon as it is told to stop, and listens `delay` seconds more.

    Args:
        config: Of uvicorn.
        readiness: Told.
        delay: Seconds.
    """

    def __init__(self, config: uvicorn.Config, readiness: Readiness, delay: float) -> None:
        super().__init__(config)
        self._readiness = readiness
        self._delay = delay

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal."""
        self._readiness.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        self._readiness.draining = True
        if not self.force_exit:
            await asyncio.sleep(self._delay)
        await super().shutdown(sockets)


def serve(engine: Engine, settings: Settings, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        engine: Answers; closed at the end.
        settings: Limits and permissions.
        host: Name or address to listen on.
        port: Port to listen on; 0 takes a free one.
        ready: Told the address of the page once the port is taken.

    Raises:
        ValueError: Others could load adapters, see `check_exposure`.
        OSError: The port cannot be had.
    """
    check_exposure(host, settings.keys, settings.loading)
    app = make_app(engine, settings)
    listener = _listen(host, port)
    log_to_stderr()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
    )
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listener.getsockname()[1]}/")
    DrainingServer(config, app.state.readiness, settings.drain_delay).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(
            f"expected a free port {port} on {host}, got: {error.strerror or error}; choose another with --port"
        ) from error
