"""``check`` and ``doctor``: reports about a configuration file and a container."""

from collections.abc import Mapping

from opendify.deploy import checking
from opendify.deploy.env_files import (
    BYTE_ORDER_MARK,
    BadLine,
    parse,
    parse_as_docker,
)
from opendify.deploy.messages import problem
from opendify.deploy.operator import Aborted, Operator
from opendify.deploy.status import Status


class _UnreadableFile(Exception):
    """A file cannot be read or parsed; ``key`` and ``arguments`` select a message."""

    def __init__(self, code: int, key: str, *arguments: object) -> None:
        super().__init__(key)
        self.code, self.key, self.arguments = code, key, arguments


def check_file(operator: Operator, env_file: str, shown_as: str) -> checking.ValidConfig:
    """Reads and checks a configuration file, and prints each problem. Raises Aborted."""
    try:
        values = _values(_text(operator, env_file, shown_as), shown_as)
    except _UnreadableFile as exc:
        raise operator.abort(exc.code, exc.key, *exc.arguments) from None
    for name, value in values.items():
        if "${" in value:
            operator.warn("dollar_brace", name)
    try:
        return checking.check(values, env_file, _reader(operator))
    except checking.InvalidConfig as exc:
        operator.error("problems", shown_as)
        for sentence in describe(operator, exc):
            operator.detail(sentence)
        raise Aborted(65) from None


def examine_file(operator: Operator, env_file: str, shown_as: str) -> None:
    """Reports findings about the file, and whether the service would start with it."""
    try:
        text = _text(operator, env_file, shown_as)
        _report_oddities(operator, text, shown_as)
        values = _values(text, shown_as)
        checked = checking.check(values, env_file, _reader(operator))
    except _UnreadableFile as exc:
        operator.report_finding("bad", "d_env", exc.key, *exc.arguments)
    except checking.InvalidConfig as exc:
        for sentence in describe(operator, exc):
            operator.report_finding("bad", "d_env", "file_problem", shown_as, sentence)
    else:
        operator.report_finding("good", "d_env", "file_good", shown_as)
        operator.set_fact("port", checked.settings.server_port)


def _report_oddities(operator: Operator, text: str, shown_as: str) -> None:
    if text.startswith(BYTE_ORDER_MARK):
        operator.report_finding("warn", "d_bom", "file_bom", shown_as, shown_as)
    if "\r\n" in text:
        operator.report_finding("warn", "d_crlf", "file_crlf", shown_as, shown_as)
    if differing := _read_differently_by_docker(text, _values(text, shown_as)):
        operator.report_finding("good", "d_quotes", "file_docker", shown_as, ", ".join(differing))


def examine_container(operator: Operator, status: Status) -> None:
    """Reports findings about a container that is there, and its service."""
    is_well = (status.state, status.health) == ("running", "healthy")
    level = "good" if is_well else "bad"
    operator.report_finding(
        level, "d_container", "container_state", status.name, status.state, status.health
    )
    for output in status.failed_checks:
        operator.report_finding("warn", "d_probe", "container_check", output)
    if status.restarts:
        operator.report_finding("warn", "d_restarts", "container_restarts", status.restarts)
    if status.state != "running":
        return
    if status.is_unready:
        operator.report_finding("warn", "d_ready", "container_unready", status.ready)
    if status.is_writable:
        operator.report_finding("good", "d_volume", "container_data", status.data)
    elif status.api != "old":
        operator.report_finding("bad", "d_volume_bad", "container_data_bad", status.data)


def describe(operator: Operator, error: checking.InvalidConfig) -> list[str]:
    """One sentence per problem, in the operator's language."""
    found = [problem(operator.language, sentence) for sentence in error.sentences]
    return found + [operator.text(exc.reason, exc.name) for exc in error.unwritable]


def _text(operator: Operator, env_file: str, shown_as: str) -> str:
    try:
        return operator.read_file(env_file).decode()
    except OSError:
        raise _UnreadableFile(77, "cannot_read", shown_as) from None
    except UnicodeError:
        raise _UnreadableFile(65, "not_utf8", shown_as) from None


def _values(text: str, shown_as: str) -> dict[str, str]:
    try:
        return parse(text)
    except BadLine as exc:
        raise _UnreadableFile(65, "bad_line", shown_as, exc.number) from None


def _reader(operator: Operator) -> checking.ReadFile:
    return lambda path: operator.read_file(path).decode("utf-8-sig")


def _read_differently_by_docker(text: str, values: Mapping[str, str]) -> list[str]:
    try:
        docker = parse_as_docker(text)
    except BadLine:
        return list(values)
    return [name for name, value in values.items() if docker.get(name) != value]
