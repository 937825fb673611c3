"""The story of one request, in no dialect: a prompt in, deltas out."""
