"""Which Dify conversation each chat is in, kept in one JSON file that several processes share.

From the outside in: `store` says what can be asked, `ledger` is one process's view of the
folder, `journal` and `snapshot` are the two kinds of file in it, `locks` keeps processes apart
and `mapping` is what one entry is. How the files work together is told in
docs/decisions/0001-json-file-store.md.
"""

from opendify.conversations.mapping import Mapping, Stats
from opendify.conversations.store import ConversationStore

__all__ = ["ConversationStore", "Mapping", "Stats"]
