"""Ray's cluster: started on this machine or connected to, and left again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

PATIENCE = 15.0  # seconds in which a cluster must answer; Ray itself would try for minutes
SOCKET_ROOM = 38  # longest folder that Ray's sockets, 64 characters below it, can have on every system
USUAL_PLACE = "/tmp/ray"  # Ray's own, where TMPDIR is longer
OBJECT_STORE_BYTES = 100 * 2**20  # only options and records pass through it
SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a run that was given no accelerator sees none
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table even when told to be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 lets any other program starve the runs
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own waits for every worker
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
CARRIED = ("HF_", "TOKENIZERS_", "TRANSFORMERS_")  # variables that a cluster's workers are given
SECRET = ("HF_TOKEN",)  # a cluster shows the variables it was given to whoever may look at it


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def connected(address: str | None, folder: str) -> Iterator[None]:
    """Start Ray in `folder`, or connect; at the end take leave of it, which stops what still runs.

    A handler of SIGTERM that the caller has stays his; Ray's own would abort the process.
    """
    if ray.is_initialized():
        raise ValueError(
            "expected a process that is not connected to Ray, got one that is; call ray.shutdown(), and pass the "
            "address to stay on that cluster"
        )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(
                address="local",  # whatever RAY_ADDRESS says
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                _temp_dir=folder if len(folder) <= SOCKET_ROOM else USUAL_PLACE,
            )
        else:
            _check(address)
            carried = {
                name: value
                for name, value in os.environ.items()
                if name.startswith(CARRIED) and not name.startswith(SECRET)
            }
            try:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    runtime_env={"env_vars": {**carried, **SETTINGS}},
                )
            except RuntimeError as error:  # other versions than this process has
                raise _no_cluster(address, " ".join(str(error).split())) from error
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """Ask for the cluster's status in a process of its own: Ray cannot be told when to give up.

    Raises:
        ConnectionError: It does not answer.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        reason = "" if asked.returncode == 0 else (asked.stderr.strip().splitlines() or ["no answer"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {PATIENCE:g} seconds"
    if reason:
        raise _no_cluster(address, reason)


def _no_cluster(address: str, reason: str) -> ConnectionError:
    return ConnectionError(
        f"expected a Ray cluster at {address}, got: {reason}; start one with `ray start --head` in this environment "
        "and pass the address it prints, or pass none to start Ray on this machine"
    )
