"""What is measured, each in a process of its own: what one leaves behind in its process slows no other.

Threads that torch made once for one of them would (see `peft_aot.one_thread`), and so would memory.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from load.setting import quiet


class Apart:
    """An object in another process.

    Args:
        make: Makes it there; a class or function that can be imported.
        arguments: For `make`.

    Raises:
        RuntimeError: It could not be made; says why.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object, and return what it returns.

        Raises:
            RuntimeError: It raised; says what.
        """
        self._connection.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            failed, found = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"expected an answer, got the end of the process ({self._process.exitcode})") from None
        if failed:
            raise RuntimeError(found)
        return found

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    quiet()
    try:
        made = make(*arguments)
        connection.send((False, None))
    except Exception as error:
        connection.send((True, f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            method, given = connection.recv()
        except EOFError:
            return
        try:
            connection.send((False, getattr(made, method)(*given)))
        except Exception as error:
            connection.send((True, f"{type(error).__name__}: {error}"))
