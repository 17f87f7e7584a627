"""One function per command, from names to a result."""
