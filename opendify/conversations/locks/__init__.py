"""Named locks across processes and machines."""
