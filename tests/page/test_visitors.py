"""The visitor's cookie and the count of an address."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from huanhuan.chat.desk import Refused
from huanhuan.chat.hourly import HOUR
from huanhuan.chat.page import visitors
from huanhuan.chat.page.visitors import COOKIE, AddressCap, VisitorCookie, address, visitor_cookie
from huanhuan.errors import UserError


@pytest.fixture
def client() -> TestClient:
    async def page(_: Any) -> HTMLResponse:
        return HTMLResponse("<html></html>")

    async def data(_: Any) -> JSONResponse:
        return JSONResponse({})

    routes = [Route("/", page), Route("/data", data)]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(VisitorCookie)]))


def test_a_browser_gets_one_number_and_keeps_it(client: TestClient) -> None:
    assert "set-cookie" not in client.get("/data").headers
    first = client.get("/").headers["set-cookie"]
    assert first.startswith(f"{COOKIE}=") and "HttpOnly" in first and "SameSite=Lax" in first
    assert "Max-Age" not in first and "Expires" not in first, "it is gone with the browser"
    assert "set-cookie" not in client.get("/").headers
    client.cookies.clear()
    assert client.get("/").headers["set-cookie"].split(";")[0] != first.split(";")[0]


def test_what_is_no_number_of_ours_is_replaced(client: TestClient) -> None:
    client.cookies.set(COOKIE, "../../x")
    assert "set-cookie" in client.get("/").headers


def test_over_tls_the_cookie_works_inside_another_page(client: TestClient) -> None:
    shown = client.get("/", headers={"x-forwarded-proto": "https"}).headers["set-cookie"]
    assert "SameSite=None; Secure; Partitioned" in shown


def context(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    values = {"cookies": {}, "headers": {}, "ip_address": None, **values}
    monkeypatch.setattr(visitors.st, "context", SimpleNamespace(**values))


def test_the_cookie_is_read_if_it_is_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    context(monkeypatch, cookies={COOKIE: "0123456789abcdef" * 2})
    assert visitor_cookie() == "0123456789abcdef" * 2
    context(monkeypatch, cookies={COOKIE: "x"})
    assert visitor_cookie() == ""


@pytest.mark.parametrize(
    ("seen", "headers", "expected"),
    [
        ("93.184.216.34", {}, "93.184.216.34"),
        # A header that a visitor made up changes nothing.
        ("93.184.216.34", {"X-Forwarded-For": "10.0.0.1"}, "93.184.216.34"),
        ("192.168.1.7", {}, "192.168.1.7"),
        ("10.0.0.2", {"X-Forwarded-For": "93.184.216.34"}, ""),
        ("2001:db8:1:2:3:4:5:6", {}, "2001:db8:1:2::/64"),
        (None, {}, ""),
        ("testclient", {}, ""),
    ],
)
def test_the_address_is_that_of_a_visitor_or_none(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, headers: dict[str, str], expected: str
) -> None:
    context(monkeypatch, ip_address=seen, headers=headers)
    assert address() == expected


def test_an_unknown_proxy_is_named_in_the_log_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(visitors, "_warned", set())
    context(monkeypatch, ip_address="10.0.0.2", headers={"X-Forwarded-For": "93.184.216.34"})
    address()
    address()
    assert caplog.text.count("FORWARDED_ALLOW_IPS") == 1


def test_an_address_says_so_much_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    cap = AddressCap(2)
    for _ in range(2):
        cap.check("a")
        cap.count("a")
    with pytest.raises(Refused, match=r"6[01] minutes"):
        cap.check("a")
    cap.check("b")
    cap.check("")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + HOUR + 1)
    cap.check("a")
    cap.count("b")
    assert set(cap._said) == {"b"}, "addresses are forgotten after the hour"


def test_nothing_is_counted_unless_it_is_set() -> None:
    cap = AddressCap.from_environment({})
    for _ in range(1000):
        cap.check("a")
        cap.count("a")
    assert AddressCap.from_environment({"HUANHUAN_HOURLY_ADDRESS": "5"}).hourly == 5
    with pytest.raises(UserError, match="HUANHUAN_HOURLY_ADDRESS"):
        AddressCap.from_environment({"HUANHUAN_HOURLY_ADDRESS": "many"})
