"""A training run as one HTML file (`samr1 report`), and the local page `samr1 playground`."""
