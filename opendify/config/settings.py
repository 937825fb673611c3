"""The settings of the application, parsed from an environment mapping. No I/O."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from opendify.auth.api_keys import ApiKeys
from opendify.config.accounts import (
    MAX_LIMIT,
    Account,
    Limits,
    parse_accounts,
    parse_key_list,
    parse_origins,
)
from opendify.config.ca_files import read_authorities
from opendify.config.history_words import WordsByLanguage, parse_history_words
from opendify.config.id_headers import IdHeaders, load_id_headers
from opendify.config.models import (
    DEFAULT_HISTORY_MAX_CHARS,
    MAX_HISTORY_MAX_CHARS,
    Model,
    parse_base,
    parse_models,
)
from opendify.config.parsing import InvalidValue, parse_object
from opendify.config.redis_url import parse_store_url
from opendify.config.secret_files import resolve_secret_files

ENVIRONMENTS = ("production", "development")
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")

DEFAULT_THREADS = 128
MAX_RESERVED_THREADS = 16

DEFAULT_FILES_ONLY_QUERY = "Please look at what is attached."

MIN_SECRET_CHARS = 16
MIN_JWT_SECRET_BYTES = 32  # RFC 7518, section 3.2: as long as the hash of HS256

# Used by gunicorn_config.py, which cannot report problems: Gunicorn executes it first. The values
# are validated here, so that all problems are reported together.
SERVER_NUMBERS = {
    "SERVER_PORT": (1, 65535),
    "GUNICORN_WORKERS": (1, 1024),
    "GUNICORN_THREADS": (1, 4096),
    "GUNICORN_TIMEOUT": (1, 86400),
    "GUNICORN_GRACEFUL_TIMEOUT": (1, 86400),
    "GUNICORN_KEEPALIVE": (0, 3600),
    "GUNICORN_MAX_REQUESTS": (0, 10**9),
    "GUNICORN_MAX_REQUESTS_JITTER": (0, 10**9),
}


class ConfigError(RuntimeError):
    """All problems of the configuration, one line each.

    A RuntimeError, because Gunicorn prints only the message of one and exits; it prints a traceback
    for other errors.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(["The configuration is not complete:", *problems]))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Settings:
    """The validated settings. Times in seconds; ``max_answer`` in characters; ``authorities`` are
    the certificates of DIFY_CA_FILE in PEM; ``default_model`` is empty or the name of a model."""

    models: Mapping[str, Model]
    default_model: str
    data_dir: str
    conversation_store: str = field(repr=False)
    accounts: tuple[Account, ...]
    limits: Limits
    key_passthrough: bool
    cors_origins: frozenset[str]
    admin_keys: ApiKeys
    read_timeout: float
    max_answer_chars: int
    ca_certificates: str = field(repr=False)
    max_body_bytes: int
    max_text_bytes: int
    max_concurrent_streams: int
    mapping_max_age_days: float
    mapping_max_entries: int
    public_base_url: str
    secret: str = field(repr=False)
    file_cache_bytes: int
    files_only_query: str
    log_level: str
    log_file: str
    log_format: str
    server_host: str
    publish_address: str
    server_port: int
    openwebui_jwt_secret: str = field(repr=False)
    id_headers: IdHeaders

    @property
    def reachable_host(self) -> str:
        """The address under which others reach this service: in a container that listens on all its
        addresses, the one that Compose publishes."""
        is_published = self.publish_address and self.server_host in ("0.0.0.0", "::")
        return self.publish_address if is_published else self.server_host

    def secrets(self) -> list[str]:
        """Values that must never appear in the log."""
        password = unquote(urlsplit(self.conversation_store).password or "")
        keys = [model.key for model in self.models.values()]
        return [*keys, self.secret, self.openwebui_jwt_secret, password]


def _no_file(path: str) -> str:
    raise FileNotFoundError


def _any_host(text: str) -> str:
    return text


