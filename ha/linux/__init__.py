"""Floor 4, processes, pidfds, cgroups, signals and clocks of Linux."""
