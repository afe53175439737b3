"""Tests that share something expensive run in one process: pytest and pytest-xdist still agree on how that is said."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("together")
def test_a_group_is_known_to_the_scheduler(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("only where pytest-xdist distributes groups: pytest -n 2 --dist loadgroup")
    assert request.node.nodeid.endswith("@together")
