"""The measured clock: a decoder of random weights, driven by the engine's scheduler, its steps timed as they run."""
