"""Dify's app API: endpoints, the events of a response, and the meaning of errors. No I/O."""
