"""Figures of the report, each one inline SVG."""
