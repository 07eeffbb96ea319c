"""Parts of the Spawner's machine; `ha.core.spawner` is the door."""
