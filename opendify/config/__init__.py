"""The configuration: read once at startup and validated as a whole."""
