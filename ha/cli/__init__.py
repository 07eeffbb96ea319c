"""Floor 6: hactl. It starts fast: no zmq, rich only on a terminal, each command loaded when it is called."""
