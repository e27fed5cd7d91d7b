"""Tests: pure parts alone, everything else against real processes, sockets and brokers."""
