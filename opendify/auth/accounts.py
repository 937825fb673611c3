"""Identifies the caller of a request by its key, and what that caller may use. No I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from opendify.auth.api_keys import ApiKeys, hash_key
from opendify.config.accounts import Account, Limits
from opendify.config.models import Model

_DIFY_KEY = re.compile(r"app-[!-~]{1,200}")


@dataclass(frozen=True, slots=True)
class Principal:
    """An identified caller. ``name`` stands for the key in the mappings and never is the key;
    ``models`` are the models that the caller may use; ``limits`` apply to all callers that share a
    ``limit_key`` together."""

    name: str
    models: Mapping[str, Model]
    limits: Limits
    limit_key: str


class AccountRegistry:
    """Who may call: accounts and admins; everybody where there are no accounts. With
    ``bring_dify_key``, every caller that sends the key of a Dify app; that key then replaces the
    key of every model for this caller only."""

    def __init__(
        self,
        accounts: tuple[Account, ...],
        admin_keys: ApiKeys,
        models: Mapping[str, Model],
        limits: Limits,
        bring_dify_key: bool = False,
    ) -> None:
        self._accounts = [(account, _allowed_models(account, models)) for account in accounts]
        self._models = models
        self._limits = limits
        self.admin_keys = admin_keys
        self.bring_dify_key = bring_dify_key

    @property
    def requires_key(self) -> bool:
        """Whether a request needs a key at all."""
        return bool(self._accounts) or self.bring_dify_key

    def identify(self, key: str) -> Principal | None:
        """The caller with this key ("" for no key); None where the key is unknown.

        The time that this takes does not depend on how similar a wrong key is to a right one.
        """
        digest = hash_key(key)
        name = digest[:12] if key else "-"
        if self.bring_dify_key:
            return self._identify_by_dify_key(key, name)
        matching = [entry for entry in self._accounts if entry[0].keys.contains_digest(digest)]
        if matching:
            account, models = matching[0]
            name = account.name or name
            return Principal(name, models, account.limits, name)
        if self.admin_keys.contains_digest(digest):
            return Principal(name, self._models, Limits(), name)
        if not self.requires_key:  # keys can be made up, so all callers share the limits
            return Principal(name, self._models, self._limits, "-")
        return None

    def _identify_by_dify_key(self, key: str, name: str) -> Principal | None:
        if not _DIFY_KEY.fullmatch(key):
            return None
        models = {name: replace(model, key=key) for name, model in self._models.items()}
        return Principal(name, models, self._limits, name)


def _allowed_models(account: Account, models: Mapping[str, Model]) -> Mapping[str, Model]:
    if account.models is None:
        return models
    return {name: model for name, model in models.items() if name in account.models}
