"""Floor 2, codec, framing and sockets."""
