"""Floor 1, the decisions: pure machines without clock, random, I/O or logging."""
