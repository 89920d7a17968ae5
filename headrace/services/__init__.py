"""The local servers: started, watched, stopped."""
