"""Reasons why databricks-sdk has no credentials.

Its messages may contain credentials: a server's response that echoes a secret, a line of a configuration file, a header
that cannot be sent. So only known words from them are repeated: OAuth error codes, names of methods of authentication,
the name of a profile.
"""

from __future__ import annotations

import re

from .._http.auth import AuthError
from .._http.failures import causes_of

MISSING_EXTRA = 'databricks-sdk is not installed; get it with: pip install "trio-spanbatch[databricks]"'

SET_CREDENTIALS = (
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
_SEVERAL_METHODS = re.compile(r"more than one authorization method configured: ([a-z -]{1,100})")
_NO_PROFILE = re.compile(r"has no ([\w-]{1,100}) profile configured")

# The SDK uses requests, which ignores SSL_CERT_FILE.
_ABOUT_CA = "Is its certificate trusted (REQUESTS_CA_BUNDLE names the file with its CA)?"

# Exceptions of requests and urllib3, by name, since these packages come with the extra only.
_CONNECTION_FAILURES = frozenset(
    {"ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "TimeoutError", "ProxyError"}
)

# The SDK asks the workspace for the URL of the token endpoint. Its own exceptions (the first two) mean that it did not
# answer with one. If the answer has none, the SDK requests a token from "None".
_NO_TOKEN_ENDPOINT = frozenset({"NotFound", "EndpointNotFound", "MissingSchema", "InvalidSchema", "InvalidURL"})


def auth_error(error: Exception, host: str, remedy: str = SET_CREDENTIALS) -> AuthError:
    """Return the `AuthError` for an exception of databricks-sdk, with a ``remedy`` if it found none."""
    if isinstance(error, AuthError):
        return error
    if isinstance(error, ImportError):
        return AuthError(MISSING_EXTRA, retry=False)
    causes = list(causes_of(error))
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    text = " ".join(str(cause)[:10_000] for cause in causes)
    if "cannot configure default credentials" in text:
        return AuthError(f"databricks-sdk found none: {remedy}", retry=False)
    if (methods := _SEVERAL_METHODS.search(text)) is not None:
        return AuthError(
            f"databricks-sdk found more than one method of authentication ({methods[1].strip()}): unset the variables "
            "of the others, or choose one with DATABRICKS_AUTH_TYPE",
            retry=False,
        )
    if (profile := _NO_PROFILE.search(text)) is not None:
        return AuthError(f"the configuration file of databricks-sdk has no profile {profile[1]!r}", retry=False)
    if (refusal := _OAUTH_REFUSAL.search(text)) is not None:
        return AuthError(
            f"the token endpoint of {host} answered {refusal[1]}: check DATABRICKS_CLIENT_ID and "
            "DATABRICKS_CLIENT_SECRET",
            retry=False,
        )
    # `databricks.sdk.oauth.retrieve_token` raises these for responses that do not follow OAuth.
    if isinstance(error, KeyError | NotImplementedError) or any(isinstance(word, bytes) for word in error.args):
        return AuthError(f"the answer of the token endpoint of {host} contains neither a token nor an OAuth error code")
    if "SSLError" in names:
        return AuthError(f"no TLS connection to {host} for a token: does it support TLS? {_ABOUT_CA}")
    if names & _NO_TOKEN_ENDPOINT:
        # These are also raised if the connection to the workspace failed, for any reason.
        about_ca = f" {_ABOUT_CA}" if host.startswith("https:") else ""
        return AuthError(
            f"{host} does not name its token endpoint: is it a Databricks workspace, and is it up?{about_ca}"
        )
    if names & _CONNECTION_FAILURES:
        return AuthError(f"cannot connect to {host} for a token: is it a Databricks workspace, and is it up?")
    return AuthError(
        f"{type(error).__name__} in databricks-sdk (its message is not shown, as it may contain credentials): "
        "Config().authenticate() of databricks.sdk.core shows it"
    )
