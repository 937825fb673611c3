"""Stores of the conversation records: a JSON file, or Redis."""
