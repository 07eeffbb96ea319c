"""StateTable: lost, doubled and reordered messages never leave a table that is wrong and believed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ha.core.table import Digest, StateTable, table_digest
from ha.model.messages import CopyState, Snapshot, StateBeat, StateDelta
from ha.model.status import State

KEYS = ("acme/acd.1", "acme/acd.2", "acme/db.1", "system/sip.1")


def copy(key: str, state: State = State.READY, pid: int = 10) -> CopyState:
    return CopyState(key, state, (1, 1, 1), 1, pid=pid)


class Teller:
    """A Monitor reduced to its table: the truth the receiver must reach."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.seq = 0
        self.copies: dict[str, CopyState] = {}

    def change(self, key: str, pid: int | None) -> StateDelta:
        self.seq += 1
        if pid is None:
            self.copies.pop(key, None)
            return StateDelta((), (key,), self.seq)
        self.copies[key] = copy(key, pid=pid)
        return StateDelta((self.copies[key],), (), self.seq)

    def beat(self) -> StateBeat:
        return StateBeat(self.seq, table_digest(self.copies.values()))

    def snapshot(self, parts: int = 1) -> list[Snapshot]:
        copies = list(self.copies.values())
        return [Snapshot(self.seq, n, parts, tuple(copies[n::parts])) for n in range(parts)]


def test_first_message_of_a_node_asks_for_a_snapshot() -> None:
    table = StateTable()
    assert table.apply("a1", 7, Teller(7).beat()) == ((), True)
    assert not table.synced("a1")


def test_delta_before_the_snapshot_is_kept_and_applied_after_it() -> None:
    table, teller = StateTable(), Teller(7)
    teller.change(KEYS[0], 1)
    snapshot = teller.snapshot()[0]
    assert table.apply("a1", 7, teller.change(KEYS[1], 2)).need_snapshot
    assert table.apply("a1", 7, snapshot) == ((KEYS[0], KEYS[1]), False)
    assert dict(table.copies("a1")) == teller.copies


def test_gap_is_not_applied_across() -> None:
    table, teller = synced()
    teller.change(KEYS[0], 2)
    late = teller.change(KEYS[1], 3)
    assert table.apply("a1", 7, late) == ((), True)
    assert table.get("a1", KEYS[1]) is None


def test_gap_closes_when_the_missing_delta_comes_by_the_other_address() -> None:
    table, teller = synced()
    first, second = teller.change(KEYS[0], 2), teller.change(KEYS[1], 3)
    table.apply("a1", 7, second)
    assert table.apply("a1", 7, first) == ((KEYS[0], KEYS[1]), False)


def test_doubled_delta_changes_nothing() -> None:
    table, teller = synced()
    delta = teller.change(KEYS[0], 5)
    assert table.apply("a1", 7, delta) == ((KEYS[0],), False)
    assert table.apply("a1", 7, delta) == ((), False)


def test_beat_shows_a_lost_tail() -> None:
    table, teller = synced()
    teller.change(KEYS[0], 5)
    assert table.apply("a1", 7, teller.beat()) == ((), True)


def test_beat_shows_another_digest() -> None:
    table, teller = synced()
    assert table.apply("a1", 7, StateBeat(teller.seq, "0000000000000000.9")).need_snapshot
    assert not table.apply("a1", 7, teller.snapshot()[0]).need_snapshot


def test_new_incarnation_keeps_the_old_copies_until_its_snapshot() -> None:
    table, _ = synced()
    new = Teller(8)
    assert table.apply("a1", 8, new.beat()) == ((), True)
    assert table.get("a1", KEYS[0]) is not None
    assert table.apply("a1", 8, new.snapshot()[0]) == ((KEYS[0],), False)
    assert dict(table.copies("a1")) == {}


def test_late_message_of_an_old_incarnation_changes_nothing() -> None:
    table, old = synced()
    new = Teller(8)
    table.apply("a1", 8, new.snapshot()[0])
    assert table.apply("a1", 7, old.change(KEYS[0], 9)) == ((), False)
    assert table.apply("a1", 7, old.snapshot()[0]) == ((), False)


