"""The desk: one small process behind the door for what belongs to no single replica: catalogue, OpenAPI, feedback, batches."""
