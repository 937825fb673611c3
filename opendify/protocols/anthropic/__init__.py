"""Anthropic's Messages API: requests, messages and event streams. No I/O."""
