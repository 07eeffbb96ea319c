"""Registers: operators' intents, kept on every Server, fsynced (design rule 17). Last writer wins by (serial, node)."""

from __future__ import annotations

from ha.core.machine import Persist, Send
from ha.core.server.state import State
from ha.model.digest import digest_of
from ha.model.messages import CatalogEntry, PeerShare, Register
from ha.model.names import Agent
from ha.model.timing import MS

SHARE_EVERY_MS = 500


def restore(state: State, restored: dict[str, object]) -> None:
    """Take the intents from the journal."""
    for key, value in restored.items():
        if key.startswith("reg/") and isinstance(value, list | tuple):
            text, serial, node = value
            state.registers[key[4:]] = Register(key[4:], str(text), int(serial), str(node))
    _redigest(state)


def set_register(state: State, key: str, value: str, now: int) -> Register:
    """Write an intent: on disk here before it goes to the other Servers."""
    serial = max((register.serial for register in state.registers.values()), default=0) + 1
    register = Register(key, value, serial, state.node)
    _put(state, register)
    share(state, (register,))
    _touched(state, key)
    return register


def share(state: State, registers: tuple[Register, ...]) -> None:
    """Tell the other Servers; what does not arrive is found by the digest in the beats."""
    for server in state.system.servers():
        if server != state.node:
            state.out.append(Send(Agent.SERVER, server, PeerShare(registers, ())))


def merge(state: State, registers: tuple[Register, ...]) -> None:
    """Take the intents of another Server that are newer than ours."""
    for register in registers:
        known = state.registers.get(register.key)
        if known is None or (register.serial, register.node) > (known.serial, known.node):
            _put(state, register)
            _touched(state, register.key)


def compare(state: State, now: int) -> None:
    """Exchange everything with a peer whose digests differ, at a bounded pace."""
    for name, peer in state.peers.items():
        beat = peer.beat
        same = (beat.registers_digest, beat.catalog_digest) == (state.registers_digest, state.catalog_digest)
        if same or now - peer.shared_at < SHARE_EVERY_MS * MS or now - peer.at > SHARE_EVERY_MS * MS:
            continue
        peer.shared_at = now
        everything = tuple(state.registers[key] for key in sorted(state.registers))
        entries = catalog_entries(state)
        state.out.append(Send(Agent.SERVER, name, PeerShare(everything, entries, want=True)))


def catalog_entries(state: State) -> tuple[CatalogEntry, ...]:
    """Return all tenant files as versions."""
    return tuple(state.catalog.entries[name] for name in sorted(state.catalog.entries))


def _put(state: State, register: Register) -> None:
    state.registers[register.key] = register
    state.out.append(Persist(f"reg/{register.key}", [register.value, register.serial, register.node]))
    _redigest(state)


def _redigest(state: State) -> None:
    text = repr([(r.key, r.value, r.serial, r.node) for _, r in sorted(state.registers.items())])
    state.registers_digest = digest_of(text.encode())


def _touched(state: State, key: str) -> None:
    parts = key.split("/")
    if parts[0] == "dir":
        return  # only shown
    if parts[0] in ("wanted", "reset", "restart", "failed", "hold") and len(parts) > 1:
        state.touch(parts[1])
        for run in [state.runs[parts[1]]] if parts[1] in state.runs else []:
            run.next_try = 0
            if parts[0] == "reset":
                run.escalated.clear()
                run.moves = 0
    else:
        for tenant in state.tenants:
            state.touch(tenant)
