"""The network that HiWi trains: pretrained values in, what is added to them out, `f(v W_down) W_up` (arXiv 2305.16742).

A bias (n,) is one row of values, a weight matrix (out, in) is `out` rows. Knows neither modules nor adapters.

Letters: n width of a row, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peft_aot.ops import ACTIVATIONS

from .config import HiWiConfig


class Network(nn.Module):
    """Two matrices, W_down (n, R) and W_up (R, n).

    W_down starts random with variance 1/n, W_up at zero, so that nothing is added at the start.

    Args:
        width: n.
        config: The adapter's configuration.
    """

    def __init__(self, width: int, config: HiWiConfig) -> None:
        super().__init__()
        self.width = width
        self.activation = config.activation
        self.down = nn.Parameter(random_down(torch.empty(width, config.r)))
        self.up = nn.Parameter(torch.zeros(config.r, width))
        if not config.init_weights:
            nn.init.normal_(self.up, std=4.0)

    def hidden(self, rows: Tensor) -> Tensor:
        """Compute `f(v W_down)`, (..., n) to (..., R), in the precision of W_down whatever autocast says."""
        with torch.autocast(self.down.device.type, enabled=False):
            return ACTIVATIONS[self.activation](rows.to(self.down) @ self.down)

    def forward(self, rows: Tensor) -> Tensor:
        """Compute what is added to rows, (..., n) to (..., n)."""
        hidden = self.hidden(rows)
        with torch.autocast(self.up.device.type, enabled=False):
            return hidden @ self.up


def random_down(down: Tensor) -> Tensor:
    """Fill W_down (n, R) with values to start from."""
    with torch.no_grad():
        return down.normal_(std=down.shape[0] ** -0.5)
