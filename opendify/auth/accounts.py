"""Who calls, and what the key of a request opens. No I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from opendify.auth.api_keys import Keys, digest_of
from opendify.config.accounts import Account, Limits
from opendify.config.models import Model

_DIFY_KEY = re.compile(r"app-[!-~]{1,200}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody whom we know. ``name`` stands for the key in the mappings and never is one;
    ``models`` are those that they may use; ``limits`` hold for all who are ``counted_as`` one."""

    name: str
    models: Mapping[str, Model]
    limits: Limits
    limit_key: str


class AccountRegistry:
    """Those who may call: the accounts and the admins; where there are no accounts, everybody;
    where ``bring_dify_key``, those with the key of a Dify app, which then is the key of every
    model for them, and only theirs."""

    def __init__(
        self,
        accounts: tuple[Account, ...],
        admin_keys: Keys,
        models: Mapping[str, Model],
        limits: Limits,
        bring_dify_key: bool = False,
    ) -> None:
        self._accounts = [(account, _allowed(account, models)) for account in accounts]
        self._models = models
        self._limits = limits
        self.admin_keys = admin_keys
        self.bring_dify_key = bring_dify_key

    @property
    def need_keys(self) -> bool:
        """Whether a request needs a key at all."""
        return bool(self._accounts) or self.bring_dify_key

    def identify(self, key: str) -> Principal | None:
        """Who shows this key ("" is none), or None where that is nobody we know.

        How long it takes says nothing of how near a wrong key is to a right one.
        """
        digest = digest_of(key)
        name = digest[:12] if key else "-"
        if self.bring_dify_key:
            return self._with_dify_key(key, name)
        found = [entry for entry in self._accounts if entry[0].keys.hold_digest(digest)]
        if found:
            account, models = found[0]
            name = account.name or name
            return Principal(name, models, account.limits, name)
        if self.admin_keys.hold_digest(digest):
            return Principal(name, self._models, Limits(), name)
        if not self.need_keys:  # anybody can make up keys, so all are counted as one
            return Principal(name, self._models, self._limits, "-")
        return None

    def _with_dify_key(self, key: str, name: str) -> Principal | None:
        if not _DIFY_KEY.fullmatch(key):
            return None
        models = {name: replace(model, key=key) for name, model in self._models.items()}
        return Principal(name, models, self._limits, name)


def _allowed(account: Account, models: Mapping[str, Model]) -> Mapping[str, Model]:
    if account.models is None:
        return models
    return {name: model for name, model in models.items() if name in account.models}
