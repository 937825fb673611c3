"""The deliberate defects of ``mutations``: each a small change of one function."""

from dataclasses import dataclass

from tests.faults.changes import (
    Argument,
    Assigned,
    Catch,
    Change,
    Condition,
    Constant,
    Drop,
    Insert,
    Replace,
    Returned,
    WithoutOperand,
)


@dataclass(frozen=True)
class Defect:
    """``case`` is what pytest takes, with `` -k `` and words where one of several is meant; it must
    fail when ``change`` is made at ``where``: see ``changes``."""

    promise: str
    what: str
    case: str
    where: str
    change: Change


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
_HTTP = f"{_CALLERS}::test_bad_http_is_refused_or_disconnected -k "
_SECRETS = "tests/faults/test_secrets.py"
_STORE = "tests/faults/test_store.py"
_CAPACITY = "tests/faults/test_capacity.py"
_WAITING = "tests/faults/test_waiting.py"
_OF_THE_LOOP = "tests/test_stream_loop.py"
_OF_TRANSPORT = "tests/test_transport.py"
_OF_PERMITS = "tests/faults/test_permits.py"
_OF_OWNERS = "tests/test_chats_owned.py"
_OF_ORIGINS = "tests/test_middleware_origins.py"


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
_PERMITS = "Concurrency"

