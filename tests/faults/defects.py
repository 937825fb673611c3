"""The deliberate defects of ``mutations``: each a text of the source and what replaces it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Defect:
    """``case`` is what pytest takes, with `` -k `` and words where one of several is meant; it must
    fail when ``old``, which is in ``file`` once, is replaced by ``new``."""

    promise: str
    what: str
    case: str
    file: str
    old: str
    new: str


_UPSTREAM = "tests/faults/test_upstream.py"
_FIRST = f"{_UPSTREAM}::test_a_failure_before_the_first_byte_is_a_status -k "
_CUT = f"{_UPSTREAM}::test_an_answer_that_is_cut_is_an_error -k "
_STRANGE = f"{_UPSTREAM}::test_what_is_strange_is_an_answer_all_the_same -k "
_RETRIES = "tests/faults/test_retries.py"
_LEAVING = "tests/faults/test_leaving.py"
_SHUTDOWN = "tests/faults/test_shutdown.py"
_CALLERS = "tests/faults/test_callers.py"
_WEIGHTS = "tests/faults/test_bodies.py"
_FRAMING = "tests/faults/test_framing.py"
_BODY = f"{_CALLERS}::test_a_bad_body_is_refused -k "
_HTTP = f"{_CALLERS}::test_what_is_no_good_http_is_refused_or_hung_up_on -k "
_SECRETS = "tests/faults/test_secrets.py"
_STORE = "tests/faults/test_store.py"
_CAPACITY = "tests/faults/test_capacity.py"
_WAITING = "tests/faults/test_waiting.py"
_OF_THE_LOOP = "tests/test_moving.py"
_OF_KEPT = "tests/test_kept.py"

_APP = "opendify/web/app.py"
_BODIES = "opendify/web/body.py"
_OBJECTS = "opendify/openai/json_object.py"
_STREAM = "opendify/upstream/stream.py"
_TURN = "opendify/upstream/turn.py"
_CLIENT = "opendify/upstream/client.py"
_FAILURES = "opendify/dify/failures.py"
_ERRORS = "opendify/errors.py"
_EXCHANGE = "opendify/exchange.py"
_WATCH = "opendify/upstream/watch.py"
_WORKER = "opendify/serving/worker.py"
_MOVING = "opendify/serving/moving.py"
_ANSWER = "opendify/serving/answer.py"
_RETIREMENT = "opendify/serving/retirement.py"
_KEPT_OPEN = "opendify/upstream/kept.py"
_CHATS = "opendify/chats.py"

_NEVER_SILENT = "Never silent"
_STATUSES = "Upstream table"
_TIMEOUTS = "Timeouts"
_ONCE = "Retries"
_GONE = "Client gone"
_END = "Shutdown"
_BAD = "Bad callers"
_ISOLATION = "Isolation"
_KEYS = "Keys"
_LOGS = "Logs"
_FILES = "Files"
_KEPT = "Store"
_PLACES = "Concurrency"

DEFECTS = [
    # --- never silent --------------------------------------------------------------------------
    Defect(
        _NEVER_SILENT,
        "A stream that ends without its end is a finished answer",
        _CUT + "cut-ended-streamed",
        _TURN,
        'raise errors.DifyBroken("Dify closed the stream before the end of the answer.")',
        "return MessageEnded()",
    ),
    Defect(
        _NEVER_SILENT,
        "A connection that ends in a chunk is the end of the answer",
        _CUT + "cut-closed-in-a-chunk",
        _STREAM,
        "raise self._ended_early(exc) from exc",
        "return None",
    ),
    Defect(
        _NEVER_SILENT,
        "A failed workflow_finished without an error event is a finish",
        _CUT + "cut-run-failed-without-an-error-streamed",
        "opendify/dify/payloads.py",
        '"failed"',
        '"never"',
    ),
    Defect(
        _NEVER_SILENT,
        "The stream ends without [DONE]",
        _CUT + "cut-closed-streamed",
        _APP,
        "    yield sse.DONE\n",
        "    yield b''\n",
    ),
    Defect(
        _NEVER_SILENT,
        "The error event has choices",
        _CUT + "cut-closed-streamed",
        _APP,
        "return sse.encode(error.body())",
        'return sse.encode(error.body() | {"choices": []})',
    ),
    Defect(
        _NEVER_SILENT,
        "A stream that breaks just ends",
        _CUT + "cut-reset-streamed",
        _APP,
        "        yield _failure(exc, record)\n",
        "        return\n",
    ),
    Defect(
        _NEVER_SILENT,
        "The status is not held until Dify has said something",
        _FIRST + "told-400-streamed",
        _APP,
        "exchange.hold(HOLD_SECONDS)",
        "pass",
    ),
    Defect(
        _NEVER_SILENT,
        "What came before a fault in the same bytes is lost",
        _CUT + "cut-chunk-too-short",
        _STREAM,
        "            return exc.body\n",
        '            return b""\n',
    ),
    Defect(
        _NEVER_SILENT,
        "Pages of gateways are quoted",
        _FIRST + "page-in-a-message",
        _FAILURES,
        '_PAGE.sub("…", message)',
        "message",
    ),
    Defect(
        _NEVER_SILENT,
        "Keys in Dify's words are quoted",
        _FIRST + "key-in-a-message",
        _FAILURES,
        '_APP_KEY.sub(r"\\1-…", _PAGE.sub("…", message))',
        '_PAGE.sub("…", message)',
    ),
    Defect(
        _NEVER_SILENT,
        "An answer waits for the end of the connection",
        _STRANGE + "held-open-streamed",
        "opendify/chat.py",
        "        exchange.settle(writer.text(), completion.usage, renderer.is_cut)\n",
        "        exchange._next(float('inf'))\n"
        "        exchange.settle(writer.text(), completion.usage, renderer.is_cut)\n",
    ),
    Defect(
        _NEVER_SILENT,
        "An event may be of any size",
        _CUT + "cut-enormous",
        "opendify/sse.py",
        "32 * 1024 * 1024",
        "320 * 1024 * 1024",
    ),
    Defect(
        _NEVER_SILENT,
        "CRLF does not end a line",
        _STRANGE + "carriage-returns",
        "opendify/sse.py",
        'return data.replace(b"\\r\\n", b"\\n").replace(b"\\r", b"\\n")',
        "return data",
    ),
    Defect(
        _NEVER_SILENT,
        "No comment comes where nothing else does",
        f"{_WAITING}::test_who_waits_long_is_told_that_the_answer_still_comes -k silent",
        "opendify/chat.py",
        "elif not (events or is_readable):",
        "elif False:",
    ),
    Defect(
        _NEVER_SILENT,
        "Pings of Dify put the comment off",
        f"{_WAITING}::test_who_waits_long_is_told_that_the_answer_still_comes -k pinging",
        _EXCHANGE,
        "self._until = 0.0 if events else until",
        "self._until = 0.0",
    ),
    Defect(
        _NEVER_SILENT,
        "What a caller has no place for in the loop is dropped",
        f"{_OF_THE_LOOP}::test_who_does_not_read_keeps_nobody_waiting_and_loses_nothing",
        "opendify/serving/outlet.py",
        "self.held = data[sent:]",
        'self.held = b""',
    ),
    # --- the table -----------------------------------------------------------------------------
    Defect(
        _STATUSES,
        "A refused connection is a 500",
        f"{_UPSTREAM}::test_a_dify_that_cannot_be_reached -k refused",
        _CLIENT,
        "except httpx.HTTPError as exc:",
        "except httpx.DecodingError as exc:",
    ),
    Defect(
        _STATUSES,
        "A connect timeout is a 502",
        f"{_UPSTREAM}::test_a_dify_that_cannot_be_reached -k deaf-whole",
        _CLIENT,
        "raise _caused(errors.DifyNotConnected, ",
        "raise _caused(errors.DifyBroken, ",
    ),
    Defect(
        _STATUSES,
        "Dify's 401 is the caller's",
        _FIRST + "told-401",
        _ERRORS,
        "class DifyAuthFailed(DifyError):\n",
        "class DifyAuthFailed(DifyError):\n    status = 401\n",
    ),
    Defect(
        _STATUSES,
        "The model is not named where Dify rejects its key",
        _FIRST + "page-403",
        _FAILURES,
        "Dify rejected the key of model '{model}'",
        "Dify rejected the key of a model",
    ),
    Defect(
        _STATUSES,
        "A rate limit told as a 400 is a bad request",
        _FIRST + "limit-as-a-400",
        _FAILURES,
        "refusal.status == 429 or refusal.message.startswith(_APP_BUSY)",
        "refusal.status == 429",
    ),
    Defect(
        _STATUSES,
        "A provider's rate limit is a failed run",
        _FIRST + "limit-of-the-provider",
        _FAILURES,
        "if _RATE_LIMIT.search(refusal.message):",
        "if False:",
    ),
    Defect(
        _STATUSES,
        "Retry-After of Dify is not passed on",
        _FIRST + "told-503",
        _FAILURES,
        "error.retry_after = refusal.retry_after or 2",
        "error.retry_after = 2",
    ),
    Defect(
        _STATUSES,
        "A 503 of Dify is a 502",
        _FIRST + "page-503-whole",
        _FAILURES,
        "if status == 503:",
        "if status == 599:",
    ),
    Defect(
        _STATUSES,
        "A 413 of a gateway is a 502",
        _FIRST + "page-413",
        _FAILURES,
        "if status == 413:",
        "if status == 599:",
    ),
    Defect(
        _STATUSES,
        "A 400 for inputs is a fault of Dify",
        _FIRST + "told-400",
        _FAILURES,
        "if status in _OF_THE_CALLER and refusal.code:",
        "if status == 599:",
    ),
    Defect(
        _STATUSES,
        "Anything with status 200 is an event stream",
        _FIRST + "answer-of-another-type",
        _STREAM,
        'answer.status == 200 and media_type.startswith("text/event-stream")',
        "answer.status == 200",
    ),
    Defect(
        _STATUSES,
        "A packed stream is read as it is",
        f"{_UPSTREAM}::test_what_is_strange_is_an_answer_all_the_same -k packed",
        _STREAM,
        "self._unpacker = new_unpacker(answer.headers)",
        "new_unpacker(answer.headers)",
    ),
    Defect(
        _STATUSES,
        "A packed stream may unpack to anything",
        _FIRST + "packed-bomb",
        "opendify/upstream/unpacking.py",
        "if self._given > max(",
        "if 0 > max(",
    ),
    Defect(
        _STATUSES,
        "An answer may be of any length",
        _CUT + "cut-endless-streamed",
        "opendify/upstream/turn.py",
        "if self._size > self._client.max_answer:",
        "if self._size < 0:",
    ),
    Defect(
        _STATUSES,
        "A firewall's page is blamed on the key",
        _FIRST + "page-403",
        _FAILURES,
        "(_by_what_came(refusal, model) if refusal.foreign else None)",
        "(errors.DifyAuthFailed('the key') if refusal.status == 403 else None)",
    ),
    Defect(
        _STATUSES,
        "A Dify that restarts is not waited for",
        f"{_UPSTREAM}::test_a_dify_that_restarts_is_waited_for",
        _CLIENT,
        "if cause is None or not cause.is_refusal or",
        "if cause or",
    ),
    Defect(
        _STATUSES,
        "The authority of the operator is not trusted",
        f"{_UPSTREAM}::test_a_dify_of_an_authority_of_the_operator_is_trusted",
        "opendify/upstream/tls.py",
        "if authorities:",
        "if not authorities and False:",
    ),
    Defect(
        _STATUSES,
        "Redirects are followed",
        f"{_SECRETS}::test_a_redirect_is_followed_nowhere",
        _STREAM,
        "    def _refused(self) -> errors.DifyError:\n        answer = self._answer\n",
        "    def _refused(self) -> errors.DifyError:\n        answer = self._answer\n"
        "        if 300 <= answer.status < 400:\n"
        "            httpx = __import__('httpx')\n"
        "            with __import__('contextlib').suppress(httpx.HTTPError):\n"
        "                httpx.post(answer.headers['location'], timeout=0.2)\n",
    ),
    Defect(
        _STATUSES,
        "The message of a redirect does not name the remedy",
        f"{_SECRETS}::test_a_redirect_is_followed_nowhere",
        _FAILURES,
        '"into DIFY_API_BASE (often https instead of http)."',
        '"there."',
    ),
    Defect(
        _STATUSES,
        "A conversation that Dify has lost is told to the caller",
        f"{_RETRIES}::test_a_conversation_that_dify_has_lost_is_begun_anew_unseen",
        _EXCHANGE,
        "return self._forget_conversation()",
        "return False",
    ),
    Defect(
        _STATUSES,
        "A lost conversation is begun anew again and again",
        f"{_RETRIES}::test_a_conversation_is_begun_anew_once",
        _EXCHANGE,
        "if self._may_ask_anew and not self._turn.has_run and self._is_put_right(exc):",
        "if self._is_put_right(exc) or isinstance(exc, errors.ConversationUnknown):",
    ),
    # --- timeouts ------------------------------------------------------------------------------
    Defect(
        _TIMEOUTS,
        "Silence has no end",
        _FIRST + "silent-after-ping-whole",
        _STREAM,
        "self.dead_at = now + self._read_timeout",
        "self.dead_at = now + 30 * self._read_timeout",
    ),
    Defect(
        _TIMEOUTS,
        "Pings are no life: an answer may take no longer than the read timeout",
        _STRANGE + "many-pings",
        _STREAM,
        "                self.dead_at = now + self._read_timeout\n",
        "                pass\n",
    ),
    Defect(
        _TIMEOUTS,
        "The loop looks at no time",
        _CUT + "cut-silence-streamed",
        _MOVING,
        "        self._first_until = min(self._first_until, answer.wait.until)\n",
        "",
    ),
    Defect(
        _TIMEOUTS,
        "The loop looks at the time of the first of its answers only",
        f"{_WAITING}::test_silence_ends_for_each_in_its_time",
        _MOVING,
        "self._first_until = min(waits, default=math.inf)",
        "self._first_until = math.inf",
    ),
    Defect(
        _TIMEOUTS,
        "A dead run may be repeated by the client",
        f"{_RETRIES}::test_a_real_client_does_not_run_a_turn_twice -k silent-after-ping",
        _ERRORS,
        'default_code = "upstream_timeout"',
        'default_code = "upstream_timeout"\n    repeatable = True',
    ),
    # --- retries -------------------------------------------------------------------------------
    Defect(
        _ONCE,
        "A kept connection that had ended is a failure",
        f"{_RETRIES}::test_a_kept_connection_that_dify_has_closed_is_no_failure",
        _STREAM,
        "self._may_reconnect and self._wire.has_answered and",
        "False and",
    ),
    Defect(
        _ONCE,
        "A fresh connection that fails is tried again",
        f"{_RETRIES}::test_a_fresh_connection_that_fails_is_not_tried_again",
        _STREAM,
        "self._may_reconnect and self._wire.has_answered and",
        "self._may_reconnect and",
    ),
    Defect(
        _ONCE,
        "A kept connection that dies late is tried again",
        f"{_RETRIES}::test_a_dify_that_may_have_begun_is_not_asked_again -k closed-late",
        _STREAM,
        "REUSE_RACE_SECONDS = 1.0",
        "REUSE_RACE_SECONDS = 60.0",
    ),
    Defect(
        _ONCE,
        "A question is asked again after Dify has answered something",
        f"{_RETRIES}::test_a_dify_that_may_have_begun_is_not_asked_again -k after-a-ping",
        _STREAM,
        "        elif data is not None:\n            self._may_reconnect = False\n",
        "",
    ),
    Defect(
        _ONCE,
        "A kept connection is used whatever Dify has said or done on it since",
        f"{_OF_KEPT}::test_a_connection_on_which_something_came_unasked_is_never_used",
        _KEPT_OPEN,
        " and loan.wire.is_quiet():",
        ":",
    ),
    Defect(
        _ONCE,
        "A kept connection is used though its time is over",
        f"{_OF_KEPT}::test_a_connection_that_is_over_is_not_used_though_it_is_not_closed_yet",
        _KEPT_OPEN,
        "if time.monotonic() < loan.expires_at and ",
        "if ",
    ),
    Defect(
        _ONCE,
        "A kept connection is not closed when its time is over",
        f"{_OF_KEPT}::test_an_idle_connection_is_closed_in_time_though_nothing_is_asked",
        _KEPT_OPEN,
        "loan.expires_at = time.monotonic() + loan.wire.idle_seconds",
        "loan.expires_at = time.monotonic() + 60 * loan.wire.idle_seconds",
    ),
    Defect(
        _ONCE,
        "x-should-retry is not sent",
        f"{_RETRIES}::test_a_real_client_does_not_run_a_turn_twice -k told-500",
        _APP,
        'response.headers["x-should-retry"]',
        'response.headers["x-may-retry"]',
    ),
    Defect(
        _ONCE,
        "A rate limit may be repeated though the question is in its conversation",
        f"{_RETRIES}::test_a_real_client_does_not_run_a_turn_twice -k limit-in-an-event",
        _EXCHANGE,
        "exc.repeatable = exc.repeatable and not self.has_begun",
        "pass",
    ),
    Defect(
        _ONCE,
        "A rate limit may not be repeated at all",
        f"{_RETRIES}::test_a_real_client_repeats_what_was_not_begun",
        _ERRORS,
        'class RateLimited(DifyError):\n    status = 429\n    type = "rate_limit_error"\n'
        '    default_code = "rate_limit_exceeded"\n    repeatable = True\n',
        'class RateLimited(DifyError):\n    status = 429\n    type = "rate_limit_error"\n'
        '    default_code = "rate_limit_exceeded"\n',
    ),
    # --- client gone ---------------------------------------------------------------------------
    Defect(
        _GONE,
        "The caller's socket is not watched",
        f"{_LEAVING}::test_the_run_is_stopped_once -k silent",
        _WATCH,
        "if self.caller is not None:",
        "if False:",
    ),
    Defect(
        _GONE,
        "The loop does not watch the caller's socket",
        f"{_LEAVING}::test_the_run_is_stopped_once -k silent-streamed",
        _MOVING,
        "        self._poll.register(caller, select.EPOLLRDHUP)",
        "        pass",
    ),
    Defect(
        _GONE,
        "The loop goes on with a caller who takes nothing",
        f"{_WAITING}::test_who_takes_nothing_is_left",
        _ANSWER,
        "return step.descriptor >= 0 and not self._outlet.held",
        "return step.descriptor >= 0",
    ),
    Defect(
        _GONE,
        "Nothing is stopped",
        f"{_LEAVING}::test_the_run_is_stopped_once -k flowing-whole",
        _TURN,
        "if self.ids.task_id:\n            self._is_stopped = True",
        "if False:\n            self._is_stopped = True",
    ),
    Defect(
        _GONE,
        "A run that has no name yet is forgotten",
        f"{_LEAVING}::test_the_run_is_stopped_once -k before-the-head",
        _TURN,
        "SECONDS_TO_NAME_A_RUN = 60.0",
        "SECONDS_TO_NAME_A_RUN = 0.0",
    ),
    Defect(
        _GONE,
        "A run is stopped for another user",
        f"{_LEAVING}::test_the_run_is_stopped_once -k thinking",
        _TURN,
        "self._client.stop(self._model, path, self._user, self._set_over)",
        'self._client.stop(self._model, path, "somebody", self._set_over)',
    ),
    Defect(
        _GONE,
        "A run is stopped twice",
        f"{_LEAVING}::test_the_run_is_stopped_once -k silent-streamed",
        _TURN,
        "            if not self._is_stopped:\n",
        "            if True:\n",
    ),
    Defect(
        _GONE,
        "A run that has ended is stopped",
        f"{_LEAVING}::test_a_run_that_ended_is_not_stopped",
        _TURN,
        "        if self.ended:\n            self._stream.drain()",
        "        if self.ended:\n            self._stop()\n            self._stream.drain()",
    ),
    Defect(
        _GONE,
        "A stopped answer is not read to its end",
        f"{_LEAVING}::test_a_stopped_answer_is_read_to_its_end",
        _TURN,
        "SECONDS_AFTER_STOP = 2.0",
        "SECONDS_AFTER_STOP = 0.0",
    ),
    Defect(
        _GONE,
        "A question is asked for a caller who has left",
        f"{_LEAVING}::test_what_was_left_while_a_file_was_given_to_dify_is_not_asked",
        _EXCHANGE,
        "        caller.watch.look()  # files can take long\n",
        "",
    ),
    Defect(
        _GONE,
        "The thread is kept for what a caller leaves behind",
        f"{_LEAVING}::test_no_thread_is_held_for_callers_who_left",
        _TURN,
        "            self._client.watcher.watch(self._leave(afterwards))",
        "            time.sleep(20)",
    ),
    # --- shutdown ------------------------------------------------------------------------------
    Defect(
        _END,
        "SIGTERM ends answers at once",
        f"{_SHUTDOWN}::test_sigterm_lets_short_answers_end",
        "opendify/serving/departure.py",
        "return self._left <= min(_ENDING_SECONDS, self._graceful_timeout / 2)",
        "return self._left < 1e9",
    ),
    Defect(
        _END,
        "Answers that still run are cut without a word",
        f"{_SHUTDOWN}::test_sigterm_ends_long_answers_with_an_error_and_a_stop",
        _WATCH,
        "if self.ending is not None:",
        "if False:",
    ),
    Defect(
        _END,
        "Answers in the loop are not told of the end",
        f"{_SHUTDOWN}::test_sigterm_ends_long_answers_with_an_error_and_a_stop",
        _WORKER,
        "            self._moving.release_all()\n",
        "            pass\n",
    ),
    Defect(
        _END,
        "A service that ends does not refuse new connections",
        f"{_SHUTDOWN}::test_sigterm_lets_short_answers_end",
        _WORKER,
        "            listener.close()\n",
        "            pass\n",
    ),
    Defect(
        _END,
        "SIGHUP ends long answers after graceful_timeout",
        f"{_SHUTDOWN}::test_sighup_loses_no_answer",
        "opendify/serving/departure.py",
        "if not holds_any(self._master, self._listening):",
        "if True:",
    ),
    Defect(
        _END,
        "max_requests ends a worker at once",
        f"{_SHUTDOWN}::test_max_requests_cuts_no_stream",
        _RETIREMENT,
        "return is_idle or self._is_overdue(answered)",
        "sys.exit(0)",
    ),
    Defect(
        _END,
        "max_requests replaces no worker",
        f"{_SHUTDOWN}::test_max_requests_cuts_no_stream",
        _RETIREMENT,
        "if answered < self._max_requests:",
        "if True:",
    ),
    Defect(
        _END,
        "A mapping is only in the memory of its worker",
        f"{_SHUTDOWN}::test_a_killed_worker_takes_nothing_with_it_but_its_own_streams",
        "opendify/conversations/ledger.py",
        "        with self._writing:\n            return self._change(plan)",
        "        patch = plan(self._known.entries)\n"
        "        [self._known.entries.update({k: v}) for k, v in patch.items() if v]\n"
        "        return patch",
    ),
    # --- bad callers ---------------------------------------------------------------------------
    Defect(
        _BAD,
        "Deep nesting is a 500",
        _BODY + "deep-inputs",
        _OBJECTS,
        'except RecursionError as exc:\n        raise InvalidRequest("The request body',
        'except ZeroDivisionError as exc:\n        raise InvalidRequest("The request body',
    ),
    Defect(
        _BAD,
        "Half a surrogate pair is a 500",
        _BODY + "half-a-pair",
        _OBJECTS,
        'except _MALFORMED as exc:\n        kind = "JSON" if _is_utf8(data) else',
        'except ZeroDivisionError as exc:\n        kind = "JSON" if _is_utf8(data) else',
    ),
    Defect(
        _BAD,
        "Lists of nothing take as much memory as they like",
        f"{_WEIGHTS}::test_a_body_costs_what_it_weighs -k values-within",
        _OBJECTS,
        "if _count_outside_strings(data) > MAX_VALUES:",
        "if False:",
    ),
    Defect(
        _BAD,
        "A text may be as large as files are",
        f"{_WEIGHTS}::test_a_body_costs_what_it_weighs -k bytes-that",
        _OBJECTS,
        "if len(data) - sum(_file_sizes(data)) > max_text_bytes:",
        "if False:",
    ),
    Defect(
        _BAD,
        "Malformed chunks are a 500",
        _HTTP + "chunk-without-a-size",
        "opendify/serving/pages.py",
        "(errors.ParseException, 400)",
        "(errors.ParseException, 500)",
    ),
    Defect(
        _BAD,
        "A body in chunks may be of any size",
        f"{_CALLERS}::test_a_body_of_a_hundred_megabytes_is_refused -k chunked",
        "opendify/serving/intake.py",
        "if decoder.announced_bytes > self._max_body_bytes:",
        "if False:",
    ),
    Defect(
        _BAD,
        "A body may be of any size",
        f"{_CALLERS}::test_a_body_of_a_hundred_megabytes_is_refused -k counted",
        _APP,
        'app.config["MAX_CONTENT_LENGTH"] = max_body_bytes',
        'app.config["MAX_CONTENT_LENGTH"] = 50 * max_body_bytes',
    ),
    Defect(
        _BAD,
        "What is left of a body that was not read is a request",
        f"{_FRAMING}::test_a_body_that_was_not_read_is_no_request",
        _WORKER,
        "if not keeps or not conn.intake.is_whole:",
        "if not keeps:",
    ),
    Defect(
        _BAD,
        "A bare LF ends the size of a chunk",
        f"{_FRAMING}::test_malformed_chunks_are_refused_at_once",
        "opendify/serving/chunks.py",
        '_PLAIN_SIZE_LINE = re.compile(_SIZE + rb"\\r\\n")',
        '_PLAIN_SIZE_LINE = re.compile(_SIZE + rb"\\r?\\n")',
    ),
    Defect(
        _BAD,
        "The body of a stranger is waited for",
        f"{_FRAMING}::test_without_a_key_no_body_is_waited_for",
        "opendify/web/access.py",
        'app.config["ACCEPTS_BODY"] = accepts_body',
        'app.config["ACCEPTS_BODY"] = lambda environ: True',
    ),
    Defect(
        _BAD,
        "The newcomer is refused where bodies are held back",
        f"{_FRAMING}::test_bodies_that_are_held_back_shut_nobody_out",
        "opendify/serving/waiting.py",
        "self._refuse(self._costliest(), 503)",
        "self._refuse(conn, 503)",
    ),
    Defect(
        _BAD,
        "A proxy's header changes the path",
        f"{_FRAMING}::test_a_header_changes_no_path",
        "gunicorn_config.py",
        'forwarded_allow_ips, forwarder_headers = "", ""',
        "pass",
    ),
    Defect(
        _BAD,
        "The type of a body does not matter",
        f"{_CALLERS}::test_a_body_of_another_type_is_refused",
        _BODIES,
        'if request.mimetype and not request.mimetype.endswith("json"):',
        "if False:",
    ),
    Defect(
        _BAD,
        "A role may be of any type",
        _BODY + "role-object",
        "opendify/openai/messages.py",
        "if role not in ROLES:",
        "if role not in set(ROLES):",
    ),
    Defect(
        _BAD,
        "404 and 405 are pages",
        f"{_CALLERS}::test_other_routes_are_refused_in_json",
        _APP,
        "app.register_error_handler(HTTPException, _told_as_json)",
        "app.register_error_handler(HTTPException, lambda exc: exc.get_response())",
    ),
    Defect(
        _BAD,
        "Endless headers are a fault of the server",
        _HTTP + "header-of-a-megabyte",
        "opendify/serving/pages.py",
        "(errors.LimitRequestHeaders, 431)",
        "(errors.LimitRequestHeaders, 500)",
    ),
    Defect(
        _BAD,
        "Slow callers hold threads",
        f"{_CALLERS}::test_slow_callers_keep_nobody_from_being_served -k half-a-head",
        "gunicorn_config.py",
        'worker_class, worker_connections = "opendify.serving.worker.Worker", threads + 1000',
        "",
    ),
    Defect(
        _BAD,
        "A head may take for ever",
        f"{_CALLERS}::test_a_caller_that_never_finishes_is_hung_up_on",
        "opendify/serving/connection.py",
        "_HEAD_SECONDS = 15.0",
        "_HEAD_SECONDS = 600.0",
    ),
    # --- isolation -----------------------------------------------------------------------------
    *[
        Defect(
            _ISOLATION,
            f"The {what} is no part of whose a chat is",
            f"{_SECRETS}::test_a_conversation_is_nobody_else_s -k {case}",
            _CHATS,
            "(self.caller, self.model, self.user, chat)",
            f"({parts})",
        )
        for what, case, parts in (
            ("user", "user-in-other-letters", "self.caller, self.model, '', chat"),
            ("model", "model", "self.caller, '', self.user, chat"),
            ("key", "key", "'', self.model, self.user, chat"),
            ("chat", "chat", "self.caller, self.model, self.user, ''"),
        )
    ],
    Defect(
        _ISOLATION,
        "The parts of a name run into one another",
        f"{_SECRETS}::test_no_other_user_and_chat_have_the_same_name",
        _CHATS,
        "_quoted = json.JSONEncoder(ensure_ascii=False).encode",
        "_quoted = '\"{}\"'.format",
    ),
    # --- keys ----------------------------------------------------------------------------------
    Defect(
        _KEYS,
        "No key is needed",
        f"{_SECRETS}::test_without_a_key_nothing_opens",
        "opendify/web/access.py",
        "if request.endpoint in OPEN_ENDPOINTS or is_preflight() or access.is_admin():",
        "if True:",
    ),
    Defect(
        _KEYS,
        "The beginning of a key is enough",
        f"{_SECRETS}::test_without_a_key_nothing_opens",
        "opendify/keys.py",
        "    return hashlib.sha256(key.encode",
        "    key = key[:8]\n    return hashlib.sha256(key.encode",
    ),
    Defect(
        _KEYS,
        "An ordinary key is an operator's",
        f"{_SECRETS}::test_an_ordinary_key_opens_nothing_of_the_operator_s",
        "opendify/web/access.py",
        "return bool(keys) and keys.hold(_key())",
        "return bool(keys) and self._callers.identify(_key()) is not None",
    ),
    Defect(
        _KEYS,
        "Every caller may use every model",
        f"{_SECRETS}::test_a_key_opens_its_models_and_others_are_not_there",
        "opendify/callers.py",
        "if account.models is None:",
        "if True:",
    ),
    Defect(
        _KEYS,
        "/readyz tells everybody its details",
        f"{_SECRETS}::test_probes_need_no_key_and_tell_nothing",
        "opendify/web/monitoring.py",
        "if access.sees_details() else {}",
        "if True else {}",
    ),
    # --- logs ----------------------------------------------------------------------------------
    Defect(
        _LOGS,
        "The prompt is logged at DEBUG",
        f"{_SECRETS}::test_nothing_secret_is_in_the_log -k debug-text",
        _EXCHANGE,
        "        caller.watch.look()  # files can take long\n",
        "        caller.watch.look()  # files can take long\n"
        '        log.debug("asks %s", question.body)\n',
    ),
    Defect(
        _LOGS,
        "The headers of a request are logged",
        f"{_SECRETS}::test_nothing_secret_is_in_the_log -k info-json",
        _APP,
        "    headers = openwebui.Told(environ)\n",
        "    headers = openwebui.Told(environ)\n"
        '    log.info("headers %s", dict(request.headers))\n',
    ),
    Defect(
        _LOGS,
        "Query strings are in the access log",
        f"{_SECRETS}::test_nothing_secret_is_in_the_log -k info-text",
        "gunicorn_config.py",
        '"%(m)s %(U)s %(H)s"',
        '"%(r)s"',
    ),
    Defect(
        _LOGS,
        "A path can begin a line of the access log",
        f"{_SECRETS}::test_nothing_secret_is_in_the_log -k info-text",
        "gunicorn_config.py",
        'logger_class = "opendify.serving.access_log.Log"',
        "",
    ),
    # --- files ---------------------------------------------------------------------------------
    Defect(
        _FILES,
        "The folder is open to all",
        f"{_SECRETS}::test_what_is_kept_is_its_owner_s_alone",
        "opendify/conversations/folder.py",
        "if not self._examined:",
        "if False:",
    ),
    Defect(
        _FILES,
        "The mappings can be read by all",
        f"{_SECRETS}::test_what_is_kept_is_its_owner_s_alone",
        "opendify/conversations/snapshot.py",
        "0o600",
        "0o644",
    ),
    Defect(
        _FILES,
        "A folder of somebody else is closed to them",
        f"{_SECRETS}::test_a_folder_of_somebody_else_is_left_as_it_is",
        "opendify/conversations/folder.py",
        "if status.st_uid == os.geteuid() and is_for_others:",
        "if is_for_others:",
    ),
    Defect(
        _FILES,
        "The address of a caller is fetched",
        f"{_SECRETS}::test_an_address_of_a_caller_is_never_fetched",
        "opendify/upstream/uploads.py",
        "            if isinstance(step, Ready):\n",
        "            if isinstance(step, Ready):\n"
        "                url = str(step.file.get('url', ''))\n"
        "                url.startswith('http') and __import__('httpx').get(url, timeout=0.3)\n",
    ),
    Defect(
        _FILES,
        "A wrong configuration is told one problem at a time",
        f"{_SECRETS}::test_a_wrong_configuration_starts_nothing_and_is_told_whole",
        "opendify/config/settings.py",
        "raise ConfigError(list(dict.fromkeys(problems)))",
        "raise ConfigError(problems[:1])",
    ),
    # --- store ---------------------------------------------------------------------------------
    Defect(
        _KEPT,
        "A corrupt file is fatal",
        f"{_STORE}::test_a_corrupt_file_is_put_aside_and_the_service_starts",
        "opendify/conversations/loading.py",
        "except CorruptSnapshot as corrupt:",
        "except ZeroDivisionError as corrupt:",
    ),
    # --- concurrency ---------------------------------------------------------------------------
    Defect(
        _PLACES,
        "There is no cap",
        f"{_CAPACITY}::test_those_who_find_no_place_are_told_at_once",
        "opendify/config/settings.py",
        'self.number("MAX_CONCURRENT_STREAMS", beside, 1, most)',
        "threads - 1",
    ),
    Defect(
        _PLACES,
        "Places are never free again",
        f"{_CALLERS}::test_callers_that_do_not_read_keep_nobody_from_being_served",
        "opendify/capacity.py",
        "self._free += 1",
        "pass",
    ),
    Defect(
        _PLACES,
        "The pool is smaller than the threads",
        f"{_CAPACITY}::test_the_pool_is_as_large_as_the_threads",
        "main.py",
        "_connections = 2 * gunicorn_config.threads + watcher.MOST + kept.MOST + 16",
        "_connections = 100",
    ),
]
