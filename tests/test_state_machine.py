"""Lanes, budgets and the ledger, driven by a state machine against an independent model."""

from __future__ import annotations

from state_machine import run_state_machine


def test_whatever_programs_servers_and_the_clock_do_the_batcher_does_what_the_model_says() -> None:
    run_state_machine(examples=200)
