"""Who calls: API keys, and the accounts that they belong to."""
