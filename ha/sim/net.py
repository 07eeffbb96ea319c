"""Net: links between nodes. FIFO a pair of agents, with delay, loss and cuts; a cut may be one-way.

What crosses a node's border may be lost; what stays on a node is only late. A sample of the messages goes through the
real codec, so that what the machines say can be said on a wire.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ha.model.messages import Message
from ha.model.timing import MS
from ha.sim.kernel import Kernel

CODEC_SAMPLE = 64  # every n-th message is encoded and decoded


@dataclass(slots=True)
class Net:
    """All links. `cut`: (from node, to node) pairs that carry nothing; `loss`: chance of losing one message."""

    kernel: Kernel
    loss: float = 0.0
    delay: tuple[int, int] = (50_000, 400_000)  # ns
    cut: set[tuple[str, str]] = field(default_factory=set)
    last: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    sent: int = 0
    lost: int = 0

    def send(
        self,
        source: tuple[str, str],
        to: tuple[str, str],
        body: Message,
        deliver: Callable[[Message], None],
        start: int,
    ) -> None:
        """Carry `body` from (role, node) to (role, node), leaving at `start`."""
        self.sent += 1
        remote = source[1] != to[1]
        if remote and ((source[1], to[1]) in self.cut or self.kernel.rng.random() < self.loss):
            self.lost += 1
            return
        if self.sent % CODEC_SAMPLE == 0:
            body = msgspec.msgpack.Decoder(type(body)).decode(msgspec.msgpack.encode(body))
        spread = self.delay if remote else (20_000, 150_000)
        arrival = start + self.kernel.between(*spread)
        if self.kernel.rng.random() < 0.001:
            arrival += self.kernel.between(1, 30) * MS
        pair = (*source, *to)
        arrival = max(arrival, self.last.get(pair, 0) + 1)
        self.last[pair] = arrival

        def arrive() -> None:
            if not remote or (source[1], to[1]) not in self.cut:
                deliver(body)

        self.kernel.at(arrival, arrive)

    def isolate(self, nodes: set[str], others: set[str], *, one_way: bool = False) -> None:
        """Cut every link from `nodes` to `others`, and back unless `one_way`."""
        for a in nodes:
            for b in others:
                self.cut.add((a, b))
                if not one_way:
                    self.cut.add((b, a))

    def heal(self) -> None:
        """Mend every cut and stop losing."""
        self.cut.clear()
        self.loss = 0.0
