"""What development, demo, tests and benchmarks run against: a simulated exchange and real brokers."""
