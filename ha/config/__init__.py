"""Floor 2, TOML to plan: schema, errors with file, line and column, drop-in directory, JSON Schema."""
