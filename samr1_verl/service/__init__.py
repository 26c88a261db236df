"""The segmenter as a service: each image is encoded once, every answer costs a decode."""
