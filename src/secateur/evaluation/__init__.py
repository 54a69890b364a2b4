"""Measuring a model: perplexity by named protocols, fidelity to the dense model, tasks, confidence, what it writes."""
