"""The way to Dify: the network, what is asked on it, and what is known of the apps at its end."""
