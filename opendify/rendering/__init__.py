"""Turns Dify's events into deltas: text, reasoning, sources, files, progress. No I/O."""
