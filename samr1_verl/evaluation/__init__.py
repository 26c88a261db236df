"""A policy's answers about the rows of a file, and the figures that are published of them: `samr1 eval`."""
