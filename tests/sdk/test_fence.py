"""The fence of a resource."""

from __future__ import annotations

from pathlib import Path

import pytest

from ha.sdk import Fence, StaleEpoch


def test_a_lower_fencing_number_is_refused_once_a_higher_one_was_seen() -> None:
    fence = Fence()
    assert [fence.admit(epoch) for epoch in (1, 1, 5, 4, 5, 6)] == [True, True, True, False, True, True]
    with pytest.raises(StaleEpoch, match="cannot act at epoch 5: epoch 6 was seen"):
        fence.require(5)
    fence.require(6)


def test_the_highest_number_outlives_the_resource(tmp_path: Path) -> None:
    assert Fence(tmp_path / "fence").admit(9)
    again = Fence(tmp_path / "fence")
    assert again.highest == 9
    assert not again.admit(8)
    assert again.admit(10)
    assert (tmp_path / "fence").read_text() == "10\n"


def test_a_number_that_cannot_be_kept_is_not_admitted(tmp_path: Path) -> None:
    fence = Fence(tmp_path / "missing" / "fence")
    with pytest.raises(OSError, match="No such file"):
        fence.admit(1)
    assert fence.highest == 0


def test_a_damaged_file_is_an_error_and_never_epoch_zero(tmp_path: Path) -> None:
    (tmp_path / "fence").write_text("")
    with pytest.raises(ValueError, match="invalid literal"):
        Fence(tmp_path / "fence")
