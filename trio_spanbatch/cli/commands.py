"""The commands and their options. Each command is implemented in its own module."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import attrs
import click
import trio

from .._exporter import SpanExporter
from .._settings.environment import batch_options, queue_options
from .._settings.header_checks import check_header_name
from .._settings.policies import MIB, BatchPolicy, Limits, RetryPolicy
from .._version import __version__
from .destinations import (
    DESTINATIONS,
    NO_SERVER_ADVICE,
    Destination,
    attempt_timeout,
    in_words_of_options,
    make_exporter,
    server_of,
)
from .screen import BAD, GOOD, LogLines, OutputError, Screen, check_output, output_errors

if TYPE_CHECKING:
    from .send import SendResult, SendSettings
    from .spool import SpoolFiles

_Command = TypeVar("_Command", bound=Callable[..., Any])

_LOGGER = logging.getLogger("trio_spanbatch")

# Larger than a program's defaults, as every span in a file must fit.
_PENDING_BYTES = 128 * MIB
_PENDING_BYTES_PER_LOCATION = 64 * MIB


class _Seconds(click.FloatRange):
    """A number above 0, including ``inf``."""

    name = "number of seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a valid {self.name}.", param, ctx)
        return seconds


_SECONDS = _Seconds(min=0, min_open=True)


def _file_for_store(_context: click.Context, _option: click.Parameter, value: str | None) -> Path | None:
    if value is None:
        return None
    if not value:
        raise click.BadParameter("it is empty; give the name of a file, as in spans.db")
    if value.startswith(":memory:"):
        # SQLite's name for a database without a file.
        raise click.BadParameter(f"{value} is not a file; name one, as in spans.db, or leave out --store")
    return Path(value)


def _store_option(text: str) -> Callable[[_Command], _Command]:
    path = click.Path(dir_okay=False)
    return click.option("--store", type=path, callback=_file_for_store, metavar="FILE.db", help=text)


def _text_option(name: str, metavar: str, text: str) -> Callable[[_Command], _Command]:
    return click.option(name, metavar=metavar, callback=_not_empty, help=text)


def _not_empty(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise click.BadParameter("it is empty")
    return value


class _OneLineErrors(click.Group):
    """A group that prints errors in one line, without click's usage lines."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with output_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        # Here, because click exits silently if a pipe is closed.
        with output_errors():
            return super().invoke(ctx)

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            check_output()
            exit_code = super().main(*args, **{**options, "standalone_mode": False})
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            if isinstance(error, click.exceptions.NoArgsIsHelpError):
                error.show()
            else:
                self._print(error.format_message(), context)
            exit_code = error.exit_code
        except OutputError as error:
            self._print(str(error), None)
            exit_code = 1
        except click.Abort:
            exit_code = 128 + signal.SIGINT
        sys.exit(exit_code)

    @staticmethod
    def _print(message: str, context: click.Context | None) -> None:
        path = context.command_path if context is not None else "trio-spanbatch"
        hint = f"; see {path} --help" if context is not None else ""
        with suppress(OSError):
            click.echo(f"{path}: {' '.join(message.split()).rstrip('.')}{hint}", err=True)


