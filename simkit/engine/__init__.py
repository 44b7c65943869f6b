"""One replica: its state in arrays, the scheduling discipline, KV blocks, prefix cache and the compiled step loop."""
