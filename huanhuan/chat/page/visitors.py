"""Who is who: the cookie that a reload keeps, and how much comes from one address."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import secrets
from collections.abc import Mapping

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from huanhuan.chat.desk import Refused
from huanhuan.chat.engine import whole_setting
from huanhuan.chat.hourly import Hourly

logger = logging.getLogger("huanhuan.chat")

COOKIE = "huanhuan_visitor"
_VALUE = re.compile(r"[0-9a-f]{32}")


class VisitorCookie:
    """Gives every browser a random number of its own, forgotten when the browser is closed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the cookie to the first page that a browser gets."""
        if scope["type"] != "http" or _VALUE.fullmatch(Request(scope).cookies.get(COOKIE, "")):
            await self._app(scope, receive, send)
            return

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", f"{COOKIE}={secrets.token_hex(16)}; Path=/; HttpOnly; {_site(scope)}")
            await send(message)

        await self._app(scope, receive, send_with_cookie)


def _site(scope: Scope) -> str:
    """Studios show the page inside one of their own, which only a partitioned cookie over TLS survives."""
    secure = scope.get("scheme") == "https" or Request(scope).headers.get("x-forwarded-proto") == "https"
    return "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"


def visitor_cookie() -> str:
    """The number of this visitor's browser; empty if it takes no cookies."""
    # Under AppTest, what stands in for the connection answers with anything but text.
    value = st.context.cookies.get(COOKIE)
    return value if isinstance(value, str) and _VALUE.fullmatch(value) else ""


def address() -> str:
    """The network address that the visitor comes from, as far as it is known; otherwise empty.

    Behind a proxy that nobody told the server to trust, everybody seems to come from the proxy: that is no
    address of a visitor. (uvicorn reads ``FORWARDED_ALLOW_IPS``.)
    """
    seen = st.context.ip_address
    try:
        found = ipaddress.ip_address(str(seen or ""))
    except ValueError:
        return ""
    if found.is_private and st.context.headers.get("X-Forwarded-For"):
        _warn_of_proxy(str(found))
        return ""
    # One household or phone has a whole /64 of IPv6.
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


_warned: set[str] = set()


def _warn_of_proxy(proxy: str) -> None:
    if not _warned:
        _warned.add(proxy)
        logger.warning("HUANHUAN_HOURLY_ADDRESS: no visitor is counted behind %s; see FORWARDED_ALLOW_IPS", proxy)


class AddressCap:
    """At most ``hourly`` messages an hour from one address; 0 counts nothing."""

    def __init__(self, hourly: int = 0) -> None:
        self.hourly = hourly
        self._said = Hourly()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> AddressCap:
        """``HUANHUAN_HOURLY_ADDRESS``, off unless it is set. Raises: UserError if it is no number over 0."""
        return cls(whole_setting("HUANHUAN_HOURLY_ADDRESS", 0, environ))

    def check(self, where: str) -> None:
        """Raises: Refused if too much was said from ``where`` in the last hour."""
        if not self.hourly or not where:
            return
        if minutes := self._said.minutes_left(where, self.hourly):
            raise Refused(
                f"从您的网络来的话这一小时太多了，请 {minutes} 分钟后再来",
                f"too much was said from your network in this hour: come back in {minutes} minutes",
            )

    def count(self, where: str) -> None:
        """Something was said from ``where``."""
        if self.hourly and where:
            self._said.count(where)
