"""Data validation: expectation suites, Great Expectations over tables or chunks, and quarantine for refused batches."""