@click.group("trio-spanbatch", cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Send trace spans in batches over OTLP/HTTP, and receive them for development."""


_DESTINATION_OPTIONS = (
    click.option(
        "--to", type=click.Choice(DESTINATIONS), default="otlp", show_default=True, help="The kind of server."
    ),
    _text_option(
        "--endpoint",
        "URL",
        "The URL to send to; no path is added. [default: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or "
        "OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318/v1/traces] For mlflow: the tracking URI, by default "
        "MLFLOW_TRACKING_URI. For unity-catalog: the workspace, by default DATABRICKS_HOST. For zerobus: its endpoint, "
        "by default that of the workspace in DATABRICKS_HOST.",
    ),
)
_REQUEST_OPTIONS = (
    _text_option("--location-header", "HEADER", "The header that carries the location, e.g. X-Scope-OrgID."),
    click.option(
        "--header", "headers", metavar="K=V", multiple=True, help="A header for all requests. May be repeated."
    ),
    click.option(
        "--compression",
        type=click.Choice(["gzip", "none"]),
        help="The compression of requests. [default: gzip for mlflow, else none]",
    ),
    click.option(
        "--max-spans", type=click.IntRange(min=1), metavar="N", help="The most spans in a batch. [default: 512]"
    ),
    click.option(
        "--max-bytes", type=click.IntRange(min=1), metavar="N", help="The most bytes in a request. [default: 4 MiB]"
    ),
    click.option(
        "--max-delay", type=_SECONDS, metavar="S", help="Seconds that a batch waits for more spans. [default: 5]"
    ),
    click.option(
        "--timeout",
        type=_SECONDS,
        metavar="S",
        help="Seconds that an attempt may take. [default: 10; mlflow: 60; unity-catalog, zerobus: 20]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON document."),
)


def _with(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options, the first one on top."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@cli.command("send", short_help="Send the spans in files of OTLP JSON or protobuf.")
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True, dir_okay=False)
)
@_with(*_DESTINATION_OPTIONS)
@_text_option(
    "--location",
    "NAME",
    "The location of all spans. For mlflow: an experiment, by id or name, by default MLFLOW_EXPERIMENT_ID. For "
    "unity-catalog and zerobus: a table. [default: default]",
)
@_text_option(
    "--location-attribute", "KEY", "Take each span's location from this attribute of the span, or else of its resource."
)
@_with(*_REQUEST_OPTIONS)
def send_command(files: Sequence[str], as_json: bool, **options: Any) -> None:
    """Send the spans in FILEs: OTLP as JSON lines, JSON documents or protobuf, plain or gzip; - is standard input.

    The exit code is 1 if a span was invalid, rejected or not delivered.
    """
    from .send import LocationOf, send

    location, attribute = options["location"], options["location_attribute"]
    from_lines = options["to"] == "otlp" and location is None and attribute is None
    location_of = LocationOf(location or "default", attribute, from_lines)
    with _screen() as screen:
        settings, exporter = _settings_and_exporter(options, files=files, location_of=location_of)
        if attribute is not None and _sends_no_locations(options):
            screen.warn("locations are not sent to the server; name a header for them with --location-header")
        result = trio.run(send, settings, exporter, screen)
    _end_sending(result, screen, as_json, exit_code=result.exit_code)


def _sends_no_locations(options: dict[str, Any]) -> bool:
    return options["to"] == "otlp" and options["location_header"] is None


def _settings_and_exporter(options: dict[str, Any], **settings: Any) -> tuple[SendSettings, SpanExporter]:
    """Return how to send, and what sends."""
    from .send import MAX_ELAPSED, SendSettings

    of_batches = {name: options[name] for name in ("max_spans", "max_bytes", "max_delay")}
    others = {name: value for name, value in options.items() if name not in of_batches}
    destination = Destination(**{**others, "headers": _parsed_headers(options["headers"])})
    try:
        exporter = make_exporter(destination)
        given = {name: value for name, value in of_batches.items() if value is not None}
        batch = BatchPolicy(**{**batch_options(os.environ), **given})
        sending = SendSettings(
            batch=batch,
            limits=_limits(batch),
            retry=RetryPolicy(max_elapsed=MAX_ELAPSED, attempt_timeout=attempt_timeout(destination)),
            server=server_of(exporter),
            no_server=NO_SERVER_ADVICE[destination.to],
            words=in_words_of_options,
            **settings,
        )
    except (TypeError, ValueError) as error:
        raise click.UsageError(in_words_of_options(str(error))) from error
    except ModuleNotFoundError as error:
        raise click.ClickException(str(error)) from error
    return sending, exporter


def _end_sending(
    result: SendResult, screen: Screen, as_json: bool, advice: Sequence[str] = (), *, exit_code: int
) -> NoReturn:
    """Print the outcome, and exit."""
    if as_json:
        screen.document(result.tally.document(result.statistics))
    else:
        result.tally.show(screen, result.statistics)
    for line in (*result.explanations(), *advice):
        screen.warn(line)
    sys.exit(exit_code)


@cli.command("receive")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4318,
    show_default=True,
    metavar="N",
    help="The port to listen on; 0 selects a free one.",
)
@_store_option("Store spans in this SQLite file, one row per span. Without it, they are only counted.")
@_text_option("--location-header", "HEADER", "The header that carries the location of a request.")
def receive_command(host: str, port: int, store: Path | None, location_header: str | None) -> None:
    """Receive spans over OTLP/HTTP, for development. Stop it with Ctrl-C."""
    from .receive import receive

    if location_header is not None:
        try:
            check_header_name(location_header, "--location-header")
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    with _screen() as screen:
        try:
            trio.run(receive, host, port, store, location_header, screen)
        except sqlite3.Error as error:
            raise click.ClickException(f"cannot store in {store}: {error}; name another file with --store") from error
        except OSError as error:
            # Another port does not help if the host is not an address of this machine.
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                advice = "name an address of this machine with --host: 127.0.0.1, or 0.0.0.0 for all"
            else:
                advice = "name another port with --port; 0 selects a free one"
            reason = f"cannot listen on {host}:{port}: {error.strerror or error}"
            raise click.ClickException(f"{reason}; {advice}") from error


@cli.command("demo", short_help="Show that no span is lost when a server fails or a program is killed.")
@_store_option("The file to store spans in; it must not exist. [default: a new temporary file]")
def demo_command(store: Path | None) -> None:
    """Show that no span is lost, in two acts.

    An agent program is cancelled half-way, while its server fails for a time. Another one, with a spool, is killed
    half-way and started again.
    """
    from .demo import demo
    from .kill import kill_and_restart

    if store is not None and store.exists():
        raise click.ClickException(f"{store} already exists; name a new file with --store")
    if store is None:
        try:
            store = Path(tempfile.mkdtemp(prefix="trio-spanbatch-")) / "demo.db"
        except OSError as error:
            reason = f"cannot create a temporary directory: {error.strerror}"
            raise click.ClickException(f"{reason}; name a file with --store") from error
    with _screen() as screen:
        try:
            screen.say("act 1: a program is cancelled half-way")
            result = trio.run(demo, store, screen)
            screen.say(f"spans are stored in {store}")
            screen.say(result.verdict, GOOD if result.holds else BAD)
            if result.exit_code:
                sys.exit(result.exit_code)
            screen.say("")
            screen.say("act 2: a program with a spool is killed half-way, and started again")
            killed = trio.run(kill_and_restart, store, screen)
            screen.say(killed.verdict, GOOD if killed.holds else BAD)
        except sqlite3.Error as error:
            raise click.ClickException(f"cannot store in {store}: {error}; name another file with --store") from error
    sys.exit(killed.exit_code)


@cli.group("spool", short_help="List, send, export, check or delete what a spool holds.")
def spool_group() -> None:
    """Look after the spans that batchers have left in a spool.

    DIR is the directory that the program gives to Spool. Files of a batcher that is open are left alone.
    """


def _spool_directory(_context: click.Context, _argument: click.Parameter, value: str) -> Path:
    if not value:
        raise click.BadParameter("it is empty; give the directory that the program gives to Spool")
    return Path(value)


_directory = click.argument("directory", metavar="DIR", type=click.Path(), callback=_spool_directory)


@contextmanager
def _spool_files(directory: Path) -> Iterator[tuple[SpoolFiles, Screen]]:
    """Open a spool, and exit with 1 afterwards if there was a problem."""
    from .._spool.files import cannot_use
    from .._spool.store import SpoolError
    from .spool import SpoolFiles

    try:
        with _screen() as screen:
            files = SpoolFiles(directory, screen)
            yield files, screen
    except SpoolError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(str(cannot_use(directory, error))) from error
    if files.problems:
        sys.exit(1)


@spool_group.command("list", short_help="List the locations, and what there is of each.")
@_directory
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def spool_list_command(directory: Path, as_json: bool) -> None:
    """List the locations in DIR, with their spans, bytes, oldest age and dead letters."""
    from .spool import summary_of

    with _spool_files(directory) as (files, screen):
        summary = summary_of(files)
        if as_json:
            screen.document(summary.document(files.in_use))
        else:
            summary.show(screen)


@spool_group.command("send", short_help="Send the spans to their locations.")
@_directory
@_with(*_DESTINATION_OPTIONS)
@_with(*_REQUEST_OPTIONS)
def spool_send_command(directory: Path, as_json: bool, **options: Any) -> None:
    """Send the spans in DIR, each to its location. What a server has accepted is removed from DIR, and only that.

    Rejected spans become dead letters. The exit code is 1 if a span was rejected or not delivered.
    """
    from .spool import send_spool, summary_of

    with _spool_files(directory) as (files, screen):
        summary = summary_of(files)
        if not summary.total.spans:
            screen.warn(f"{directory}: contains no spans to send")
            return
        locations = [name for name, counts in summary.locations.items() if counts.spans]
        if len(locations) > 1 and _sends_no_locations(options):
            # They may be tenants, and what was sent would be removed here.
            raise click.UsageError(
                f"{directory} has spans of {len(locations):,} locations, which the server could not tell apart; name a "
                "header for them with --location-header"
            )
        settings, exporter = _settings_and_exporter({**options, "location": locations[0], "location_attribute": None})
        result = trio.run(send_spool, files, summary, settings, exporter, screen)
        advice = []
        if result.statistics.undelivered or not result.read_whole:
            advice.append(f"what was not delivered stays in {directory}")
        if result.statistics.rejected:
            advice.append(f"rejected spans are dead letters now: trio-spanbatch spool export {directory} --dead")
        _end_sending(result, screen, as_json, advice, exit_code=result.exit_code or int(files.problems > 0))


@spool_group.command("export", short_help="Print the spans as OTLP JSON lines.")
@_directory
@click.option("--dead", is_flag=True, help="Export the dead letters instead of the spans.")
@_text_option("--location", "NAME", "Export this location only. The lines do not contain the location.")
def spool_export_command(directory: Path, dead: bool, location: str | None) -> None:
    """Print the spans in DIR as OTLP JSON lines, which the command send reads. They stay in DIR."""
    from .spool import export

    with _spool_files(directory) as (files, screen):
        for document in export(files, dead=dead, location=location):
            screen.document(document)


@spool_group.command("check", short_help="Read everything and compare the checksums.")
@_directory
def spool_check_command(directory: Path) -> None:
    """Read everything in DIR and compare the checksums. The exit code is 1 if something is damaged."""
    from .spool import check

    with _spool_files(directory) as (files, screen):
        check(files, screen)


@spool_group.command("delete", short_help="Delete what there is of a location.")
@_directory
@click.option("--location", metavar="NAME", required=True, help="The location to delete.")
def spool_delete_command(directory: Path, location: str) -> None:
    """Delete the spans and dead letters of a location in DIR.

    The exit code is 1 if some may be left, in files that are in use or damaged.
    """
    from .spool import delete

    with _spool_files(directory) as (files, screen):
        delete(files, location, screen)
        files.problems += files.in_use


def _parsed_headers(headers: Sequence[str]) -> dict[str, str]:
    """Return the headers by name. Error messages never show a header, as it may be a credential."""
    parsed = {}
    for number, header in enumerate(headers, 1):
        name, equals, value = header.partition("=")
        if not name or not equals:
            raise click.UsageError(f"--header number {number} is not of the form NAME=VALUE (it is not shown)")
        parsed[name.strip()] = value.strip()
    return parsed


def _limits(batch: BatchPolicy) -> Limits:
    """Return limits that hold several batches of each location."""
    limits = Limits(**queue_options(os.environ))
    return attrs.evolve(
        limits,
        max_queued_spans=max(limits.max_queued_spans, 2 * batch.max_spans),
        max_pending_bytes=max(_PENDING_BYTES, 4 * batch.max_bytes),
        max_pending_bytes_per_location=max(_PENDING_BYTES_PER_LOCATION, 2 * batch.max_bytes),
    )


@contextmanager
def _screen() -> Iterator[Screen]:
    """Yield a screen. Inside the body, it shows the library's log messages, one line each."""
    screen = Screen()
    handler = LogLines(screen)
    _LOGGER.addHandler(handler)
    # Its warnings are repeated in the reasons of losses. Without a handler, Python would print them.
    logging.getLogger("databricks").addHandler(logging.NullHandler())
    try:
        yield screen
    finally:
        _LOGGER.removeHandler(handler)
