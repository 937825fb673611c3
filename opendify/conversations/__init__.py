"""Which Dify conversation each chat is in, kept in one JSON file that several processes share.

From the outside in: `contract` says what can be asked, `store` answers it, `ledger` is one
process's view of the folder, `journal` and `snapshot` are the two kinds of file in it, `folder`
keeps processes apart, `owners` looks mappings up by conversation and `mapping` is what one entry
is. `turn_locks` lets the turns of a chat wait for one another, and `whose` knows what a key says.
How the files work together is told in
docs/decisions/0001-json-file-store.md.
"""

from opendify.conversations.contract import Conversations
from opendify.conversations.mapping import Mapping, Stats
from opendify.conversations.store import ConversationStore

__all__ = ["ConversationStore", "Conversations", "Mapping", "Stats"]
