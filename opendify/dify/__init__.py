"""Dify's dialect: the events of an answer, and what its failures mean. No I/O."""
