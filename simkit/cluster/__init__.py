"""What happens between replicas, on SimPy's clock: arrivals and routing; inside a replica the compiled engine runs."""
