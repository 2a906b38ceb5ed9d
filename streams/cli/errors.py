"""How the command line tells errors: one clear message and exit code 1; with -v the traceback too.

Exit code 2, wrong usage, is for what the command line alone shows, and for local files that it names.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from millstream.errors import ConfigError, MillstreamError
from millstream.secrets import scrub

VERBOSE = "millstream.verbose"
"""Key in click's `Context.meta`."""


class ShownError(click.ClickException, MillstreamError):
    """An error that click shows as it is."""


def shown(exc: MillstreamError) -> ShownError:
    """The error for click, without secrets."""
    notes = "".join(f"\n{note}" for note in getattr(exc, "__notes__", ()))
    return ShownError(scrub(f"{exc}{notes}"))


@contextmanager
def usage() -> Iterator[None]:
    """A ConfigError within is the fault of the command line: exit code 2."""
    try:
        yield
    except ConfigError as exc:
        raise click.UsageError(scrub(str(exc))) from exc


def _invoke(ctx: click.Context, call: Any) -> Any:
    try:
        return call(ctx)
    except ShownError:
        raise
    except MillstreamError as exc:
        if ctx.meta.get(VERBOSE):
            sys.stderr.write(scrub("".join(traceback.format_exception(exc))))
        raise shown(exc) from exc


class Command(click.Command):
    """A command whose own errors are told plainly."""

    def invoke(self, ctx: click.Context) -> Any:
        """See above."""
        return _invoke(ctx, super().invoke)


class Group(click.Group):
    """A group of them."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Help of a command further down is there without the options that this one requires."""
        below = self.commands.get(args[0]) if args else None
        if below is not None and not {*ctx.help_option_names}.isdisjoint(args):
            below.make_context(args[0], args[1:], parent=ctx)  # shows it, and ends
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """See above."""
        return _invoke(ctx, super().invoke)


Group.group_class = Group