def load_settings(
    environ: Mapping[str, str],
    read_file: Callable[[str], str] = _no_file,
    check_certificates: Callable[[str], None] = lambda pem: None,
    parse_host: Callable[[str], str] = _any_host,
) -> Settings:
    """Reads all variables. Raises ConfigError with every problem at once.

    ``read_file`` returns the text of a file that a variable refers to, or raises OSError.
    ``check_certificates`` raises ValueError if a certificate in PEM text is damaged. ``parse_host``
    returns the address to listen at, or raises ValueError, whose message follows the name of the
    variable.
    """
    problems: list[str] = []
    environ = resolve_secret_files(environ, read_file, problems)
    reader = _Reader(environ, problems)
    models = reader.models()
    for name, (minimum, maximum) in SERVER_NUMBERS.items():
        reader.number(name, minimum, minimum, maximum)
    for name in ("GUNICORN_RELOAD", "ACCESS_LOG"):
        reader.one_of(name, ("true", "false"), "false")
    reader.proxies()
    limits = reader.limits()
    settings = Settings(
        models=models,
        default_model=reader.default_model(models),
        data_dir=data_dir(environ),
        conversation_store=reader.conversation_store(),
        accounts=parse_accounts(
            environ.get("OPENDIFY_API_KEYS", ""), set(models), limits, problems
        ),
        limits=limits,
        key_passthrough=reader.callers_bring_keys(),
        cors_origins=reader.cors_origins(),
        admin_keys=reader.admin_keys(),
        read_timeout=reader.number("DIFY_READ_TIMEOUT", 35, 1, 3600),
        max_answer_chars=reader.number("MAX_ANSWER_MB", 16, 1, 1024) * 1024 * 1024,
        ca_certificates=read_authorities(environ, read_file, check_certificates, problems),
        max_body_bytes=reader.number("MAX_BODY_MB", 64, 1, 1024) * 1024 * 1024,
        max_text_bytes=reader.number("MAX_TEXT_MB", 8, 1, 1024) * 1024 * 1024,
        max_concurrent_streams=reader.max_concurrent_streams(),
        mapping_max_age_days=reader.number("MAPPING_MAX_AGE_DAYS", 0, 0, 36500),
        mapping_max_entries=reader.number("MAPPING_MAX_ENTRIES", 100_000, 1, 10_000_000),
        public_base_url=reader.public_base(),
        secret=reader.secret(),
        file_cache_bytes=reader.number("FILE_CACHE_MB", 256, 1, 1_000_000) * 1024 * 1024,
        files_only_query=environ.get("FILES_ONLY_QUERY", "").strip() or DEFAULT_FILES_ONLY_QUERY,
        log_level=reader.log_level(),
        log_file=environ.get("LOG_FILE", "").strip(),
        log_format=reader.one_of("LOG_FORMAT", LOG_FORMATS, "text"),
        server_host=reader.server_host(parse_host),
        publish_address=environ.get("PUBLISH_ADDRESS", "").strip().strip("[]"),
        server_port=reader.number("SERVER_PORT", 5000, 1, 65535),
        openwebui_jwt_secret=reader.jwt_secret(),
        id_headers=load_id_headers(environ, problems),
    )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return settings


def data_dir(environ: Mapping[str, str]) -> str:
    """The data directory."""
    return environ.get("DATA_DIR", "").strip() or "data"


