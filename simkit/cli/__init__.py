"""The `simkit` command; one file a verb."""
