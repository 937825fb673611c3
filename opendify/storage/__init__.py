"""The data folder, its file locks, the connection to Redis, and forks."""
