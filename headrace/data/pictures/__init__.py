"""Pictures in files: found in folders, archives and tables, checked, and stored as one Parquet file per batch."""