DEFECTS = [
    # --- never silent --------------------------------------------------------------------------
    Defect(
        _NEVER_SILENT,
        "A stream that ends without its end is a finished answer",
        _CUT + "cut-ended-streamed",
        "opendify.upstream.run:DifyRun._without_message_end",
        Replace(
            "raise self._explain(errors.BadUpstreamResponse("
            "'Dify closed the stream before the end of the answer.'))",
            "return MessageEnded()",
        ),
    ),
    Defect(
        _NEVER_SILENT,
        "A connection that ends in a chunk is the end of the answer",
        _CUT + "cut-closed-in-a-chunk",
        "opendify.upstream.event_stream:EventStream._receive",
        Replace("raise self._to_error(exc) from exc", "return None"),
    ),
    Defect(
        _NEVER_SILENT,
        "A failed workflow_finished without an error event is a finish",
        _CUT + "cut-run-failed-without-an-error-streamed",
        "opendify.dify.parser:_workflow_finished",
        Constant("failed", "never"),
    ),
    Defect(
        _NEVER_SILENT,
        "The stream ends without [DONE]",
        _CUT + "cut-closed-streamed",
        "opendify.protocols.openai.chat_stream:DONE",
        Assigned("DONE", "b''"),
    ),
    Defect(
        _NEVER_SILENT,
        "The error event has choices",
        _CUT + "cut-closed-streamed",
        "opendify.protocols.openai.chat_stream:failure",
        Argument("encode", 0, "chat_response.error_body(error) | {'choices': []}"),
    ),
    Defect(
        _NEVER_SILENT,
        "A stream that breaks just ends",
        _CUT + "cut-reset-streamed",
        "opendify.api.responder:Responder._events",
        Replace("tail = _failure(exc, writer, record)", "return"),
    ),
    Defect(
        _NEVER_SILENT,
        "The status is not held until Dify has said something",
        _FIRST + "told-400-streamed",
        "opendify.api.responder:Responder._response",
        Drop("await_status"),
    ),
    Defect(
        _NEVER_SILENT,
        "What came before a fault in the same bytes is lost",
        _CUT + "cut-chunk-too-short",
        "opendify.upstream.transport.pending_response:PendingResponse._feed",
        Returned("self._read_stored()", 1),
    ),
    Defect(
        _NEVER_SILENT,
        "Pages of gateways are quoted",
        _FIRST + "page-in-a-message",
        "opendify.dify.error_mapping:_sanitized",
        Argument("sub", 1, "message[:_MAX_SEARCHED]"),
    ),
    Defect(
        _NEVER_SILENT,
        "Keys in Dify's words are quoted",
        _FIRST + "key-in-a-message",
        "opendify.dify.error_mapping:_sanitized",
        Assigned("text", "_PAGE.sub('…', message[:_MAX_SEARCHED])"),
    ),
    Defect(
        _NEVER_SILENT,
        "An answer waits for the end of the connection",
        _STRANGE + "held-open-streamed",
        "opendify.chat.service:ChatService.stream",
        Replace(
            "turn.commit(writer.text, completion.usage, renderer.hit_stop_sequence)",
            "turn._next(float('inf'))\n"
            "turn.commit(writer.text, completion.usage, renderer.hit_stop_sequence)",
        ),
    ),
    Defect(
        _NEVER_SILENT,
        "An event may be of any size",
        _CUT + "cut-enormous",
        "opendify.sse:MAX_EVENT_BYTES",
        Constant(32, 320),
    ),
    Defect(
        _NEVER_SILENT,
        "CRLF does not end a line",
        _STRANGE + "carriage-returns",
        "opendify.sse:Decoder._with_plain_line_ends",
        Returned("data", 1),
    ),
    Defect(
        _NEVER_SILENT,
        "No comment comes where nothing else does",
        f"{_WAITING}::test_a_caller_who_waits_long_gets_keep_alive_comments -k silent",
        "opendify.chat.service:ChatService.stream",
        Condition(4, "False"),
    ),
    Defect(
        _NEVER_SILENT,
        "Pings of Dify put the comment off",
        f"{_WAITING}::test_a_caller_who_waits_long_gets_keep_alive_comments -k pinging",
        "opendify.chat.turn:ChatTurn.next_events",
        Assigned("_deadline", "0.0", 1),
    ),
    Defect(
        _NEVER_SILENT,
        "What a caller does not read in time is dropped by the loop",
        f"{_OF_THE_LOOP}::test_a_caller_that_does_not_read_delays_no_other_and_loses_nothing",
        "opendify.worker.write_buffer:WriteBuffer.try_send",
        Assigned("pending", "b''"),
    ),
    # --- the table -----------------------------------------------------------------------------
    Defect(
        _STATUSES,
        "A refused connection is a 500",
        f"{_UPSTREAM}::test_a_dify_that_cannot_be_reached -k refused",
        "opendify.upstream.client:_translated_errors",
        Catch(0, "httpx.DecodingError"),
    ),
    Defect(
        _STATUSES,
        "A connect timeout is a 502",
        f"{_UPSTREAM}::test_a_dify_that_cannot_be_reached -k deaf-whole",
        "opendify.upstream.network_errors:to_network_error",
        Argument("_with_cause", 0, "errors.BadUpstreamResponse"),
    ),
    Defect(
        _STATUSES,
        "Dify's 401 is the caller's",
        _FIRST + "told-401",
        "opendify.errors:UpstreamAuthError",
        Insert(0, "status = 401"),
    ),
    Defect(
        _STATUSES,
        "The model is not named where Dify rejects its key",
        _FIRST + "told-401",
        "opendify.dify.error_mapping:_by_code",
        Argument(
            "UpstreamAuthError",
            0,
            'f"Dify rejected the key of a model ({reason or status}). Its operator should '
            "check the key in MODEL_CONFIG and the app's API access in Dify.\"",
        ),
    ),
    Defect(
        _STATUSES,
        "A rate limit told as a 400 is a bad request",
        _FIRST + "limit-as-a-400",
        "opendify.dify.error_mapping:_by_text",
        WithoutOperand(0, 1),
    ),
    Defect(
        _STATUSES,
        "A provider's rate limit is a failed run",
        _FIRST + "limit-of-the-provider",
        "opendify.dify.error_mapping:_by_text",
        Condition(2, "False"),
    ),
    Defect(
        _STATUSES,
        "Retry-After of Dify is not passed on",
        _FIRST + "told-503",
        "opendify.dify.error_mapping:to_error",
        WithoutOperand(1, 0),
    ),
    Defect(
        _STATUSES,
        "A 503 of Dify is a 502",
        _FIRST + "page-503-whole",
        "opendify.dify.error_mapping:_by_status",
        Constant(503, 599),
    ),
    Defect(
        _STATUSES,
        "A 413 of a gateway is a 502",
        _FIRST + "page-413",
        "opendify.dify.error_mapping:_by_status",
        Constant(413, 599),
    ),
    Defect(
        _STATUSES,
        "A 400 for inputs is a fault of Dify",
        _FIRST + "told-400",
        "opendify.dify.error_mapping:_by_status",
        Replace("status in _CALLER_STATUSES and response.code", "status == 599"),
    ),
    Defect(
        _STATUSES,
        "Anything with status 200 is an event stream",
        _FIRST + "answer-of-another-type",
        "opendify.upstream.event_stream:EventStream._begin",
        WithoutOperand(0, 1),
    ),
    Defect(
        _STATUSES,
        "A packed stream is read as it is",
        f"{_UPSTREAM}::test_what_is_strange_is_an_answer_all_the_same -k packed",
        "opendify.upstream.event_stream:EventStream._begin",
        Replace(
            "self._unpacker = new_unpacker(response.headers)", "new_unpacker(response.headers)"
        ),
    ),
    Defect(
        _STATUSES,
        "A packed stream may unpack to anything",
        _FIRST + "packed-bomb",
        "opendify.upstream.unpacking:Unpacker.take",
        Replace("self._bytes_out", "0", 1),
    ),
    Defect(
        _STATUSES,
        "An answer may be of any length",
        _CUT + "cut-endless-streamed",
        "opendify.upstream.run:DifyRun.next_events",
        Replace("self._size > self._client.max_answer", "self._size < 0"),
    ),
    Defect(
        _STATUSES,
        "A firewall's page is blamed on the key",
        _FIRST + "page-403",
        "opendify.dify.error_mapping:to_error",
        Assigned(
            "error",
            "(errors.UpstreamAuthError('the key') if response.status == 403 else None) or "
            "_by_code(response, model, reason) or _by_text(response, reason) or "
            "_by_status(response, model, reason)",
        ),
    ),
    Defect(
        _STATUSES,
        "A Dify that restarts is not waited for",
        f"{_UPSTREAM}::test_a_dify_that_restarts_is_waited_for",
        "opendify.upstream.client:_retry_while_refused",
        Replace(
            "cause is None or not cause.is_refusal or time.monotonic() >= deadline",
            "cause or time.monotonic() >= deadline",
        ),
    ),
    Defect(
        _STATUSES,
        "The authority of the operator is not trusted",
        f"{_UPSTREAM}::test_a_dify_of_an_authority_of_the_operator_is_trusted",
        "opendify.upstream.tls:new_ssl_context",
        Replace("authorities", "not authorities and False"),
    ),
    Defect(
        _STATUSES,
        "Redirects are followed",
        f"{_SECRETS}::test_a_redirect_is_followed_nowhere",
        "opendify.upstream.event_stream:EventStream._error_from_response",
        Insert(
            1,
            "if 300 <= status < 400:\n"
            "    httpx = __import__('httpx')\n"
            "    with __import__('contextlib').suppress(httpx.HTTPError):\n"
            "        httpx.post(headers['location'], timeout=0.2)",
        ),
    ),
    Defect(
        _STATUSES,
        "The message of a redirect does not name the remedy",
        f"{_SECRETS}::test_a_redirect_is_followed_nowhere",
        "opendify.dify.error_mapping:_redirected",
        Constant(
            "). The operator should put the final address into DIFY_API_BASE (often https "
            "instead of http).",
            "). The operator should put the final address there.",
        ),
    ),
    Defect(
        _STATUSES,
        "A conversation that Dify has lost is told to the caller",
        f"{_RETRIES}::test_a_conversation_that_dify_has_lost_is_replaced_unnoticed",
        "opendify.chat.turn:ChatTurn._can_recover",
        Returned("False"),
    ),
    Defect(
        _STATUSES,
        "A lost conversation is begun anew again and again",
        f"{_RETRIES}::test_a_conversation_is_replaced_once",
        "opendify.chat.turn:ChatTurn._find_another_conversation",
        Replace(
            "not self._conversation_id or self.prompt.options.conversation_id",
            "self.prompt.options.conversation_id",
        ),
    ),
    Defect(
        _STATUSES,
        "An answer to a call may be of any length",
        "tests/test_client.py::test_a_call_that_is_answered_with_too_much_is_an_error",
        "opendify.upstream.client:DifyClient._read_body",
        Replace("len(body) > MAX_CALL_BYTES", "len(body) < 0"),
    ),
    Defect(
        _STATUSES,
        "A 502 makes the next turn a new conversation",
        "tests/faults/test_restart.py::test_a_restart_of_dify_costs_no_chat_its_conversation "
        "-k closed-whole",
        "opendify.conversations.resolver:ConversationResolver.release",
        Replace("self._pending_turn.with_outcome(outcome).encode()", "NOT_CONTINUABLE"),
    ),
    # --- timeouts ------------------------------------------------------------------------------
    Defect(
        _TIMEOUTS,
        "Silence has no end",
        _FIRST + "silent-after-ping-whole",
        "opendify.upstream.event_stream:EventStream.read",
        Assigned("times_out_at", "now + 30 * self._read_timeout"),
    ),
    Defect(
        _TIMEOUTS,
        "Pings are no life: an answer may take no longer than the read timeout",
        _STRANGE + "many-pings",
        "opendify.upstream.event_stream:EventStream.read",
        Replace("self.times_out_at = now + self._read_timeout", "pass"),
    ),
    Defect(
        _TIMEOUTS,
        "The loop looks at no time",
        _CUT + "cut-silence-streamed",
        "opendify.worker.stream_loop:StreamLoop.add",
        Drop("min"),
    ),
    Defect(
        _TIMEOUTS,
        "The loop looks at the time of the first of its answers only",
        f"{_WAITING}::test_silence_ends_for_each_in_its_time",
        "opendify.worker.stream_loop:StreamLoop._release_expired",
        Assigned("_next_deadline", "math.inf"),
    ),
    Defect(
        _TIMEOUTS,
        "A dead run may be repeated by the client",
        f"{_RETRIES}::test_a_real_client_does_not_run_a_turn_twice -k silent-after-ping",
        "opendify.errors:UpstreamTimeout",
        Insert(1, "retryable = True"),
    ),
    # --- retries -------------------------------------------------------------------------------
    Defect(
        _ONCE,
        "A kept connection that had ended is a failure",
        f"{_RETRIES}::test_a_kept_connection_that_dify_has_closed_is_no_failure",
        "opendify.upstream.transport.pending_response:PendingResponse._send_again",
        Condition(0, "True"),
    ),
    Defect(
        _ONCE,
        "A fresh connection that fails is tried again",
        f"{_RETRIES}::test_a_fresh_connection_that_fails_is_not_tried_again",
        "opendify.upstream.transport.pending_response:PendingResponse._send_again",
        WithoutOperand(0, 2),
    ),
    Defect(
        _ONCE,
        "A kept connection that dies late is tried again",
        f"{_RETRIES}::test_a_dify_that_may_have_begun_is_not_asked_again -k closed-late",
        "opendify.upstream.transport.pending_response:REUSE_RACE_SECONDS",
        Constant(1.0, 60.0),
    ),
    Defect(
        _ONCE,
        "A question is asked again after Dify has answered something",
        f"{_RETRIES}::test_a_dify_that_may_have_begun_is_not_asked_again -k after-a-ping",
        "opendify.upstream.transport.pending_response:PendingResponse._feed",
        Replace("self._parts = None", "pass"),
    ),
    Defect(
        _ONCE,
        "A kept connection is used whatever Dify has said or done on it since",
        f"{_OF_TRANSPORT}::test_a_connection_on_which_something_came_unasked_is_never_used",
        "opendify.upstream.transport.connection:Connection.is_usable",
        WithoutOperand(0, 1),
    ),
    Defect(
        _ONCE,
        "A kept connection is used though its time is over",
        f"{_OF_TRANSPORT}::test_a_connection_that_has_expired_is_not_used_though_it_is_not_closed_yet",
        "opendify.upstream.transport.connection:Connection.is_usable",
        WithoutOperand(0, 0),
    ),
    Defect(
        _ONCE,
        "A kept connection is not closed when its time is over",
        f"{_OF_TRANSPORT}::test_an_idle_connection_is_closed_in_time_though_nothing_is_asked",
        "opendify.upstream.transport.pool:ConnectionPool._store",
        Assigned("expires_at", "time.monotonic() + 60 * expiry"),
    ),
    Defect(
        _ONCE,
        "x-should-retry is not sent",
        f"{_RETRIES}::test_a_real_client_does_not_run_a_turn_twice -k told-500",
        "opendify.api.middleware.error_handlers:_to_response",
        Constant("x-should-retry", "x-may-retry"),
    ),
    Defect(
        _ONCE,
        "A rate limit may be repeated though the question is in its conversation",
        f"{_RETRIES}::test_a_real_client_does_not_run_a_turn_twice -k limit-in-an-event",
        "opendify.chat.turn:ChatTurn._next",
        Replace("exc.retryable = exc.retryable and (not self.has_started)", "pass"),
    ),
    Defect(
        _ONCE,
        "A rate limit may not be repeated at all",
        f"{_RETRIES}::test_a_real_client_repeats_what_was_not_begun",
        "opendify.errors:RateLimited",
        Replace("retryable = True", "pass"),
    ),
    # --- client gone ---------------------------------------------------------------------------
    Defect(
        _GONE,
        "The caller's socket is not watched",
        f"{_LEAVING}::test_the_run_is_stopped_once -k silent",
        "opendify.upstream.cancellation:Cancellation.register",
        Condition(0, "False"),
    ),
    Defect(
        _GONE,
        "The loop does not watch the caller's socket",
        f"{_LEAVING}::test_the_run_is_stopped_once -k silent-streamed",
        "opendify.worker.stream_loop:StreamLoop.add",
        Drop("register", 1),
    ),
    Defect(
        _GONE,
        "The loop goes on with a caller who takes nothing",
        f"{_WAITING}::test_who_takes_nothing_is_left",
        "opendify.worker.response_driver:ResponseDriver.step",
        WithoutOperand(0, 1),
    ),
    Defect(
        _GONE,
        "Nothing is stopped",
        f"{_LEAVING}::test_the_run_is_stopped_once -k flowing-whole",
        "opendify.upstream.run:DifyRun._stop",
        Condition(0, "False"),
    ),
    Defect(
        _GONE,
        "A run that has no name yet is forgotten",
        f"{_LEAVING}::test_the_run_is_stopped_once -k before-the-head",
        "opendify.upstream.run:SECONDS_TO_NAME_A_RUN",
        Constant(60.0, 0.0),
    ),
    Defect(
        _GONE,
        "A run is stopped for another user",
        f"{_LEAVING}::test_the_run_is_stopped_once -k thinking",
        "opendify.upstream.run:DifyRun._stop",
        Argument("stop", 2, "'somebody'"),
    ),
    Defect(
        _GONE,
        "A run is stopped twice",
        f"{_LEAVING}::test_the_run_is_stopped_once -k silent-streamed",
        "opendify.upstream.run:DifyRun._read_in_background",
        WithoutOperand(0, 0),
    ),
    Defect(
        _GONE,
        "A run that has ended is stopped",
        f"{_LEAVING}::test_a_run_that_ended_is_not_stopped",
        "opendify.upstream.run:DifyRun._release",
        Insert(1, "self._stop()"),
    ),
    Defect(
        _GONE,
        "A stopped answer is not read to its end",
        f"{_LEAVING}::test_a_stopped_answer_is_read_to_its_end",
        "opendify.upstream.run:SECONDS_AFTER_STOP",
        Constant(2.0, 0.0),
    ),
    Defect(
        _GONE,
        "A file is given to Dify for a caller who has left",
        "tests/faults/test_leaving_many.py::"
        "test_a_caller_who_leaves_during_an_upload_to_dify_holds_no_permit",
        "opendify.upstream.client:DifyClient.post",
        Argument("_call", 5, "NEVER"),
    ),
    Defect(
        _GONE,
        "The thread is kept for what a caller leaves behind",
        f"{_LEAVING}::test_no_thread_is_held_for_callers_who_left",
        "opendify.upstream.run:DifyRun.close",
        Replace(
            "self._client.background_reader.add(self._read_in_background(afterwards))",
            "time.sleep(20)",
        ),
    ),
    # --- shutdown ------------------------------------------------------------------------------
    Defect(
        _END,
        "SIGTERM ends answers at once",
        f"{_SHUTDOWN}::test_sigterm_lets_short_answers_end",
        "opendify.worker.shutdown:GracefulShutdown.must_drain",
        Returned("self._remaining < 1000000000.0"),
    ),
    Defect(
        _END,
        "Answers that still run are cut without a word",
        f"{_SHUTDOWN}::test_sigterm_ends_long_answers_with_an_error_and_a_stop",
        "opendify.upstream.cancellation:Cancellation.register",
        Condition(1, "False"),
    ),
    Defect(
        _END,
        "Answers in the loop are not told of the end",
        f"{_SHUTDOWN}::test_sigterm_ends_long_answers_with_an_error_and_a_stop",
        "opendify.worker.worker:Worker._end_responses",
        Drop("release_all"),
    ),
    Defect(
        _END,
        "A service that ends does not refuse new connections",
        f"{_SHUTDOWN}::test_sigterm_lets_short_answers_end",
        "opendify.worker.worker:Worker._drain",
        Drop("close"),
    ),
    Defect(
        _END,
        "SIGHUP ends long answers after graceful_timeout",
        f"{_SHUTDOWN}::test_sighup_loses_no_answer",
        "opendify.worker.shutdown:GracefulShutdown.handle_signals",
        Condition(1, "True"),
    ),
    Defect(
        _END,
        "max_requests ends a worker at once",
        f"{_SHUTDOWN}::test_max_requests_cuts_no_stream",
        "opendify.worker.recycling:WorkerRecycler.is_due",
        Replace("return is_idle or self._is_overdue(answered)", "sys.exit(0)"),
    ),
    Defect(
        _END,
        "max_requests replaces no worker",
        f"{_SHUTDOWN}::test_max_requests_cuts_no_stream",
        "opendify.worker.recycling:WorkerRecycler.is_due",
        Condition(0, "True"),
    ),
    Defect(
        _END,
        "A mapping is only in the memory of its worker",
        f"{_SHUTDOWN}::test_a_killed_worker_takes_nothing_with_it_but_its_own_streams",
        "opendify.conversations.store.journaled_map:JournaledMap.change",
        Replace(
            "with self._write_lock:\n    return self._change(mutation)",
            "patch = mutation(self._state.entries)\n"
            "[self._state.entries.update({k: v}) for k, v in patch.items() if v]\n"
            "return patch",
        ),
    ),
    # --- bad callers ---------------------------------------------------------------------------
    Defect(
        _BAD,
        "Deep nesting is a 500",
        _BODY + "deep-inputs",
        "opendify.protocols.json_object:parse_object",
        Catch(0),
    ),
    Defect(
        _BAD,
        "Half a surrogate pair is a 500",
        _BODY + "half-a-pair",
        "opendify.protocols.json_object:parse_object",
        Catch(2),
    ),
    Defect(
        _BAD,
        "Lists of nothing take as much memory as they like",
        f"{_WEIGHTS}::test_a_body_costs_what_it_weighs -k values-within",
        "opendify.protocols.json_object:_check_values",
        Condition(1, "False"),
    ),
    Defect(
        _BAD,
        "A text may be as large as files are",
        f"{_WEIGHTS}::test_a_body_costs_what_it_weighs -k bytes-that",
        "opendify.protocols.json_object:_check_text",
        Condition(0, "False"),
    ),
    Defect(
        _BAD,
        "Malformed chunks are a 500",
        _HTTP + "chunk-without-a-size",
        "opendify.worker.error_responses:_STATUS",
        Constant(400, 500),
    ),
    Defect(
        _BAD,
        "A body in chunks may be of any size",
        f"{_CALLERS}::test_a_body_of_a_hundred_megabytes_is_refused -k chunked",
        "opendify.worker.request_buffer:RequestBuffer._feed_chunks",
        Condition(0, "False"),
    ),
    Defect(
        _BAD,
        "A body may be of any size",
        f"{_CALLERS}::test_a_body_of_a_hundred_megabytes_is_refused -k counted",
        "opendify.app:_new_flask",
        Assigned("config", "50 * settings.max_body_bytes"),
    ),
    Defect(
        _BAD,
        "What is left of a body that was not read is a request",
        f"{_FRAMING}::test_a_body_that_was_not_read_is_no_request",
        "opendify.worker.worker:Worker.handle_request",
        WithoutOperand(1, 1),
    ),
    Defect(
        _BAD,
        "A bare LF ends the size of a chunk",
        f"{_FRAMING}::test_malformed_chunks_are_refused_at_once",
        "opendify.worker.chunked:_PLAIN_SIZE_LINE",
        Constant(b"\\r\\n", b"\\r?\\n"),
    ),
    Defect(
        _BAD,
        "The body of a stranger is waited for",
        f"{_FRAMING}::test_without_a_key_no_body_is_waited_for",
        "opendify.api.middleware.auth:require_api_key",
        Assigned("config", "lambda environ: True"),
    ),
    Defect(
        _BAD,
        "The newcomer is refused where bodies are held back",
        f"{_FRAMING}::test_incomplete_bodies_do_not_block_others",
        "opendify.worker.connection_set:PendingConnections._advance",
        Argument("_reject", 0, "conn"),
    ),
    Defect(
        _BAD,
        "A proxy's header changes the path",
        f"{_FRAMING}::test_a_header_changes_no_path",
        "gunicorn_config:",
        Replace("forwarded_allow_ips, forwarder_headers = ('', '')", "pass"),
    ),
    Defect(
        _BAD,
        "The type of a body does not matter",
        f"{_CALLERS}::test_a_body_of_another_type_is_refused",
        "opendify.api.request_body:_require_plain_json",
        Condition(2, "False"),
    ),
    Defect(
        _BAD,
        "A role may be of any type",
        _BODY + "role-object",
        "opendify.protocols.openai.messages:_parse_message",
        Replace("ROLES", "set(ROLES)"),
    ),
    Defect(
        _BAD,
        "404 and 405 are pages",
        f"{_CALLERS}::test_other_routes_are_refused_in_json",
        "opendify.api.middleware.error_handlers:add_error_handlers",
        Argument("register_error_handler", 1, "lambda exc: exc.get_response()", 3),
    ),
    Defect(
        _BAD,
        "Endless headers are a fault of the server",
        _HTTP + "header-of-a-megabyte",
        "opendify.worker.error_responses:_STATUS",
        Constant(431, 500),
    ),
    Defect(
        _BAD,
        "Slow callers hold threads",
        f"{_CALLERS}::test_slow_callers_do_not_block_others -k half-a-head",
        "gunicorn_config:",
        Replace(
            "worker_class, worker_connections = ('opendify.worker.worker.Worker', threads + 1000)",
            "pass",
        ),
    ),
    Defect(
        _BAD,
        "A head may take for ever",
        f"{_CALLERS}::test_a_caller_that_never_finishes_is_disconnected",
        "opendify.worker.connection:HEAD_TIMEOUT",
        Constant(15.0, 600.0),
    ),
    Defect(
        _BAD,
        "The end of a chunked body is a bare LF",
        f"{_FRAMING}::test_malformed_chunks_are_refused_at_once -k half and end",
        "opendify.worker.chunked:ChunkDecoder._finish",
        Replace(
            "data.startswith(b'\\r\\n', position)",
            "data.startswith((b'\\r\\n', b'\\n'), position)",
        ),
    ),
    Defect(
        _BAD,
        "A body is waited for that no route reads",
        f"{_FRAMING}::test_no_body_is_waited_for_where_nobody_reads_it",
        "opendify.api.middleware.auth:require_api_key.accepts_body",
        Returned("True"),
    ),
    # --- isolation -----------------------------------------------------------------------------
    *[
        Defect(
            _ISOLATION,
            f"The {what} is no part of whose a chat is",
            f"{_SECRETS}::test_a_conversation_is_nobody_else_s -k {case}",
            "opendify.conversations.resolver:ChatOwner.key",
            Replace(part, "''"),
        )
        for what, case, part in (
            ("user", "user-in-other-letters", "self.user"),
            ("model", "model", "self.model"),
            ("key", "key", "self.caller"),
            ("chat", "chat", "chat_id"),
        )
    ],
    Defect(
        _ISOLATION,
        "The parts of a name run into one another",
        f"{_SECRETS}::test_no_other_user_and_chat_have_the_same_name",
        "opendify.conversations.resolver:_quote",
        Assigned("_quote", "'\"{}\"'.format"),
    ),
    Defect(
        _ISOLATION,
        "A window of one exchange continues the chat of a stranger without a name",
        f"{_OF_OWNERS}::test_the_end_of_a_chat_opens_it_to_nobody_who_shares_the_default_user",
        "opendify.chat.turn:_min_exchanges",
        Returned("1", 1),
    ),
    Defect(
        _ISOLATION,
        "A window of one exchange continues a chat of the same user name",
        f"{_OF_OWNERS}::test_one_exchange_is_too_little_also_for_a_named_user",
        "opendify.chat.turn:_min_exchanges",
        Constant(2, 1),
    ),
    Defect(
        _ISOLATION,
        "A conversation id of another caller is accepted",
        "tests/test_resolver.py::test_an_explicit_conversation_of_another_caller_is_unknown",
        "opendify.conversations.resolver:ConversationResolver.use_explicit",
        Assigned("own", "keys"),
    ),
    Defect(
        _ISOLATION,
        "A model that takes foreign conversations takes those of another caller too",
        f"{_OF_OWNERS}::"
        "test_a_model_may_take_conversations_from_elsewhere_but_none_of_another_caller",
        "opendify.conversations.resolver:ConversationResolver.use_explicit",
        Condition(2, "not accepts_unknown"),
    ),
    Defect(
        _ISOLATION,
        "An input with {user} is overwritten by the caller",
        "tests/test_dify_request.py::test_inputs_that_tell_who_asks_are_not_the_caller_s_to_set",
        "opendify.chat.dify_request:_fill_inputs",
        Returned("{**filled, **options.inputs}"),
    ),
    Defect(
        _ISOLATION,
        "A header names the user where a token is required",
        "tests/test_client_ids.py::test_with_a_secret_only_the_token_names_the_user",
        "opendify.protocols.client_ids:_person",
        Condition(0, "False"),
    ),
    Defect(
        _ISOLATION,
        "A background task reaches a model that its caller may not use",
        "tests/test_background_tasks.py::"
        "test_a_task_does_not_reach_a_model_that_the_caller_may_not_use",
        "opendify.chat.background_tasks:BackgroundTasks.answering_model",
        Replace("context.models.get(name)", "self._services.app_registry._models.get(name)"),
    ),
    # --- keys ----------------------------------------------------------------------------------
    Defect(
        _KEYS,
        "No key is needed",
        f"{_SECRETS}::test_without_a_key_nothing_opens",
        "opendify.api.middleware.auth:require_api_key.check_api_key",
        Condition(0, "True"),
    ),
    Defect(
        _KEYS,
        "The beginning of a key is enough",
        f"{_SECRETS}::test_without_a_key_nothing_opens",
        "opendify.auth.api_keys:hash_key",
        Insert(1, "key = key[:8]"),
    ),
    Defect(
        _KEYS,
        "An ordinary key is an operator's",
        f"{_SECRETS}::test_an_ordinary_key_opens_nothing_of_the_operator_s",
        "opendify.api.middleware.auth:Authorizer.is_admin",
        Returned("bool(keys) and self._accounts.identify(_key()) is not None"),
    ),
    Defect(
        _KEYS,
        "Every caller may use every model",
        f"{_SECRETS}::test_a_key_opens_its_models_and_others_are_not_there",
        "opendify.auth.accounts:_allowed_models",
        Condition(0, "True"),
    ),
    Defect(
        _KEYS,
        "/readyz tells everybody its details",
        f"{_SECRETS}::test_probes_need_no_key_and_tell_nothing",
        "opendify.api.health:add_health_routes.readyz",
        Condition(1, "True"),
    ),
    Defect(
        _KEYS,
        "A page of another site may ask where there are no keys",
        f"{_OF_ORIGINS}::test_a_page_of_another_site_gets_nothing_done",
        "opendify.api.middleware.origins:_is_allowed_origin",
        Insert(0, "return True"),
    ),
    Defect(
        _KEYS,
        "Host is not looked at on loopback",
        f"{_OF_ORIGINS}::test_a_name_that_may_be_anybody_s_is_not",
        "opendify.api.middleware.origins:_is_trusted_host",
        Condition(0, "True"),
    ),
    Defect(
        _KEYS,
        "A page that was led here by its name may ask",
        f"{_OF_ORIGINS}::test_a_page_may_ask_where_it_is_from_unless_its_name_may_be_led_here",
        "opendify.api.middleware.origins:_is_allowed_origin",
        Returned("is_same", 4),
    ),
    # --- logs ----------------------------------------------------------------------------------
    Defect(
        _LOGS,
        "The prompt is logged at DEBUG",
        f"{_SECRETS}::test_nothing_secret_is_in_the_log -k debug-text",
        "opendify.chat.turn:ChatTurn._send",
        Insert(3, "log.debug('asks %s', request.body)"),
    ),
    Defect(
        _LOGS,
        "The headers of a request are logged",
        f"{_SECRETS}::test_nothing_secret_is_in_the_log -k info-json",
        "opendify.api.responder:Responder._caller",
        Insert(2, "log.info('headers %s', dict(request.headers))"),
    ),
    Defect(
        _LOGS,
        "Query strings are in the access log",
        f"{_SECRETS}::test_nothing_secret_is_in_the_log -k info-text",
        "gunicorn_config:access_log_format",
        Constant(
            '%(h)s %(l)s %(u)s %(t)s "%(m)s %(U)s %(H)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)sμs',
            '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)sμs',
        ),
    ),
    Defect(
        _LOGS,
        "A path can begin a line of the access log",
        f"{_SECRETS}::test_nothing_secret_is_in_the_log -k info-text",
        "gunicorn_config:",
        Replace("logger_class = 'opendify.worker.access_log.Log'", "pass"),
    ),
    Defect(
        _LOGS,
        "User names of Basic authentication are in the access log",
        "tests/test_access_log.py::test_no_format_shows_a_key",
        "opendify.worker.access_log:Log.atoms",
        Replace("atoms['u'] = '-'", "pass"),
    ),
    Defect(
        _LOGS,
        "The cause of a failure to connect is not in the log",
        f"{_UPSTREAM}::test_a_dify_that_cannot_be_reached -k refused",
        "opendify.upstream.network_errors:_with_cause",
        Replace("error.details = causes.describe(model, cause.log)", "pass"),
    ),
    Defect(
        _LOGS,
        "What came instead of a response of Dify is not in the log",
        f"{_UPSTREAM}::test_what_is_not_dify_is_in_the_log_with_status_type_and_model",
        "opendify.upstream.causes:with_response_details",
        Replace(
            "error.details = describe(model, f\"status {status}, content type {shown or 'none'}\")",
            "pass",
        ),
    ),
    # --- files ---------------------------------------------------------------------------------
    Defect(
        _FILES,
        "The folder is open to all",
        f"{_SECRETS}::test_what_is_kept_is_its_owner_s_alone",
        "opendify.storage.data_dir:DataDir.prepare",
        Condition(0, "False"),
    ),
    Defect(
        _FILES,
        "The mappings can be read by all",
        f"{_SECRETS}::test_what_is_kept_is_its_owner_s_alone",
        "opendify.conversations.store.snapshot:write_snapshot",
        Constant(0o600, 0o644),
    ),
    Defect(
        _FILES,
        "A folder of somebody else is closed to them",
        f"{_SECRETS}::test_a_folder_of_somebody_else_is_left_as_it_is",
        "opendify.storage.data_dir:_make_private",
        WithoutOperand(1, 0),
    ),
    Defect(
        _FILES,
        "The address of a caller is fetched",
        f"{_SECRETS}::test_an_address_of_a_caller_is_never_fetched",
        "opendify.upstream.uploads:Uploads.prepare",
        Insert(
            5,
            "url = str(step.file.get('url', ''))\n"
            "url.startswith('http') and __import__('httpx').get(url, timeout=0.3)",
        ),
    ),
    Defect(
        _FILES,
        "A wrong configuration is told one problem at a time",
        f"{_SECRETS}::test_a_wrong_configuration_starts_nothing_and_all_problems_are_reported",
        "opendify.config.settings:load_settings",
        Argument("ConfigError", 0, "problems[:1]"),
    ),
    # --- store ---------------------------------------------------------------------------------
    Defect(
        _KEPT,
        "A corrupt file is fatal",
        f"{_STORE}::test_a_corrupt_file_is_put_aside_and_the_service_starts",
        "opendify.conversations.store.loading:load",
        Catch(1),
    ),
    # --- concurrency ---------------------------------------------------------------------------
    Defect(
        _PERMITS,
        "There is no cap",
        f"{_CAPACITY}::test_requests_without_a_permit_are_refused_at_once",
        "opendify.config.settings:_Reader.max_concurrent_streams",
        Assigned("streams", "threads - 1"),
    ),
    Defect(
        _PERMITS,
        "Permits are never released",
        f"{_CALLERS}::test_callers_that_do_not_read_do_not_block_others",
        "opendify.limits.capacity:_PermitPool.release",
        Replace("self._free += 1", "pass"),
    ),
    Defect(
        _PERMITS,
        "The pool is smaller than the threads",
        f"{_CAPACITY}::test_the_pool_is_as_large_as_the_threads",
        "main:_max_connections",
        Assigned("_max_connections", "100"),
    ),
    Defect(
        _PERMITS,
        "The permit of a file is not released",
        f"{_OF_PERMITS}::test_every_route_releases_what_it_holds",
        "opendify.api.files:add_file_routes.file_content",
        Replace("resources.add_permit(capacity.acquire_file())", "capacity.acquire_file()"),
    ),
    Defect(
        _PERMITS,
        "Files share the permits of responses",
        "tests/test_limits_capacity.py::test_files_and_responses_do_not_take_permits_from_one_another",
        "opendify.limits.capacity:ServerCapacity.acquire_file",
        Condition(0, "True"),
    ),
    Defect(
        _PERMITS,
        "A run that its caller has left counts no more",
        f"{_OF_PERMITS}::test_a_run_whose_caller_left_before_its_first_token_counts_until_it_is_stopped",
        "opendify.api.responder:Responder.respond",
        Replace("lambda: turn.add_done_callback(run_permits.close)", "run_permits.close"),
    ),
]
