"""Which Dify conversation continues a chat.

A chat is a tree: each of its `branches` is a Dify conversation, and a turn continues the one that
has exactly the history of the request. `resolver` finds and stores it, by the client's chat id
(`keys`) and a `fingerprint` of the history; `unsettled` handles turns whose end was not seen.
`store/` holds the records, in a JSON file that processes share or in Redis; `processes` tells, by
`locks/`, which processes are alive. `admin` serves operators; `migrate` is the program that copies
one store to another. See docs/decisions 0001 and 0004.
"""

from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.json_file import JsonFileStore
from opendify.conversations.store.mutations import Update
from opendify.conversations.store.records import ChatRecord, ConversationRecord, Stats

__all__ = [
    "ChatRecord",
    "ConversationRecord",
    "ConversationStore",
    "JsonFileStore",
    "Stats",
    "Update",
]
