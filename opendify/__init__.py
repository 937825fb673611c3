"""An OpenAI-compatible proxy in front of Dify apps."""

__version__ = "0.1.0"
