"""Look up the id of an MLflow experiment by its name, over MLflow's REST API.

https://mlflow.org/docs/latest/api_reference/rest-api.html#get-experiment-by-name
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import TypeAlias

import attrs
import trio

from .._errors import InvalidLocationError
from .._exporter import Refused, TryLater
from .._http.attempt import Requester
from .._http.exporter import OTLPExporter
from .._http.messages import json_object
from .._http.responses import Response, interpret_response, retry_after
from .._spans.checks import shown
from .shared_fetch import KeyedFetch

BY_NAME_PATH = "api/2.0/mlflow/experiments/get-by-name"

# MLflow's error code for an unknown experiment; a wrong URL gets a 404 without it.
NO_EXPERIMENT = "RESOURCE_DOES_NOT_EXIST"

# MLflow's limit.
MAX_NAME_LENGTH = 500

# MLflow's answer is 300 bytes and the experiment's tags.
MAX_ANSWER_BYTES = 1024 * 1024

# Seconds for which an id is cached. A lookup is one small request; after an experiment was deleted, spans may go into
# it for as long as this.
_LIFE = 300.0

# Ids are SQL integers. Leading zeros would give one experiment two locations.
_ID = re.compile(r"0|[1-9][0-9]{0,18}")
_LARGEST_ID = 2**63 - 1

# Control characters and lone surrogates; the latter cannot be encoded as UTF-8.
_NOT_IN_NAMES = ("Cc", "Cs")

Found: TypeAlias = str | Refused | TryLater


def is_experiment_id(text: str) -> bool:
    """Return whether ``text`` can be the id of an experiment: a whole number below 2**63, without leading zeros."""
    return _ID.fullmatch(text) is not None and int(text) <= _LARGEST_ID


def check_experiment_name(name: str) -> None:
    """Raise `InvalidLocationError` if no experiment can have this name, or if it looks the same as another name."""
    if (
        not 0 < len(name) <= MAX_NAME_LENGTH
        or name != name.strip()
        or any(unicodedata.category(character) in _NOT_IN_NAMES for character in name)
    ):
        raise InvalidLocationError(
            f"location {shown(name)} is not a name of an MLflow experiment: it must have 1 to {MAX_NAME_LENGTH} "
            "characters, no control characters and no leading or trailing spaces"
        )


def experiment_in(response: Response, name: str) -> Found:
    """Return the id in MLflow's response to the lookup of ``name``, or the result for a batch that needs it."""
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
    experiment = json_object(response.body).get("experiment")
    experiment = experiment if isinstance(experiment, dict) else {}
    found = experiment.get("experiment_id")
    if not isinstance(found, str) or not is_experiment_id(found):
        return Refused("the response has no experiment: does the tracking URI lead to MLflow?", response.status)
    if experiment.get("lifecycle_stage") == "deleted":
        # MLflow would still store traces there, but not show them.
        return Refused(
            f"the experiment named {_shown(name)} (id {found}) is deleted: restore it, or correct the location"
        )
    return found


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:60] + "…")


class ExperimentNames(KeyedFetch[Found]):
    """Looks up the id of an experiment by its name; if that fails, the result for a batch that needs the id.

    Only ids are cached, for five minutes, so that an experiment that is created later is found with the next batch.
    They expire because MLflow goes on storing traces in a deleted experiment, where nobody sees them. The transport or
    client of the exporter for traces is used, with its timeout. ``headers`` are sent with each request.
    """

    def __init__(self, root: str, exporter: OTLPExporter, headers: Mapping[bytes, bytes]) -> None:
        super().__init__(self._look_up)
        self._url = f"{root}/{BY_NAME_PATH}"
        self._headers = list(headers.items())
        self._requester = Requester(
            exporter._sender, exporter._tls_advice, timeout=exporter.timeout, max_bytes=MAX_ANSWER_BYTES
        )

    async def _look_up(self, name: str) -> tuple[Found, float]:
        answer = await self._requester.request(
            "GET", self._url, params={"experiment_name": name}, headers=self._headers
        )
        found = experiment_in(answer, name) if isinstance(answer, Response) else answer
        if isinstance(found, str):
            return found, trio.current_time() + _LIFE
        # The reason is not shortened, because the remedy is at its end.
        return attrs.evolve(found, reason=f"looking up the experiment {_shown(name)}: {found.reason}"), -math.inf
