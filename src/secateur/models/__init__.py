"""Models on disk and in memory: checkpoints, structure, blocks one at a time, the bundled model."""
