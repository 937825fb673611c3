"""Identifies callers: API keys, and the accounts that they belong to."""
