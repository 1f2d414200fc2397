"""LMDeploy as a service of its own: ``api_server`` on each GPU, and a proxy that spreads the load over them.

LMDeploy 0.11.1 opens CORS to everybody and asks for no key unless told otherwise, takes the key on the
command line where every user of the machine can read it, and its proxy neither passes a key on to the
servers behind it nor lets keyed servers register. So: one server alone asks for the key; behind a proxy the
servers listen on a private address without one, and the proxy asks for it. Either of them has routes that ask
for no key even so: :class:`KeyRequired` stands before them all.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import logging
import multiprocessing
import multiprocessing.process
import os
import secrets
import signal
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from huanhuan.chat.lmdeploy_engine import engine_config, import_lmdeploy, turbomind_problem, wanted_backend
from huanhuan.chat.select import has_cuda, is_url
from huanhuan.cli import Terminated
from huanhuan.errors import UserError

logger = logging.getLogger("huanhuan.chat")

SHORTEST_KEY = 16
# What a load balancer asks, and all that is answered without the key.
HEALTH = "/health"
# As LMDeploy names it.
ENGINE_PROCESS = "mp_engine_proc"


def api_key(environ: Mapping[str, str] = os.environ) -> str:
    """The key that clients must show, from ``HUANHUAN_API_KEY``. Raises: UserError if it is missing or short."""
    key = environ.get("HUANHUAN_API_KEY", "").strip()
    if len(key) < SHORTEST_KEY:
        raise UserError(
            f"HUANHUAN_API_KEY: 需要至少 {SHORTEST_KEY} 个字符的密钥 / a key of {SHORTEST_KEY} characters or more is "
            'needed: export HUANHUAN_API_KEY=$(python -c "import secrets; print(secrets.token_urlsafe(24))")'
        )
    return key


def check_private(host: str) -> None:
    """Raises: UserError unless ``host`` is an address that the internet cannot reach."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise UserError(f"--host {host}: 请给 IP 地址 / give an IP address") from None
    if address.is_unspecified or not (address.is_loopback or address.is_private):
        raise UserError(
            f"--host {host}: 代理之后的服务没有密钥，只能监听内网地址 / a server behind the proxy asks for no key: "
            "bind it to a private address, such as 127.0.0.1"
        )


def check_gpu() -> None:
    """Raises: UserError on a machine without a CUDA device, where LMDeploy fails at length in a process of its own."""
    if not has_cuda():
        raise UserError(
            "这台机器没有可用的 CUDA GPU，LMDeploy 起不来 / no CUDA GPU here, which LMDeploy needs: check the driver; "
            "streamlit run app.py works without one"
        )


def node_urls(given: Sequence[str]) -> list[str]:
    """The servers behind the proxy as it names them, each once. Raises: UserError with everything that is no URL.

    >>> node_urls(["http://127.0.0.1:23333/v1/", "http://127.0.0.1:23333"])
    ['http://127.0.0.1:23333']
    """
    wrong = [url for url in given if not is_url(url)]
    if wrong:
        raise UserError(
            [f"{url}: 不是网址 / is no URL: give one such as http://127.0.0.1:23333" for url in wrong],
        )
    return list(dict.fromkeys(url.rstrip("/").removesuffix("/v1") for url in given))


