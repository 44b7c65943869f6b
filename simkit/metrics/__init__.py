"""What the numbers mean: results, latencies, percentiles, saturation, targets."""
