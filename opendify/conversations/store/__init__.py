"""Where it is kept which Dify conversation continues a chat: a JSON file, or Redis."""
