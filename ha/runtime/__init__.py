"""Floor 3, the one event loop, journals and the log."""
