"""I/O with Dify: the connection pool, the API client, and the cache of app metadata."""
