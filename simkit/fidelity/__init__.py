"""Predictions beside what real servers measured: read a measured run, rebuild it, replay it, say how wrong it was."""
