"""The data gate: expectation suites, Great Expectations over whole tables or chunks, and the quarantine of refused batches."""
