"""Measuring a model on held-out text: perplexity by named protocols, fidelity to the dense model."""
