"""Tenant files as versions: what a directory changes, and that all Servers end with the same."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ha.core import catalog
from ha.core.catalog import State, join, look, merge
from ha.model.digest import digest_of
from ha.model.messages import CatalogEntry

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


def both_at(content: bytes) -> tuple[State, State]:
    """Two sides, each with its own directory, whose files are the same."""
    here, there = State(), State()
    mine = look(here, "a1", {"acme": content}, NONE).changed
    merge(here, look(there, "b1", {"acme": content}, NONE).changed)
    merge(there, mine)
    return here, there


def test_an_edit_of_a_file_that_is_older_than_what_stands_is_refused_until_it_is_confirmed() -> None:
    here, there = both_at(b"1")
    merge(there, look(here, "a1", {"acme": b"2"}, NONE).changed)
    assert look(there, "b1", {"acme": b"other"}, NONE).changed == ()
    assert "not based on the version of a1" in there.refused["acme"]
    assert catalog.alive(there) == {"acme": b"2"}
    (taken,) = look(there, "b1", {"acme": b"other"}, NONE, confirmed=True).changed
    assert (taken.serial, taken.base, there.refused) == (3, digest_of(b"2"), {})


def test_a_refused_file_that_is_brought_to_what_stands_can_be_edited_again() -> None:
    here, there = both_at(b"1")
    merge(there, look(here, "a1", {"acme": b"2"}, NONE).changed)
    look(there, "b1", {"acme": b"other"}, NONE)
    look(there, "b1", {"acme": b"2"}, NONE)
    assert there.refused == {}
    assert look(there, "b1", {"acme": b"3"}, NONE).changed[0].serial == 3


def test_a_confirmation_does_not_bring_old_files_back() -> None:
    here, there = both_at(b"1")
    merge(there, look(here, "a1", {"acme": b"2"}, NONE).changed)
    assert look(there, "b1", {"acme": b"1"}, NONE, confirmed=True).changed == ()


def test_removing_an_old_file_does_not_remove_the_newer_version_of_the_other_side() -> None:
    here, there = both_at(b"1")
    merge(there, look(here, "a1", {"acme": b"2"}, NONE).changed)
    assert look(there, "b1", {}, NONE).changed == ()
    assert catalog.alive(there) == {"acme": b"2"}


def test_removals_that_another_server_confirmed_do_not_wait_here_again() -> None:
    here, there = State(), State()
    files = {"acme": b"1", "globex": b"1"}
    merge(there, look(here, "a1", files, NONE).changed)
    look(there, "b1", files, NONE)
    assert look(there, "b1", {}, NONE).waiting == ("acme", "globex")
    merge(there, look(here, "a1", {}, NONE, confirmed=True).changed)
    seen = look(there, "b1", {}, NONE)
    assert (seen.waiting, seen.why, seen.changed) == ((), "", ())


def test_a_file_dropped_again_after_its_removal_is_a_new_version() -> None:
    state = State()
    look(state, "a1", {"acme": b"1"}, NONE)
    look(state, "a1", {}, NONE)
    (again,) = look(state, "a1", {"acme": b"1"}, NONE).changed
    assert (again.serial, again.tombstone) == (3, False)


def test_a_change_with_which_an_untouched_file_no_longer_passes_waits_for_that_file() -> None:
    state = State()
    look(state, "a1", {"acme": b"1", "system": b"1"}, NONE)
    assert look(state, "a1", {"acme": b"1", "system": b"2"}, frozenset({"acme"})).changed == ()
    assert state.refused == {"system": "acme would not pass with it"}
    changed = look(state, "a1", {"acme": b"2", "system": b"2"}, NONE).changed
    assert [entry.name for entry in changed] == ["acme", "system"]
    assert state.refused == {}


def test_a_new_file_that_does_not_pass_holds_no_other_back() -> None:
    state = State()
    assert [entry.name for entry in look(state, "a1", {"acme": b"1", "bad": b"1"}, frozenset({"bad"})).changed] == [
        "acme"
    ]


STEPS = st.lists(
    st.tuples(st.sampled_from(["a1", "b1"]), st.sampled_from([None, b"1", b"2", b"3"]), st.booleans()), max_size=8
)


@given(STEPS, st.booleans())
def test_two_sides_end_with_the_same_whatever_is_edited_where_and_when_they_hear_it(
    steps: list[tuple[str, bytes | None, bool]], shared: bool
) -> None:
    states = {"a1": State(), "b1": State()}
    directories: dict[str, dict[str, bytes]] = {"a1": {}, "b1": {}}

    def tell() -> None:
        entries = {node: tuple(state.entries.values()) for node, state in states.items()}
        merge(states["a1"], entries["b1"])
        merge(states["b1"], entries["a1"])

    for node, content, heard in steps:
        for where in directories if shared else (node,):
            directories[where] = {} if content is None else {"acme": content}
            look(states[where], where, directories[where], NONE)
        if heard:
            tell()
    for _ in range(3):
        tell()
        for node, state in states.items():
            look(state, node, directories[node], NONE)
    tell()
    assert states["a1"].entries == states["b1"].entries
    assert catalog.digest(states["a1"]) == catalog.digest(states["b1"])
    if shared:
        assert catalog.alive(states["a1"]) == directories["a1"]
        assert not states["a1"].refused
        assert not states["b1"].refused


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


@given(ENTRIES, ENTRIES, ENTRIES)
def test_joining_is_associative_and_idempotent(one: CatalogEntry, two: CatalogEntry, three: CatalogEntry) -> None:
    assert join(join(one, two), three) == join(one, join(two, three))
    assert join(one, one) == one
