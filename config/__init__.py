"""What the user sets, and the names that the exchange accepts."""
