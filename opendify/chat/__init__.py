"""Handles one chat request, independent of the client's API: a prompt in, deltas out."""
