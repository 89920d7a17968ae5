"""Replaces one model version with another, directly or after a trial as canary or shadow."""
