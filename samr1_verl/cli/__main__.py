"""`python -m samr1_verl.cli`, the same as `samr1`."""

from samr1_verl.cli import app

app()
