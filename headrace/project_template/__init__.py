"""Projects outside of the repository: `headrace init` writes one, `headrace upgrade` brings later changes of it."""
