"""The proxy for an endpoint, from ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``.

httpx turns every entry of ``NO_PROXY`` into a URL pattern. It fails on a range of IPv6 addresses, and a range of IPv4
addresses matches nothing. An exporter has a single endpoint, so its proxy is chosen here, when its client is made.
"""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.request import getproxies

import attrs
import httpx

from .._settings.environment import warn_once

_SCHEMES = ("http", "https", "all")
_SOCKS = re.compile(r"socks(4a?|5h?)?://", re.IGNORECASE)
_NAME = re.compile(r"[0-9a-z._-]+")
_BRACKETED = re.compile(r"\[([^\[\]]+)\](/[0-9]+)?(?::([0-9]+))?")
DEFAULT_PORTS = {"http": 80, "https": 443}

# The prefix length of ::ffff:0:0, under which IPv6 maps the addresses of IPv4.
_MAPPED_PREFIX = 96

# How many unusable entries of NO_PROXY a warning shows, and how many characters of each.
_MAX_SHOWN = 3
_LONGEST_SHOWN = 40

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class MissingProxySupport:
    """A valid proxy that cannot be used: nothing may be sent, since the proxy must not be bypassed."""

    problem: str  # the problem and its remedy, without the value of the variable


@attrs.frozen
class _Endpoint:
    scheme: str
    host: str
    port: int
    # Empty if the host is a name. Two if it is an IPv4 address in its IPv6 form.
    addresses: tuple[_Address, ...]


def proxy_for(url: httpx.URL) -> httpx.Proxy | MissingProxySupport | None:
    """Return the proxy that the environment sets for ``url``; None if there is none."""
    settings = getproxies()
    if _is_excluded(url, settings.get("no", "")):
        return None
    given = {scheme: value for scheme in _SCHEMES if (value := settings.get(scheme, "").strip())}
    # All are parsed, so that a mistake is found with any endpoint.
    proxies = {scheme: _parsed(value, scheme) for scheme, value in given.items()}
    proxy = proxies.get(url.scheme, proxies.get("all"))
    if isinstance(proxy, MissingProxySupport):
        warn_once(f"no span can be sent to {url.host}: {proxy.problem}")
    return proxy


def _parsed(value: str, scheme: str) -> httpx.Proxy | MissingProxySupport:
    socks = _SOCKS.match(value)
    if socks is not None and (socks[1] or "")[:1] != "5":
        return MissingProxySupport(
            f"{_variables(scheme)} has a SOCKS proxy of a version other than socks5:// (not shown)"
        )
    # Raised within ``except``, an exception would have httpx's as its context, which shows a part of the URL.
    try:
        return httpx.Proxy(value if "://" in value else f"http://{value}")
    except (httpx.InvalidURL, ValueError):
        # User name and password end at a ``/``, ``?`` or ``#``.
        pass
    raise ValueError(
        f"a proxy variable ({_variables(scheme)}; not shown) cannot be used: a proxy is http://, https:// or socks5:// "
        "with a host and a port; in its user name and password, other characters than letters and digits are "
        "percent-encoded"
    )


def _variables(scheme: str) -> str:
    given = sorted(name for name, value in os.environ.items() if value and name.lower() == f"{scheme}_proxy")
    return ", ".join(given) or f"{scheme.upper()}_PROXY"


def _is_excluded(url: httpx.URL, no_proxy: str) -> bool:
    host = url.raw_host.decode("ascii").lower().rstrip(".")
    endpoint = _Endpoint(url.scheme, host, url.port or DEFAULT_PORTS[url.scheme], _addresses(host))
    excluded, unusable = False, []
    for entry in re.split(r"[,\s]+", no_proxy):
        try:
            excluded = (bool(entry) and _matches(entry, endpoint)) or excluded
        except ValueError:
            unusable.append(entry)
    if unusable:
        _warn_of(unusable)
    return excluded


def _warn_of(unusable: list[str]) -> None:
    # An entry may be a URL with a password, put there by mistake.
    public = [entry[:_LONGEST_SHOWN] for entry in unusable if "@" not in entry]
    shown = ", ".join(map(repr, public[:_MAX_SHOWN])) or "not shown"
    variable = "no_proxy" if "no_proxy" in os.environ else "NO_PROXY"
    entries = "an entry that is" if len(unusable) == 1 else f"{len(unusable)} entries that are"
    warn_once(
        f"{variable} has {entries} neither a host, an address nor a range of addresses such as 10.0.0.0/8 ({shown}): "
        f"{'it is' if len(unusable) == 1 else 'they are'} ignored"
    )


def _addresses(host: str) -> tuple[_Address, ...]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ()
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (address,) if mapped is None else (address, mapped)


def _matches(entry: str, endpoint: _Endpoint) -> bool:
    """Return whether an entry of ``NO_PROXY`` matches ``endpoint``. Raise `ValueError` if it can match nothing."""
    if entry == "*":
        return True
    scheme, separator, rest = entry.rpartition("://")
    if separator and scheme.lower() not in _SCHEMES:
        raise ValueError(entry)
    target, port = _split(rest)
    matches = scheme.lower() in ("", "all", endpoint.scheme) and port in (None, endpoint.port)
    if isinstance(target, str):
        # A name never matches an address, nor a part of one.
        is_named = endpoint.host == target or endpoint.host.endswith(f".{target}")
        return matches and is_named and not endpoint.addresses
    return matches and any(address in target for address in endpoint.addresses)


def _split(text: str) -> tuple[_Network | str, int | None]:
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed is not None:
        network = _network(f"{bracketed[1]}{bracketed[2] or ''}")
        if network is None:
            raise ValueError(text)
        return network, _port(bracketed[3]) if bracketed[3] else None
    if (found := _network(text)) is not None:
        return found, None
    before, colon, after = text.rpartition(":")
    host, port = (before, _port(after)) if colon else (text, None)
    return _network(host) or _name(host), port


def _network(text: str) -> _Network | None:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    # IPv4 addresses in their IPv6 form become IPv4: the endpoint has its IPv4 form too.
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is None or network.prefixlen < _MAPPED_PREFIX:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_PREFIX))


def _name(text: str) -> str:
    # ``.example.com`` and ``*.example.com`` mean ``example.com``, as for curl and requests.
    text = text[1:].removeprefix(".") if text.startswith("*.") else text.removeprefix(".")
    try:
        name = httpx.URL(f"http://{text}").raw_host.decode("ascii").lower().rstrip(".")
    except httpx.InvalidURL as error:
        raise ValueError(text) from error
    if not _NAME.fullmatch(name) or (name != text.lower().rstrip(".") and text.isascii()):
        raise ValueError(text)
    return name


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 2**16:
        raise ValueError(text)
    return int(text)
