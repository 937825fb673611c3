import pytest

from opendify.config.proxies import proxies_for

HTTP = "http://dify.example:5001/v1"
HTTPS = "https://dify.example/v1"
PROXY = "http://proxy.example:3128"
OTHER = "http://other.example:3128"

CHOICES = [
    pytest.param(HTTP, {}, None, id="none"),
    pytest.param(HTTP, {"HTTP_PROXY": PROXY}, PROXY, id="http"),
    pytest.param(HTTPS, {"HTTPS_PROXY": PROXY}, PROXY, id="https"),
    pytest.param(HTTPS, {"HTTP_PROXY": PROXY}, None, id="not by the other scheme's"),
    pytest.param(HTTP, {"HTTPS_PROXY": PROXY}, None, id="nor the other way round"),
    pytest.param(HTTP, {"ALL_PROXY": PROXY}, PROXY, id="all, http"),
    pytest.param(HTTPS, {"ALL_PROXY": PROXY}, PROXY, id="all, https"),
    pytest.param(HTTP, {"ALL_PROXY": OTHER, "HTTP_PROXY": PROXY}, PROXY, id="the exact one wins"),
    pytest.param(HTTP, {"http_proxy": PROXY}, PROXY, id="in lower case"),
    pytest.param(HTTP, {"http_proxy": PROXY, "HTTP_PROXY": OTHER}, PROXY, id="lower case wins"),
    pytest.param(HTTP, {"HTTP_PROXY": "proxy.example:3128"}, PROXY, id="without a scheme"),
    pytest.param(HTTP, {"HTTP_PROXY": f" {PROXY} "}, PROXY, id="with blanks"),
    pytest.param(HTTP, {"HTTP_PROXY": " "}, None, id="empty"),
    pytest.param(
        HTTP, {"ALL_PROXY": "socks5h://127.0.0.1:1080"}, "socks5h://127.0.0.1:1080", id="SOCKS"
    ),
]


@pytest.mark.parametrize(("base", "environ", "proxy"), CHOICES)
def test_an_address_has_the_proxy_that_its_scheme_says(
    base: str, environ: dict[str, str], proxy: str | None
) -> None:
    origin = base.removesuffix("/v1")
    assert proxies_for([base], environ) == ({origin: proxy} if proxy else {})


EXCEPTIONS = [
    pytest.param("", True, id="empty"),
    pytest.param(",", True, id="only commas"),
    pytest.param("dify.example", False, id="the host"),
    pytest.param("DIFY.Example", False, id="the host in another case"),
    pytest.param("dify.example:5001", False, id="host and port"),
    pytest.param("dify.example:80", True, id="another port"),
    pytest.param("example", False, id="its domain"),
    pytest.param(".example", False, id="its domain with a dot"),
    pytest.param("*.example", False, id="its domain with a star"),
    pytest.param("fy.example", True, id="only the end of its name"),
    pytest.param("dify", True, id="only the start of its name"),
    pytest.param("*", False, id="all"),
    pytest.param("localhost, dify.example", False, id="the second of a list"),
    pytest.param("localhost,,*", False, id="all, in a list"),
]


@pytest.mark.parametrize(("exceptions", "proxied"), EXCEPTIONS)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_some_hosts_need_no_proxy(name: str, exceptions: str, proxied: bool) -> None:
    found = proxies_for([HTTP], {"HTTP_PROXY": PROXY, name: exceptions})
    assert bool(found) is proxied


@pytest.mark.parametrize(
    ("base", "exception"),
    [
        pytest.param("http://Dify.Example:5001/v1", "dify.example:5001", id="capitals in the base"),
        pytest.param("http://[::1]:5001/v1", "::1", id="IPv6"),
        pytest.param("http://[::1]:5001/v1", "[::1]", id="IPv6 in brackets"),
        pytest.param("http://[::1]:5001/v1", "[::1]:5001", id="IPv6 and port"),
        pytest.param("http://10.1.2.3:5001/v1", "10.1.2.3", id="IPv4"),
        pytest.param("http://10.1.2.3:5001/v1", "10.0.0.0/8", id="a network"),
    ],
)
def test_a_host_is_known_in_every_spelling(base: str, exception: str) -> None:
    assert proxies_for([base], {"ALL_PROXY": PROXY, "NO_PROXY": exception}) == {}


def test_each_address_has_its_own() -> None:
    environ = {"HTTP_PROXY": PROXY, "HTTPS_PROXY": OTHER, "NO_PROXY": "127.0.0.1"}
    bases = {HTTP, HTTPS, "http://127.0.0.1/v1", "http://[::1]:8080/v1"}
    assert proxies_for(bases, environ) == {
        "http://dify.example:5001": PROXY,
        "https://dify.example": OTHER,
        "http://[::1]:8080": PROXY,
    }
