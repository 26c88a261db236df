"""The segmenter as a service: one encode per image, one decode per answer."""
