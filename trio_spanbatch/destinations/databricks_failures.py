"""Why databricks-sdk has no credentials, in words of our own.

Its messages may hold credentials: a server's answer that repeats a secret, a line of a configuration file, a header
that cannot be sent. So nothing is repeated of them but words that are known beforehand: the codes of OAuth, the names
of ways to authenticate, the name of a profile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .._http.auth import AuthError

__all__ = ["MISSING_EXTRA", "OAUTH_REFUSALS", "auth_error"]

MISSING_EXTRA = 'databricks-sdk is not installed; get it with: pip install "trio-spanbatch[databricks]"'

_SET_CREDENTIALS = (
    "set DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET, or DATABRICKS_CONFIG_PROFILE"
)

# https://www.rfc-editor.org/rfc/rfc6749#section-5.2, https://www.rfc-editor.org/rfc/rfc6749#section-4.1.2.1,
# https://www.rfc-editor.org/rfc/rfc9396#section-5 and https://www.rfc-editor.org/rfc/rfc8707#section-2
OAUTH_REFUSALS = (
    "access_denied",
    "invalid_authorization_details",
    "invalid_client",
    "invalid_grant",
    "invalid_request",
    "invalid_scope",
    "invalid_target",
    "unauthorized_client",
    "unsupported_grant_type",
)
_OAUTH_REFUSAL = re.compile(rf"(?:^|[ :])({'|'.join(OAUTH_REFUSALS)})\b")
_TWO_WAYS = re.compile(r"more than one authorization method configured: ([a-z -]{1,100})")
_NO_PROFILE = re.compile(r"has no ([\w-]{1,100}) profile configured")

# The SDK uses requests, which does not look at SSL_CERT_FILE.
_ABOUT_CA = "Is its certificate trusted (REQUESTS_CA_BUNDLE names the file with its CA)?"

# What requests and urllib3 raise, by name, since they come with the extra only.
_CONNECTION_FAILURES = frozenset(
    {"ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "TimeoutError", "ProxyError"}
)
_TLS_FAILURES = frozenset({"SSLError"})
# The SDK looks for the address of the token endpoint at the workspace; where it finds none, it asks "None" for a token.
_NO_TOKEN_ENDPOINT = frozenset({"MissingSchema", "InvalidSchema", "InvalidURL"})
# databricks-sdk's own, for answers of the workspace.
_NO_WORKSPACE = frozenset({"NotFound", "EndpointNotFound"})


def auth_error(error: Exception, host: str) -> AuthError:
    """Return why there are no credentials for ``host``, and whether there may be some later.

    Args:
        error: What databricks-sdk raised.
        host: The workspace.
    """
    if isinstance(error, AuthError):
        return error
    causes = list(_causes(error))
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    text = " ".join(str(cause)[:10_000] for cause in causes)
    if isinstance(error, ImportError):
        return AuthError(MISSING_EXTRA, retry=False)
    return (
        _configuration_error(text) or _answer_error(error, text, host) or _network_error(names, host) or _unknown(error)
    )


def _configuration_error(text: str) -> AuthError | None:
    if "cannot configure default credentials" in text:
        return AuthError(f"databricks-sdk found none: {_SET_CREDENTIALS}", retry=False)
    if (ways := _TWO_WAYS.search(text)) is not None:
        return AuthError(
            f"databricks-sdk found more than one way to authenticate ({ways[1].strip()}): unset the variables of the "
            "others, or choose with DATABRICKS_AUTH_TYPE",
            retry=False,
        )
    if (profile := _NO_PROFILE.search(text)) is not None:
        return AuthError(f"the configuration file of databricks-sdk has no profile {profile[1]!r}", retry=False)
    return None


def _answer_error(error: Exception, text: str, host: str) -> AuthError | None:
    if (refusal := _OAUTH_REFUSAL.search(text)) is not None:
        return AuthError(
            f"the token endpoint of {host} answered {refusal[1]}: check DATABRICKS_CLIENT_ID and "
            "DATABRICKS_CLIENT_SECRET",
            retry=False,
        )
    # What `databricks.sdk.oauth.retrieve_token` raises of answers that are not what OAuth says.
    if isinstance(error, KeyError | NotImplementedError) or any(isinstance(word, bytes) for word in error.args):
        return AuthError(f"the answer of the token endpoint of {host} has no token in it, and no code of OAuth's")
    return None


def _network_error(names: set[str], host: str) -> AuthError | None:
    if names & _TLS_FAILURES:
        return AuthError(f"no TLS connection to {host} for a token: does it speak TLS? {_ABOUT_CA}")
    if names & (_NO_TOKEN_ENDPOINT | _NO_WORKSPACE):
        # So it is as well if the connection for the question failed, whatever the reason.
        about_ca = f" {_ABOUT_CA}" if host.startswith("https:") else ""
        return AuthError(
            f"{host} does not say where tokens come from: is it a Databricks workspace, and is it up?{about_ca}"
        )
    if names & _CONNECTION_FAILURES:
        return AuthError(f"cannot connect to {host} for a token: is it a Databricks workspace, and is it up?")
    return None


def _unknown(error: Exception) -> AuthError:
    return AuthError(
        f"{type(error).__name__} in databricks-sdk (what it says is not shown, as it may hold credentials): "
        "Config().authenticate() of databricks.sdk.core shows it"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
