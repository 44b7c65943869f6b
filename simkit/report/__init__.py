"""What a run looks like to people: terminal tables, a one-file HTML report and a timeline for Perfetto."""
