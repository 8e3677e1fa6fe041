"""Training: documents to tokens to weights, data-parallel on Ray Train."""
