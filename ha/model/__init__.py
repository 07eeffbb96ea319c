"""Floor 0, the vocabulary: names, statuses, plan, messages, timing, limits, errors."""