class _Reader:
    """Reads values and collects the problems."""

    def __init__(self, environ: Mapping[str, str], problems: list[str]) -> None:
        self._environ = environ
        self._problems = problems

    def log_level(self) -> str:
        environment = self.one_of("ENVIRONMENT", ENVIRONMENTS, "production")
        default = "debug" if environment == "development" else "info"
        return self.one_of("LOG_LEVEL", LOG_LEVELS, default)

    def limits(self) -> Limits:
        return Limits(
            self.number("CALLER_REQUESTS_PER_MINUTE", 0, 0, MAX_LIMIT),
            self.number("CALLER_MAX_STREAMS", 0, 0, MAX_LIMIT),
        )

    def models(self) -> dict[str, Model]:
        base = self._base()
        defaults = {
            "history_max_chars": self.number(
                "HISTORY_MAX_CHARS", DEFAULT_HISTORY_MAX_CHARS, 0, MAX_HISTORY_MAX_CHARS
            ),
            "history_words": self._history_words(),
        }
        models: dict[str, Model] = {}
        if config := self._environ.get("MODEL_CONFIG", "").strip():
            models = parse_models(config, base, self._problems, self.callers_bring_keys(), defaults)
        elif not self._environ.get("MODEL_CONFIG_FILE", "").strip():
            self._problems.append(
                "MODEL_CONFIG is not set. It names your models and their Dify keys, "
                """like MODEL_CONFIG='{"my-model":"app-..."}'"""
            )
        if not base and not (models and all(model.base for model in models.values())):
            self._problems.append(
                "DIFY_API_BASE is not set. It is the address of Dify's API, "
                "like DIFY_API_BASE=https://dify.example.com/v1"
            )
        return models

    def default_model(self, models: Mapping[str, Model]) -> str:
        name = self._environ.get("DEFAULT_MODEL", "").strip()
        if name and models and name not in models:
            self._problems.append(
                "DEFAULT_MODEL must be one of the names in MODEL_CONFIG, not an alias."
            )
        return name

    def _history_words(self) -> WordsByLanguage:
        name, example = "HISTORY_WORDS", """'{"user":"Usuário:","assistant":"Assistente:"}'"""
        text = self._environ.get(name, "").strip()
        try:
            is_object = text.startswith("{")
            value = parse_object(text, "text", example) if is_object else text.lower() or "auto"
            return parse_history_words(value, "")
        except InvalidValue as exc:
            self._problems.append(f"{name}{exc}".rstrip(".") + ".")
            return WordsByLanguage()

    def _base(self) -> str:
        value = self._environ.get("DIFY_API_BASE", "").strip()
        try:
            return parse_base(value) if value else ""
        except InvalidValue as exc:
            self._problems.append(f"DIFY_API_BASE {exc}.")
            return value

    def public_base(self) -> str:
        value = self._environ.get("PUBLIC_BASE_URL", "").strip()
        try:
            return parse_base(value).removesuffix("/v1") if value else ""
        except InvalidValue:
            self._problems.append(
                "PUBLIC_BASE_URL must be the address under which callers reach OpenDify, "
                "like https://ai.example.com, without user, password, query or fragment."
            )
            return ""

    def secret(self) -> str:
        value = self._environ.get("OPENDIFY_SECRET", "").strip()
        if value and len(value) < MIN_SECRET_CHARS:
            self._problems.append(
                f"OPENDIFY_SECRET must have {MIN_SECRET_CHARS} characters or more ('openssl rand "
                "-hex 32' generates one). Leave it unset to have one generated in DATA_DIR."
            )
        return value

    def jwt_secret(self) -> str:
        value = self._environ.get("OPENWEBUI_JWT_SECRET", "").strip()
        if value and len(value.encode()) < MIN_JWT_SECRET_BYTES:
            self._problems.append(
                f"OPENWEBUI_JWT_SECRET must have {MIN_JWT_SECRET_BYTES} characters or more, and be "
                "the same as FORWARD_USER_INFO_HEADER_JWT_SECRET in Open WebUI. Generate one for "
                "both with: openssl rand -hex 32"
            )
        return value

    def number(self, name: str, default: int, minimum: int, maximum: int) -> int:
        value = self._environ.get(name, "").strip()
        if not value:
            return default
        if not re.fullmatch("[0-9]{1,18}", value) or not minimum <= int(value) <= maximum:
            self._problems.append(f"{name} must be a whole number from {minimum} to {maximum}.")
            return default
        return int(value)

    def admin_keys(self) -> ApiKeys:
        text = self._environ.get("OPENDIFY_ADMIN_KEYS", "")
        return parse_key_list("OPENDIFY_ADMIN_KEYS", text, self._problems)

    def server_host(self, parse_host: Callable[[str], str]) -> str:
        value = self._environ.get("SERVER_HOST", "").strip() or "0.0.0.0"
        try:
            return parse_host(value)
        except ValueError as exc:
            self._problems.append(f"SERVER_HOST {exc}.")
            return value

    def one_of(self, name: str, choices: tuple[str, ...], default: str) -> str:
        value = self._environ.get(name, "").strip().lower()
        if value and value not in choices:
            self._problems.append(f"{name} must be one of {', '.join(choices)}.")
        return value if value in choices else default

    def max_concurrent_streams(self) -> int:
        """Leaves threads for short requests, including those that are rejected for overload."""
        minimum, maximum = SERVER_NUMBERS["GUNICORN_THREADS"]
        threads = self.number("GUNICORN_THREADS", DEFAULT_THREADS, minimum, maximum)
        default = max(1, threads - max(1, min(threads // 8, MAX_RESERVED_THREADS)))
        streams = self.number("MAX_CONCURRENT_STREAMS", default, 1, maximum)
        if streams >= max(2, threads):
            self._problems.append(
                f"MAX_CONCURRENT_STREAMS must be below GUNICORN_THREADS ({threads}), so that "
                "threads are left for everything else: raise GUNICORN_THREADS as well."
            )
        return streams

    def conversation_store(self) -> str:
        try:
            return parse_store_url(self._environ.get("CONVERSATION_STORE", "").strip())
        except InvalidValue as exc:
            self._problems.append(f"CONVERSATION_STORE {exc}.")
            return ""

    def callers_bring_keys(self) -> bool:
        name = "DIFY_KEY_PASSTHROUGH"
        brings = self.one_of(name, ("true", "false"), "false") == "true"
        if brings and self._environ.get("OPENDIFY_API_KEYS", "").strip():
            self._problems.append(
                f"OPENDIFY_API_KEYS and {name} cannot be combined: a request carries one key. "
                "Remove one of them."
            )
        return brings

    def cors_origins(self) -> frozenset[str]:
        try:
            return parse_origins(self._environ.get("CORS_ORIGINS", ""))
        except InvalidValue as exc:
            self._problems.append(f"CORS_ORIGINS {exc}.")
            return frozenset()

    def proxies(self) -> None:
        for name in PROXY_VARIABLES:
            for spelling in (name, name.lower()):
                if value := self._environ.get(spelling, "").strip():
                    self._proxy(spelling, value)

    def _proxy(self, name: str, value: str) -> None:
        try:
            parts = urlsplit(value if "://" in value else f"http://{value}")
            is_valid = parts.scheme in PROXY_SCHEMES and parts.hostname and (parts.port or 1)
        except ValueError:
            is_valid = False
        if not is_valid:
            self._problems.append(
                f"{name} must be the address of a proxy, like http://127.0.0.1:3128 or "
                f"socks5://127.0.0.1:1080 (known are {', '.join(PROXY_SCHEMES)})."
            )
