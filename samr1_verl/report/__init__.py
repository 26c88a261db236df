"""What a training run did, as one HTML file: `samr1 report`."""
