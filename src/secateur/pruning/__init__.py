"""Pruning a model block by block, recording what was done, and verifying what was saved."""
