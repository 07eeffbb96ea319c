"""Floor 6, hactl."""