def test_older_snapshot_does_not_take_the_table_back() -> None:
    table, teller = synced()
    old = teller.snapshot()[0]
    table.apply("a1", 7, teller.change(KEYS[0], 9))
    assert table.apply("a1", 7, old) == ((), False)
    assert table.get("a1", KEYS[0]) == copy(KEYS[0], pid=9)


def test_snapshot_in_parts_counts_when_all_are_there_in_any_order() -> None:
    table, teller = StateTable(), Teller(7)
    for n, key in enumerate(KEYS):
        teller.change(key, n + 1)
    parts = teller.snapshot(3)
    for part in (parts[2], parts[2], parts[0]):
        assert table.apply("a1", 7, part) == ((), True)
    assert not table.apply("a1", 7, parts[1]).need_snapshot
    assert dict(table.copies("a1")) == teller.copies


def test_part_number_out_of_range_is_ignored() -> None:
    table = StateTable()
    assert table.apply("a1", 7, Snapshot(0, 5, 2, ())).need_snapshot
    assert table.apply("a1", 7, Snapshot(0, 0, 0, ())).need_snapshot


def test_nodes_do_not_touch_each_other() -> None:
    table, _ = synced()
    table.apply("b1", 1, StateDelta((copy(KEYS[0], pid=77),), (), 1))
    assert table.get("a1", KEYS[0]) == copy(KEYS[0], pid=1)
    assert table.nodes() == ("a1", "b1")
    table.forget("b1")
    assert table.nodes() == ("a1",)
    assert dict(table.copies("b1")) == {}
    assert table.get("b1", KEYS[0]) is None


def test_pending_deltas_are_bounded_and_the_gap_still_shows() -> None:
    table, teller = StateTable(), Teller(7)
    for n in range(3_000):
        result = table.apply("a1", 7, teller.change(KEYS[n % 4], n + 1))
    assert result.need_snapshot
    assert table.apply("a1", 7, Snapshot(0, 0, 1, ())).need_snapshot
    assert not table.apply("a1", 7, teller.snapshot()[0]).need_snapshot


changes = st.lists(st.tuples(st.sampled_from(KEYS), st.one_of(st.none(), st.integers(1, 9))), max_size=30)


@given(changes, st.randoms(use_true_random=False))
def test_lost_doubled_and_reordered_messages_converge_after_a_snapshot(
    script: list[tuple[str, int | None]], random: object
) -> None:
    import random as random_module

    assert isinstance(random, random_module.Random)
    table, teller = StateTable(), Teller(7)
    wire: list[StateDelta | StateBeat | Snapshot] = list(teller.snapshot())
    truth = {0: dict(teller.copies)}
    for key, pid in script:
        wire.append(teller.change(key, pid))
        truth[teller.seq] = dict(teller.copies)
        wire.append(teller.beat())
    sent = [message for message in wire for _ in range(random.choice((0, 1, 1, 2)))]
    if random.random() < 0.5:
        random.shuffle(sent)
    for message in sent:
        table.apply("a1", 7, message)
        if table.synced("a1"):  # believed, so it must be one state the Monitor really had
            assert dict(table.copies("a1")) in truth.values()
    table.apply("a1", 7, teller.snapshot()[0])
    assert table.apply("a1", 7, teller.beat()) == ((), False)
    assert dict(table.copies("a1")) == teller.copies


@given(changes)
def test_digest_kept_along_the_way_equals_that_of_the_whole_table(script: list[tuple[str, int | None]]) -> None:
    teller, digest = Teller(7), Digest()
    for key, pid in script:
        teller.change(key, pid)
        if pid is None:
            digest.drop(key)
        else:
            digest.put(copy(key, pid=pid))
    assert digest.text == table_digest(teller.copies.values())
    assert digest.text == table_digest(list(teller.copies.values())[::-1])


def synced() -> tuple[StateTable, Teller]:
    table, teller = StateTable(), Teller(7)
    teller.change(KEYS[0], 1)
    assert not table.apply("a1", 7, teller.snapshot()[0]).need_snapshot
    return table, teller
