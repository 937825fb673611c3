"""The data folder and its locks, the connection to Redis, leases, and fork handling."""
