"""The API server behind the gateway, for what belongs to no single replica: catalogue, OpenAPI, feedback and batches."""
