"""`on_event`: the tenant's command is run with the event, on the node where it happened."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from benchmarks.cluster import Cluster

pytestmark = pytest.mark.e2e


def test_the_tenants_command_hears_of_its_events_and_of_no_others(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\nprintf "%s\\n" "$HA_EVENT" >> {heard}\n')
    hook.chmod(0o755)
    process = '[process.p]\ncommand = ["/bin/sleep", "1000"]\n'
    with Cluster(nodes={"a1": "a", "b1": "b"}) as cluster:
        cluster.write_tenant("acme", f'[tenant]\non_event = ["{hook}"]\n{process}')
        cluster.write_tenant("globex", process)
        cluster.start()
        cluster.wait(lambda status: status["tenants"]["acme"]["state"] == "ok", "acme is ok")
        until = time.monotonic() + 10
        while not (heard.exists() and '"claimed"' in heard.read_text()):
            assert time.monotonic() < until, "the hook never heard of the claim"
            time.sleep(0.02)
        events = [json.loads(line) for line in heard.read_text().splitlines()]
        assert {event["subject"].partition("/")[0] for event in events} == {"acme"}
        claimed = next(event for event in events if event["kind"] == "claimed")
        assert (claimed["to"], claimed["epoch"]) == ("a", 1)
