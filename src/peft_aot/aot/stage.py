"""Memory for the rows of one call, all blocks of its stack at once: borrowed by the call, given back at its end.

Filling such memory is cheap, allocating it anew for every batch is not: the system hands out fresh pages one by one.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

Place = tuple[torch.dtype, torch.device, int]
"""Where a buffer may be used again: work of one stream on an accelerator ends in order, that of several does not."""


class Buffers:
    """Tensors that calls borrow, as many as there were calls at one time; safe to use from several threads.

    A buffer stays as large as the largest batch has made it.
    """

    def __init__(self) -> None:
        self._free: dict[Place, list[Tensor]] = defaultdict(list)

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()  # a copy of a model borrows from buffers of its own

    def borrow(self, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a tensor of at least `elements` elements, of one dimension, whose values mean nothing."""
        try:
            buffer: Tensor | None = self._free[_place(dtype, device)].pop()
        except IndexError:
            buffer = None
        if buffer is not None and buffer.numel() >= elements:
            return buffer
        with torch.inference_mode(False):  # else it could not be written to outside inference mode
            return torch.empty(elements, dtype=dtype, device=device)

    def give_back(self, buffer: Tensor) -> None:
        """Let later calls have a buffer."""
        self._free[_place(buffer.dtype, buffer.device)].append(buffer)


def _place(dtype: torch.dtype, device: torch.device) -> Place:
    stream = torch.cuda.current_stream(device).stream_id if device.type == "cuda" else 0
    return dtype, device, stream