class KeyRequired:
    """Lets nothing but the health probe pass without the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and (scope["path"] == HEALTH or self._shown(scope))):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            error = {"message": "a valid key is required", "type": "invalid_request_error", "code": "invalid_api_key"}
            await JSONResponse({"error": error}, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _shown(self, scope: Scope) -> bool:
        given = Headers(scope=scope).get("authorization", "")
        return secrets.compare_digest(given.encode(), self._expected)


def server_arguments(folder: Path, *, name: str, host: str, port: int, key: str | None) -> dict[str, Any]:
    """Arguments of LMDeploy's ``api_server``: the project's template, CORS closed, metrics on.

    ``key`` None is for a server behind the proxy; its ``host`` must then be private.

    Raises: UserError for a public address without a key, and for wrong settings in the environment.
    """
    if key is None:
        check_private(host)
    import_lmdeploy()
    from huanhuan.chat.lmdeploy_template import chat_template_config

    backend = wanted_backend()
    if backend == "turbomind" and (problem := turbomind_problem(folder)):
        logger.warning("%s: the PyTorch engine answers instead", problem)
        backend = "pytorch"
    config = engine_config(backend, folder)
    config.enable_metrics = True
    return {
        "model_path": str(folder),
        "model_name": name,
        "backend": backend,
        "backend_config": config,
        "chat_template_config": chat_template_config(),
        "server_name": host,
        "server_port": port,
        # An empty list leaves LMDeploy's CORS middleware out.
        "allow_origins": [],
        "api_keys": None if key is None else [key],
        "disable_fastapi_docs": True,
        "log_level": "WARNING",
    }


def serve(folder: Path, *, name: str, host: str, port: int, key: str | None) -> None:
    """Run one server until it is told to end.

    Raises: as :func:`server_arguments` does; UserError if it does not start or its engine dies.
    """
    arguments = server_arguments(folder, name=name, host=host, port=port, key=key)
    from lmdeploy.serve.openai import api_server

    if key is not None:
        # The application is made inside and some of its routes ask for no key.
        made = api_server.FastAPI
        api_server.FastAPI = functools.partial(made, middleware=[Middleware(KeyRequired, key=key)])  # pyright: ignore
    ended, died = threading.Event(), threading.Event()
    threading.Thread(target=_end_with_the_engine, args=(ended, died), name="engine-watch", daemon=True).start()
    try:
        api_server.serve(**arguments)
    except SystemExit as error:
        # LMDeploy's check of the machine and uvicorn's of the port both end the process.
        if not died.is_set() and (isinstance(error, Terminated) or not error.code):
            raise
        raise UserError(
            f"{folder}: 服务没有起来或引擎中断，原因在上面，请检查 GPU、驱动与端口 {port} / the server did not start or "
            f"its engine died, the reason is above: check the GPU, its driver and port {port}"
        ) from error
    finally:
        ended.set()


def _end_with_the_engine(ended: threading.Event, died: threading.Event, every: float = 0.5) -> None:
    """Until ``ended``: if the process of LMDeploy's PyTorch engine fails, set ``died`` and end this one.

    LMDeploy starts it, then waits for ever for one that never came up, and says that it is well over a dead one.
    """
    engine: multiprocessing.process.BaseProcess | None = None
    while not ended.wait(every):
        if engine is None:
            engine = next((each for each in multiprocessing.active_children() if each.name == ENGINE_PROCESS), None)
        # The codes left out are those of an engine that was told to end, with the server.
        elif engine.exitcode not in (None, 0, -signal.SIGTERM, -signal.SIGINT):
            logger.error("the engine's process ended with code %s", engine.exitcode)
            died.set()
            os.kill(os.getpid(), signal.SIGTERM)
            return


def serve_proxy(nodes: Sequence[str], *, host: str, port: int, key: str) -> None:
    """Run a proxy over the servers ``nodes`` (URLs without ``/v1``) until it is told to end.

    Each node is added as soon as it answers and added again when it comes back; one that does not answer is
    taken out, since LMDeploy's proxy does not look for itself. ``/health`` is 200 while there is a node.
    """
    import_lmdeploy()
    from lmdeploy.serve.proxy import proxy as lmdeploy_proxy

    def health() -> JSONResponse:
        count = len(lmdeploy_proxy.node_manager.nodes)
        return JSONResponse({"nodes": count}, 200 if count else 503)

    lmdeploy_proxy.app.add_api_route(HEALTH, health)
    # In place of its CORS middleware, which allows every origin and has no setting.
    lmdeploy_proxy.app.user_middleware = [Middleware(KeyRequired, key=key)]
    threading.Thread(target=_keep_nodes, args=(nodes, f"http://127.0.0.1:{port}", key), daemon=True).start()
    lmdeploy_proxy.proxy(
        server_name=host, server_port=port, api_keys=[key], disable_cache_status=True, log_level="WARNING"
    )


def _keep_nodes(nodes: Sequence[str], proxy: str, key: str, every: float = 5.0) -> None:
    known: set[str] = set()
    while True:
        for node in nodes:
            alive = _answers(node)
            if alive != (node in known) and _tell(proxy, "add" if alive else "remove", node, key):
                known.symmetric_difference_update({node})
                logger.warning("%s: %s", node, "added" if alive else "taken out")
        time.sleep(every if known else 1.0)


def _answers(node: str) -> bool:
    try:
        with urllib.request.urlopen(f"{node}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _tell(proxy: str, what: str, node: str, key: str) -> bool:
    body = {"url": node}
    url = f"{proxy}/nodes/{what}"
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return "success" in answer.read().decode().lower()
    except OSError:
        return False
