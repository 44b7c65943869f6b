"""What of a fleet is compiled. The names of the cache's folder say all of these files (simkit.compiled)."""
