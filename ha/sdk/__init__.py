"""Floor 2, the SDK: what a tenant's program imports. Standard library only."""
