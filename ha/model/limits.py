"""Limits: the bound of every wait, queue, retry and message, in one place."""

from __future__ import annotations

# Messages
MAX_FRAME_BYTES = 64 * 1024  # a control frame
MAX_CHUNK_BYTES = 1024 * 1024  # a plan or snapshot frame
MAX_BATCH = 1_024  # copies in one snapshot or orders message; more go in several
MAX_REASON_CHARS = 400
SUPPORTED_MAJOR = 1

# Commands
REQUEST_KEEP = 1_024  # answers kept for `hactl request`
COMMAND_RETRY_MS = 250  # an unanswered order is sent again after this
NUDGE_RETRY_MS = 20

# Agents
NODE_GIVEN_UP_MS = 5_000  # standby and load-sharing copies of a silent node are not placed elsewhere sooner
STUCK_AFTER_MS = 2_000  # an agent whose loop has not turned for this long is ended and started again
AGENT_RESTART_FLOOR_MS = 200  # between two starts of an agent that dies at once
AGENT_RESTART_MAX_MS = 5_000  # the delay between two starts doubles up to this
AGENT_START_TIMEOUT_MS = 10_000
AGENT_END_MS = 5_000  # an agent asked to end is killed after this
AGENT_ANSWER_MS = 10_000  # a Spawner that says nothing for this long is not waited for any more when the node stops
MASTER_YIELD_MS = 3_000  # a first Master that does not step aside for a second one is killed after this
LOOP_IDLE_MS = 500  # a loop turns at least this often, so that its progress counter does
FULL_STATE_EVERY_MS = 5_000

# Managed processes
RELINQUISH_POLITE_MS = 250  # a planned move lets demotes and stops work this long, then freezes
FALLBACK_RESTART_MS = 2_000  # a REPORT copy whose Server says nothing is restarted by the node after this
KILL_CONFIRM_MS = 5_000  # a killed tree that is still there after this is reported as unkillable
TENANT_MOVES = 3  # unplanned moves of a tenant within TENANT_MOVES_PERIOD_MS; then it is failed
TENANT_MOVES_PERIOD_MS = 60_000
PROBES_AT_ONCE = 64
FACT_WAIT_MS = 50  # the Spawner has this long to say how a process ended whose end the Monitor's pidfd saw
REVIVE_RETRY_MS = 1_000  # a revive or kill the Spawner has not acted upon is asked again after this
READY_GRACE_MS = 5_000  # a Monitor that starts gives a copy that is not ready at least this long
DELTA_BATCH = 32  # copies in one state delta: it stays below MAX_FRAME_BYTES whatever the reasons are
SNAPSHOT_BATCH = 512  # copies in one part of a snapshot: it stays below MAX_CHUNK_BYTES
WATCH_EVERY_MS = 1_000  # Watch to the Spawner, Hello to the Servers
LOG_READ_BYTES = 64 * 1024
EVENTS_KEEP = 10_000
STATUS_LINE_CHARS = 200

# Configuration
DROP_IN_QUIET_MS = 200
MAX_CONFIG_BYTES = 1024 * 1024
MAX_FINDINGS = 100  # of one file; then "too-many"
UNIX_PATH_BYTES = 107
