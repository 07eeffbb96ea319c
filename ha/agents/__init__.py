"""Floor 5, the executables: a machine, its ports, nothing else."""
