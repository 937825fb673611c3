"""OpenAI's dialect: the requests that callers send, and every object that we answer. No I/O."""
