"""The dialects that clients speak: for each a parser of requests and writers of responses.
No I/O.
"""
