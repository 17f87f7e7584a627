"""The command line of starzoo: one file per command, each of them options, one call of the library, and output."""
