"""A transport for httpx with its own connection pool, over httpcore's network backend. A response
can be awaited together with the caller's socket and a deadline."""
