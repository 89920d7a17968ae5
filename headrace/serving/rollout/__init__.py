"""Replicas, where they run, and the door in front of them."""
