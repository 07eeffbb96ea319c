"""Tenant files as versions: what a directory changes, and that all Servers end with the same."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ha.core import catalog
from ha.core.catalog import State, join, look, merge
from ha.model.messages import CatalogEntry
from ha.model.plan import digest_of

NONE: frozenset[str] = frozenset()


def test_a_dropped_file_becomes_version_one_and_an_edit_carries_what_it_was_based_on() -> None:
    state = State()
    (first,) = look(state, "a1", {"acme": b"1"}, NONE).changed
    assert (first.serial, first.base, first.origin) == (1, "", ("a1",))
    (second,) = look(state, "a1", {"acme": b"2"}, NONE).changed
    assert (second.serial, second.base, second.digest) == (2, first.digest, digest_of(b"2"))
    assert look(state, "a1", {"acme": b"2"}, NONE).changed == ()


def test_a_file_that_does_not_pass_changes_nothing() -> None:
    state = State()
    look(state, "a1", {"acme": b"1"}, NONE)
    assert look(state, "a1", {"acme": b"broken"}, frozenset({"acme"})).changed == ()
    assert catalog.alive(state) == {"acme": b"1"}
    assert look(state, "a1", {"acme": b"3"}, NONE).changed[0].serial == 2


def test_one_removed_file_leaves_a_tombstone() -> None:
    state = State()
    look(state, "a1", {"acme": b"1", "globex": b"1"}, NONE)
    (stone,) = look(state, "a1", {"globex": b"1"}, NONE).changed
    assert stone.tombstone
    assert list(catalog.alive(state)) == ["globex"]


def test_several_removals_and_a_missing_directory_wait_for_a_confirmation() -> None:
    state = State()
    look(state, "a1", {"acme": b"1", "globex": b"1"}, NONE)
    for files in ({}, None):
        held = look(state, "a1", files, NONE)
        assert held.changed == ()
        assert held.waiting == ("acme", "globex")
        assert held.why
    assert len(look(state, "a1", {}, NONE, confirmed=True).changed) == 2
    assert catalog.alive(state) == {}


def test_a_file_that_lies_on_another_node_is_not_removed_by_its_absence_here() -> None:
    here, there = State(), State()
    (entry,) = look(there, "b1", {"acme": b"1"}, NONE).changed
    merge(here, (entry,))
    assert look(here, "a1", {}, NONE).changed == ()
    assert catalog.alive(here) == {"acme": b"1"}


def test_the_same_edit_seen_on_two_nodes_is_one_edit() -> None:
    here, there = State(), State()
    mine = look(here, "a1", {"acme": b"1"}, NONE).changed
    yours = look(there, "b1", {"acme": b"1"}, NONE).changed
    merge(here, yours)
    merge(there, mine)
    assert here.entries == there.entries
    assert here.entries["acme"].origin == ("a1", "b1")
    assert not here.refused
    assert not there.refused


def test_of_two_edits_on_two_sides_one_stands_and_the_other_is_refused_with_a_reason() -> None:
    here, there = State(), State()
    base = look(here, "a1", {"acme": b"1"}, NONE).changed
    merge(there, base)
    look(there, "b1", {"acme": b"1"}, NONE)
    mine = look(here, "a1", {"acme": b"mine"}, NONE).changed
    yours = look(there, "b1", {"acme": b"yours"}, NONE).changed
    merge(here, yours)
    merge(there, mine)
    assert here.entries["acme"].digest == there.entries["acme"].digest
    assert "at once" in here.refused.get("acme", "") + there.refused.get("acme", "")


def test_an_old_file_on_a_node_that_was_away_does_not_undo_a_newer_version() -> None:
    here, there = State(), State()
    merge(there, look(here, "a1", {"acme": b"1"}, NONE).changed)
    look(there, "b1", {"acme": b"1"}, NONE)
    merge(there, look(here, "a1", {"acme": b"2"}, NONE).changed)
    assert look(there, "b1", {"acme": b"1"}, NONE).changed == ()
    assert catalog.alive(there) == {"acme": b"2"}


ENTRIES = st.builds(
    lambda serial, content, base, origin, stone: CatalogEntry(
        "acme", serial, digest_of(content), base, origin, content, stone
    ),
    st.integers(1, 4),
    st.sampled_from([b"x", b"y", b"z"]),
    st.sampled_from(["", "q"]),
    st.sampled_from([("a1",), ("b1",), ("a1", "b1")]),
    st.booleans(),
)


@given(st.lists(ENTRIES, min_size=1, max_size=4))
def test_all_servers_end_with_the_same_whatever_the_order(entries: list[CatalogEntry]) -> None:
    ends = set()
    for order in itertools.permutations(entries):
        state = State()
        for entry in order:
            merge(state, (entry,))
        assert merge(state, tuple(order)) == (), "hearing it again changes nothing"
        end = state.entries["acme"]
        ends.add((end.serial, end.digest, end.tombstone))
    assert len(ends) == 1


@given(ENTRIES, ENTRIES)
def test_joining_is_commutative(one: CatalogEntry, two: CatalogEntry) -> None:
    assert join(one, two) == join(two, one)
