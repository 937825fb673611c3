"""The APIs that clients use: for each a request parser and response writers. No I/O."""
