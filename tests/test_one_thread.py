"""A thread that is to compute alone gets no team of OpenMP threads, and others keep theirs."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from peft_aot.one_thread import all_threads, one_thread

CPU = torch.device("cpu")
SCRIPT = """
import os, threading
import torch
from peft_aot.one_thread import one_thread

if {set}:
    torch.set_num_threads(3)

def told(device):
    torch.ones(1)
    before = len(os.listdir("/proc/self/task"))
    with one_thread(torch.device(device)):
        torch.ones(600, 600) @ torch.ones(600, 600) + torch.ones(600, 600)
        print(len(os.listdir("/proc/self/task")) - before)

for device in ("cpu", "meta"):
    thread = threading.Thread(target=told, args=(device,))
    thread.start()
    thread.join()
"""


def numbers() -> tuple[int, int]:
    """How many threads this thread has, and one that begins now."""
    with ThreadPoolExecutor(1) as pool:
        return torch.get_num_threads(), pool.submit(torch.get_num_threads).result()


@pytest.mark.parametrize("given", [1, 3])
def test_only_this_thread_has_one_and_only_inside(given: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(given)
        with one_thread(CPU):
            assert numbers() == (1, given)
        assert numbers() == (given, given)
        with pytest.raises(KeyError), one_thread(CPU):
            raise KeyError
        assert numbers() == (given, given)
        with one_thread(torch.device("meta")):
            assert numbers() == (given, given)
    finally:
        torch.set_num_threads(before)


def test_a_thread_that_begins_meanwhile_gets_all_of_its_own() -> None:
    before, stop = torch.get_num_threads(), threading.Event()

    def change() -> None:
        while not stop.is_set():
            with one_thread(CPU):
                pass

    def begin() -> int:
        with all_threads():
            return torch.get_num_threads()

    torch.set_num_threads(3)
    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(200):
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(begin).result() == 3
    finally:
        stop.set()
        changing.join()
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc, which is not here")
@pytest.mark.parametrize("given", [True, False], ids=["a number that was set", "the machine's"])
def test_no_team_is_made_but_beside_an_accelerator(given: bool) -> None:
    script = SCRIPT.format(set=given)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    beside_cpu, beside_accelerator = map(int, done.stdout.split())
    assert beside_cpu == 0
    if given:
        assert beside_accelerator >= 1
