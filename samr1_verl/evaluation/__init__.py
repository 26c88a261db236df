"""Evaluation of a policy on the rows of a file, with the figures that papers publish: `samr1 eval`."""
