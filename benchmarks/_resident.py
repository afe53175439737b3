"""What of this process is in memory, by Linux's own account: what benchmarks of memory share."""

from __future__ import annotations

from pathlib import Path

EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
"""Environment in which glibc gives every larger tensor pages of its own and takes them back at once, so that the peak
is that of the tensors and not of holes between them."""


def resident(field: str) -> int:
    """Read `VmRSS` (now) or `VmHWM` (the most since `forget_peak`) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"expected {field} in /proc/self/status, got none; run this on Linux")


def forget_peak() -> None:
    """Make `VmHWM` what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
