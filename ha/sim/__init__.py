"""Floor 4, virtual time, network, hosts, faults and invariants."""
