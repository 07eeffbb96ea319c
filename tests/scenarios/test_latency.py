"""How long a move takes on a system where nothing else goes wrong."""

from __future__ import annotations

import pytest

from ha.sim.latency import crash_of_copy, loss_of_node


def test_an_offer_that_overtakes_the_release_does_not_cost_a_promise() -> None:
    assert crash_of_copy(9, "default") < 100


@pytest.mark.parametrize(("profile", "bound_ms"), [("default", 1_200), ("fast", 600)])
def test_the_loss_of_a_node_is_over_within_the_bound_of_its_profile(profile: str, bound_ms: int) -> None:
    assert max(loss_of_node(seed, profile) for seed in range(1, 6)) < bound_ms
