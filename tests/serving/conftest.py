from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from served_models import Saved, save_backbone, save_task


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """A backbone of an architecture and a task of each kind on it, saved once."""
    made: dict[str, Saved] = {}

    def make(name: str) -> Saved:
        if name not in made:
            folder: Path = tmp_path_factory.mktemp(name)
            backbone = save_backbone(name, folder / "backbone")
            kinds = ("trec", "topics", "score", "names", "vectors", "sentiment", "fused")
            tasks = {kind: save_task(backbone, kind, folder / kind, seed) for seed, kind in enumerate(kinds)}
            made[name] = Saved(backbone, tasks)
        return made[name]

    return make
