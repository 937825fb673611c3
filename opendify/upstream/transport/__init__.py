"""The one way to Dify: a transport for httpx with its own connection pool, over httpcore's network
backend. Its responses can be awaited together with the caller's socket and a deadline."""
