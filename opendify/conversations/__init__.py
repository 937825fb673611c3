"""Which Dify conversation each chat is in, kept in a JSON file that processes share, or in Redis.

`contract` says what can be asked of a store, `uses` what that does, `mapping` what one entry is,
`kinds` which kind is meant; `transfer` is the program that copies one to another. `whose` knows
what a key says.

The JSON file, from the outside in: `store`, `ledger` and `memory` (one process's view), `keeper`
(when it is tidied), `journal` and `snapshot` (the two kinds of file in it), `loading`, `folder`
(which keeps processes apart) and `owners` (mappings by conversation). How they work together is
told in docs/decisions/0001-json-file-store.md.

Redis, from the outside in: `redis_store`, `recollection` (what is known while it is away),
`redis_shelf` (how mappings lie there) and `redis_link`. See docs/decisions/0004-redis-store.md.

The turns of a chat wait for one another by `turn_locks` or `redis_locks`; `processes` tells by
them which processes are alive.
"""

from opendify.conversations.contract import Conversations
from opendify.conversations.mapping import Mapping, Stats
from opendify.conversations.store import ConversationStore

__all__ = ["ConversationStore", "Conversations", "Mapping", "Stats"]
