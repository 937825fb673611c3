"""``welcome.py ADDRESS PID``: says how to try OpenDify, once it answers at ADDRESS (host:port).

At debug level Gunicorn prints its whole configuration first, and would bury what is said earlier.
Ends in silence when the process PID, which is to serve there, ends before it answers.
"""

import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> None:
    address, process = sys.argv[1], int(sys.argv[2])
    models = _models(f"http://{address}/v1/models")
    while models is None:
        time.sleep(0.3)
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        models = _models(f"http://{address}/v1/models")
    sys.stderr.write(_welcome(f"http://{address}/v1", models))


def _models(url: str) -> list[str] | None:
    """The models' names; none when a key is asked for; None before there is an answer."""
    try:
        with DIRECT.open(url, timeout=5) as answer:
            return [model["id"] for model in json.load(answer)["data"]]
    except urllib.error.HTTPError:
        return []
    except OSError:
        return None


def _welcome(base: str, models: list[str]) -> str:
    body = {"model": models[0] if models else "YOUR-MODEL", "stream": True}
    asked = json.dumps({**body, "messages": [{"role": "user", "content": "Hello"}]})
    key = "" if models else "-H 'Authorization: Bearer YOUR-KEY' "
    proxied = any(os.environ.get(name) for name in ("http_proxy", "all_proxy", "ALL_PROXY"))
    direct = "--noproxy '*' " if proxied else ""
    kind = "-H 'Content-Type: application/json'"
    known = f"; models: {', '.join(models)}" if models else ""
    line = f"curl -N {direct}{base}/chat/completions {key}{kind} -d {shlex.quote(asked)}"
    return f"\nOpenDify answers at {base}{known}. Try it:\n\n{line}\n\n"


if __name__ == "__main__":
    main()
