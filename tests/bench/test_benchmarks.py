from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import supervision, tree  # noqa: E402
from benchmarks.cluster import Cluster  # noqa: E402
from benchmarks.measure import Figure, percentile  # noqa: E402
from benchmarks.peers import Bare  # noqa: E402
from benchmarks.report import table  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default::pytest.PytestUnhandledThreadExceptionWarning")


def test_percentile_is_by_nearest_rank():
    samples = tuple(float(n) for n in range(1, 101))
    assert (percentile(samples, 0.5), percentile(samples, 0.99), percentile((), 0.5)) == (50.0, 99.0, None)


def test_the_table_has_ratios_to_the_floor_and_words_for_what_was_not_measured():
    text = table(
        [Figure("f", "bare loop", "ms", (2.0,)), Figure("f", "x", "ms", (6.0,)), Figure("f", "y", "", (), "gone")]
    )
    assert "| f | x | 1 | 6 |  | ms | 3.0 x bare loop |  |" in text
    assert "| f | y |  | - |  |  |  | gone |" in text


def test_the_bare_loop_restarts_each_killed_program():
    figure = supervision.crash(Bare(), kills=4, programs=2)
    assert len(figure.samples) == 4
    assert all(0 < sample < 5_000 for sample in figure.samples)


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="needs systemd-notify")
@pytest.mark.parametrize("shape", ["tree", "chain"])
def test_the_bare_tree_becomes_ready(shape):
    assert len(tree.floor(shape, 4).samples) == 1


def test_a_cluster_writes_a_system_that_passes_and_leaves_nothing():
    with Cluster() as cluster:
        cluster.write_tenant("acme", '[tenant]\n[process.p]\ncommand = ["/bin/sleep", "9"]\nuser = "root"\n')
        done = cluster.hactl("check")
        assert done.returncode == 0, done.stdout + done.stderr
        assert cluster.status() is None
        assert cluster.agents("a1") == {}
        assert cluster.managed() == {}
        directory = cluster.directory
    assert not directory.exists()


def test_the_whole_run_can_be_asked_for_help():
    command = [sys.executable, ROOT / "scripts/bench_all.py", "--help"]
    assert "--peers-only" in subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
