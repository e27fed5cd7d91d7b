"""How fast and how cheap: the real process, a real broker, a load generator in a process of its own."""
