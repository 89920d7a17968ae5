"""What a replica counts and records: metrics, traces, usage, quotas, records of answers."""
