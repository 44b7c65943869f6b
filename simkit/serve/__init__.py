"""The paced clock: an OpenAI-compatible endpoint with no GPU behind it, whose tokens come when the engine says."""
