"""Everything of Gunicorn's internals that OpenDify uses; no other module imports Gunicorn.

None of it is documented API, and Gunicorn changes it between releases.
``tests/test_gunicorn_contract.py`` names each method, attribute and behaviour that is relied on;
``docs/decisions/0005-our-own-worker.md`` says why, and what would have to change in Gunicorn for it
to go away. Where this module cannot be imported, tell pytest ``--noconftest``, and that test says
what changed.
"""

# Settings by name: `cfg.threads`, and `cfg.set()` for the one that the worker overrides (sendfile).
from gunicorn.config import Config as Config

# Base class of the logger that `logger_class` names; the type of `Worker.log`.
from gunicorn.glogging import Logger as Logger

# The WSGI input of a body that is already collected: a Body reads a LengthReader, which reads an
# Unreader.
from gunicorn.http.body import Body as Body
from gunicorn.http.body import LengthReader as LengthReader

# What the parser raises, for the status of the error response; and what the worker raises itself
# for requests that Gunicorn's parser does not reject, or never sees (chunks).
from gunicorn.http.errors import ConfigurationProblem as ConfigurationProblem
from gunicorn.http.errors import ExpectationFailed as ExpectationFailed
from gunicorn.http.errors import ForbiddenProxyRequest as ForbiddenProxyRequest
from gunicorn.http.errors import InvalidChunkSize as InvalidChunkSize
from gunicorn.http.errors import InvalidHeader as InvalidHeader
from gunicorn.http.errors import InvalidRequestLine as InvalidRequestLine
from gunicorn.http.errors import InvalidResponseHeader as InvalidResponseHeader
from gunicorn.http.errors import InvalidResponseHeaderName as InvalidResponseHeaderName
from gunicorn.http.errors import LimitRequestHeaders as LimitRequestHeaders
from gunicorn.http.errors import LimitRequestLine as LimitRequestLine

# Raised by the parser at the end of its input: there, the head of a request is incomplete.
from gunicorn.http.errors import NoMoreData as NoMoreData

# Base class of all that the parser raises for a malformed request.
from gunicorn.http.errors import ParseException as ParseException
from gunicorn.http.errors import UnsupportedTransferCoding as UnsupportedTransferCoding

# The parser of a request head. It reads an IterUnreader over the bytes of one head.
from gunicorn.http.message import Request as Request
from gunicorn.http.unreader import IterUnreader as IterUnreader
from gunicorn.http.unreader import Unreader as Unreader

# Status line, headers and framing of a response, written to anything with `sendall`.
from gunicorn.http.wsgi import Response as Response

# The WSGI environment of a request: with the addresses of a connection, or for the log only.
from gunicorn.http.wsgi import create as create
from gunicorn.http.wsgi import default_environ as default_environ

# Base classes of the worker and of its connections.
from gunicorn.workers.gthread import TConn as TConn
from gunicorn.workers.gthread import ThreadWorker as ThreadWorker
