"""The endpoints around an answer: conversations, their messages, files, speech."""

from demo.calls import Call, Refusal, Reply, invalid
from demo.release import Release
from demo.shapes import Event
from demo.state import Conversation, File, Memory, Turn, new_id, now

NO_PARENT = "00000000-0000-0000-0000-000000000000"
MEGABYTES = {"image": 10, "video": 100, "audio": 50}  # other files: 15
EXTENSIONS = {
    "image": "jpg jpeg png webp gif svg",
    "video": "mp4 mov mpeg webm",
    "audio": "mp3 m4a wav amr mpga",
    "document": "txt md mdx markdown pdf html htm xlsx xls docx csv vtt properties pptx xml epub",
}
HEARD = ("audio/mp3", "audio/m4a", "audio/wav", "audio/amr", "audio/mpga")


def messages(call: Call) -> Reply:
    call.need_chat()
    query, limit = call.request.query, call.limit()
    conversation = call.conversation(query.get("conversation_id", ""))
    turns = list(conversation.turns)
    ids = [turn.id for turn in turns]
    end = ids.index(query["first_id"]) if query.get("first_id") in ids else len(turns)
    start = max(0, end - limit)
    counts = call.memory.release is Release.DIFY_1_16
    data = [_message(conversation, turn, counts=counts) for turn in turns[start:end]]
    return Reply(200, {"limit": limit, "has_more": start > 0, "data": data})


def suggested(call: Call, message_id: str) -> Reply:
    call.need_chat()
    if not call.app.suggests:
        raise Refusal(400, "bad_request", "Suggested Questions Is Disabled.")
    return Reply(200, {"result": "success", "data": ["What did I say first?", "/think about it"]})


def feedback(call: Call, message_id: str) -> Reply:
    call.need_user()
    return Reply(200, {"result": "success"})


def conversations(call: Call) -> Reply:
    call.need_chat()
    limit, last = call.limit(), call.request.query.get("last_id")
    known = list(call.memory.conversations(call.key, call.user).values())
    known.sort(key=lambda conversation: conversation.updated_at, reverse=True)
    ids = [conversation.id for conversation in known]
    rest = known[ids.index(last) + 1 :] if last in ids else known
    data = [_item(call, conversation) for conversation in rest[:limit]]
    return Reply(200, {"limit": limit, "has_more": len(rest) > limit, "data": data})


def delete(call: Call, conversation_id: str) -> Reply:
    call.need_chat()
    call.conversation(conversation_id)
    call.memory.conversations(call.key, call.user).pop(conversation_id, None)
    return Reply(204, None)


def rename(call: Call, conversation_id: str) -> Reply:
    call.need_chat()
    conversation = call.conversation(conversation_id)
    generated = conversation.turns[0].query[:40]
    name = generated if call.fields.get("auto_generate") else call.fields.get("name")
    conversation.name, conversation.updated_at = str(name), now()
    return Reply(200, _item(call, conversation))


def upload(call: Call) -> Reply:
    file = _received(call)
    kinds = (kind for kind, names in EXTENSIONS.items() if file.extension in names.split())
    file.type = next(kinds, "custom")
    if file.size > MEGABYTES.get(file.type, 15) * 2**20:
        raise Refusal(413, "file_too_large", "File size exceeded. {message}")
    call.memory.keep(file)
    described = {
        "id": file.id,
        **({"reference": None} if call.memory.release is Release.DIFY_1_16 else {}),
        "name": file.name,
        "size": file.size,
        "extension": file.extension,
        "mime_type": file.mime_type,
        "created_by": new_id(),
        "created_at": file.created_at,
        "preview_url": None,
        "source_url": call.memory.address(file),
        "original_url": None,
        "user_id": None,
        "tenant_id": new_id(),
        "conversation_id": None,
        "file_key": None,
    }
    return Reply(201, described)


def content(memory: Memory, file_id: str) -> Reply:
    file = memory.file(file_id)
    if file is None or file.content is None:
        raise Refusal(404, "file_not_found", "File not found.")
    return Reply(200, file.content, file.mime_type)


def transcribe(call: Call) -> Reply:
    if not call.app.hears:
        raise invalid("Speech to text is not enabled")
    file = _received(call)
    if file.mime_type not in HEARD:
        raise Refusal(415, "unsupported_audio_type", "Only mp3, m4a, wav, amr and mpga are heard.")
    return Reply(200, {"text": f"These are the words of {file.name}, {file.size} bytes."})


def _received(call: Call) -> File:
    file = call.request.file
    if file is None:
        raise Refusal(400, "no_file_uploaded", "Please upload your file.")
    if not file.name:
        raise Refusal(400, "filename_not_exists_error", "The specified filename does not exist.")
    return file


def _message(conversation: Conversation, turn: Turn, *, counts: bool) -> Event:
    """A message as Dify lists it; 1.16 ``counts`` its tokens."""
    usage = turn.usage
    before = {
        "message_tokens": usage.get("prompt_tokens", 0),
        "answer_tokens": usage.get("completion_tokens", 0),
        "provider_response_latency": usage.get("latency", 0.0),
        "total_price": usage.get("total_price", "0"),
        "currency": "USD",
    }
    after = {"total_tokens": usage.get("total_tokens", 0)}
    files = [{"id": file.id, "filename": file.name, "type": file.type} for file in turn.files]
    return {
        "id": turn.id,
        "conversation_id": conversation.id,
        "parent_message_id": NO_PARENT,
        "inputs": turn.inputs,
        "query": turn.query,
        "answer": turn.answer.strip(),
        "feedback": None,
        "retriever_resources": turn.sources,
        "created_at": turn.created_at,
        "agent_thoughts": [],
        "message_files": files,
        **(before if counts else {}),
        "status": "error" if turn.error else "normal",
        "error": turn.error,
        "extra_contents": [],
        **(after if counts else {}),
    }


def _item(call: Call, conversation: Conversation) -> Event:
    return {
        "id": conversation.id,
        "name": conversation.name,
        "inputs": conversation.inputs,
        "status": "normal",
        "introduction": f"Hello! I am {call.app.name}.",
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
    }
