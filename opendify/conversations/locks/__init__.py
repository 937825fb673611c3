"""Locks that serialize the turns of a chat, across processes and machines."""
