"""From the name of an MLflow experiment to its id, asked over MLflow's REST API.

https://mlflow.org/docs/latest/api_reference/rest-api.html#get-experiment-by-name
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import TypeAlias

import attrs
import httpx
import trio

from .._errors import InvalidLocationError
from .._exporter import Refused, TryLater
from .._http.client import TLSAdvice
from .._http.messages import is_bounded_json
from .._http.questions import ask
from .._http.responses import Response, interpret_response, retry_after
from .shared_fetch import KeyedFetch

__all__ = ["ExperimentNames", "Found", "check_experiment_name", "experiment_in", "is_experiment_id"]

BY_NAME_PATH = "api/2.0/mlflow/experiments/get-by-name"

# What MLflow says when there is no such experiment, in an answer that is a 404 as any wrong URL gets one.
NO_EXPERIMENT = "RESOURCE_DOES_NOT_EXIST"

# MLflow's own limit.
MAX_NAME_LENGTH = 500

# MLflow's answer is 300 bytes and the experiment's tags.
MAX_ANSWER_BYTES = 1024 * 1024

# Seconds for which an id is used without asking again. It is one small request besides those with spans, and so long
# may spans go into an experiment that was deleted.
_LIFE = 300.0

# Ids are SQL integers. Zeros in front would make two locations of one experiment.
_ID = re.compile(r"0|[1-9][0-9]{0,18}")
_LARGEST_ID = 2**63 - 1

# Control characters, and halves of surrogate pairs, which UTF-8 cannot say.
_NOT_IN_NAMES = ("Cc", "Cs")

Found: TypeAlias = str | Refused | TryLater


def is_experiment_id(text: str) -> bool:
    """Return whether ``text`` can be the id of an experiment: a whole number below 2**63, without zeros in front."""
    return _ID.fullmatch(text) is not None and int(text) <= _LARGEST_ID


def check_experiment_name(name: str) -> None:
    """Raise `InvalidLocationError` if no experiment can have this name, or nobody could tell it from another."""
    if (
        not 0 < len(name) <= MAX_NAME_LENGTH
        or name != name.strip()
        or any(unicodedata.category(character) in _NOT_IN_NAMES for character in name)
    ):
        shown = repr(name if len(name) <= 100 else name[:100] + "…")
        raise InvalidLocationError(
            f"location {shown} is no name of an MLflow experiment: it must have 1 to {MAX_NAME_LENGTH} characters, no "
            "control characters and no outer spaces"
        )


def experiment_in(response: Response, name: str) -> Found:
    """Return the id that MLflow's answer tells, or why there is none.

    Args:
        response: The answer, to a question for one experiment.
        name: The experiment's name.
    """
    if response.status == 429 or response.status >= 500:
        after = retry_after(response.headers, now=response.now)
        return TryLater(response.reason, after=after, status_code=response.status)
    if response.status == 404 and NO_EXPERIMENT in response.message:
        return Refused(
            f"MLflow has no experiment named {_shown(name)}: create it, or correct the location", response.status
        )
    verdict = interpret_response(
        response.status, response.headers, response.body, now=response.now, secrets=response.secrets
    )
    if isinstance(verdict, Refused):
        return attrs.evolve(verdict, isolate=False)
    return _experiment_in_document(_parsed(response.body), name, response.status)


def _experiment_in_document(document: object, name: str, status: int) -> Found:
    experiment = document.get("experiment") if isinstance(document, dict) else None
    found = experiment.get("experiment_id") if isinstance(experiment, dict) else None
    if not isinstance(experiment, dict) or not isinstance(found, str) or not is_experiment_id(found):
        return Refused("the answer names no experiment: does the tracking URI lead to MLflow?", status)
    if experiment.get("lifecycle_stage") == "deleted":
        # MLflow stores traces there all the same, where nobody sees them.
        return Refused(
            f"the experiment named {_shown(name)} (id {found}) is deleted: restore it, or correct the location"
        )
    return found


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:60] + "…")


def _parsed(body: bytes | None) -> object:
    if body is None or not is_bounded_json(body):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


class ExperimentNames:
    """The ids of experiments by their names, each looked up once in five minutes.

    Only experiments that exist are remembered, so that one that is created later is found with the next batch. They
    are not remembered for ever, as MLflow goes on storing traces in one that is deleted, where nobody sees them.

    Args:
        root: The tracking URI, without a slash at its end.
        client: Sends the requests. It is not closed here.
        headers: The headers of each request, credentials included.
        timeout: Seconds that a request may take.
        tls_advice: What to do about a failure of TLS.
    """

    def __init__(
        self,
        root: str,
        client: httpx.AsyncClient,
        headers: Mapping[bytes, bytes],
        timeout: float,
        tls_advice: TLSAdvice,
    ) -> None:
        self._url = f"{root}/{BY_NAME_PATH}"
        self._client = client
        self._headers = dict(headers)
        self._timeout = timeout
        self._tls_advice = tls_advice
        self._ids = KeyedFetch(self._look_up)

    async def id_of(self, name: str) -> Found:
        """Return the id of the experiment named ``name``, or why it is not known."""
        return await self._ids.get(name)

    def forget(self, name: str) -> None:
        """Look the name up again the next time: the server does not know its id any more."""
        self._ids.forget(name)

    async def _look_up(self, name: str) -> tuple[Found, float]:
        request = self._client.build_request(
            "GET", self._url, params={"experiment_name": name}, headers=list(self._headers.items()), timeout=None
        )
        answer = await ask(
            self._client, request, seconds=self._timeout, max_bytes=MAX_ANSWER_BYTES, advice=self._tls_advice
        )
        found = experiment_in(answer, name) if isinstance(answer, Response) else answer
        if isinstance(found, str):
            return found, trio.current_time() + _LIFE
        # Not shortened as a whole: what to do stands at the end.
        return attrs.evolve(found, reason=f"looking up the experiment {_shown(name)}: {found.reason}"), -math.inf
