"""Files on their way: those of a caller into Dify, and those of Dify to a caller."""
