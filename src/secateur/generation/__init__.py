"""The model writes its own calibration text: prompts, an engine that continues and scores them, the rounds."""
