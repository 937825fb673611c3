"""Locks that let one turn of a chat run at a time, over processes and machines."""
