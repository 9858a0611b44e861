"""The guards of the budget room: for each, a test fails when the guard is taken out of a copy of the source."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# ruff: noqa: E501 - the table has one guard per line

BOOK = "tests/contracts/budgets/test_budgets_lease_book.py"
RULE = "tests/properties/budgets/test_budgets_decide_invariants.py"
UNIT = "tests/unit/budgets/test_budgets_rules.py"
LEDGER = "tests/unit/ledger/test_ledger_schema.py"

GUARDS = {
    # sentence: (file, guard, without it, tests that must fail)
    "a reservation asks every scope for money": (
        "budgets/leases.py", "            *find_shortages(loaded, amount=cost),\n", "", f"{BOOK}::test_the_cap_is_never_exceeded_and_the_refusal_names_every_short_scope[memory]"),
    "a renewal asks every scope for money": (
        "budgets/leases.py", "*find_shortages(settled, amount=cost))", ")", f"{BOOK}::test_a_cap_lowered_below_what_is_spent_stops_renewals_but_not_settlement[memory]"),
    "every later operation carries the fencing token": (
        "budgets/lease_rules.py", "if row.fencing_token != fencing_token:", "if False:", f"{BOOK}::test_a_former_holder_can_do_nothing[memory]"),
    "a key that was used for something else is refused": (
        "budgets/leases.py", "return earlier.to_lease() if earlier.digest == digest else refuse_reused(request.key)", "return earlier.to_lease()", f"{BOOK}::test_a_key_that_stands_for_another_request_is_refused[memory]"),
    "a lease that ended is not charged again": (
        "budgets/leases.py", "if not row.is_live:", "if False:", f"{BOOK}::test_a_vanished_holder_is_charged_to_the_expiry_once[memory]"),
    "a lease that expired is not renewed": (
        "budgets/lease_rules.py", "if now_us >= row.expires_us:", "if False:", f"{BOOK}::test_a_lease_cannot_be_renewed_after_its_expiry[memory]"),
    "an unknown end is charged to the expiry": (
        "budgets/leases.py", "row.expires_us if ended_us is None else", "row.started_us if ended_us is None else", f"{BOOK}::test_an_unknown_or_late_end_is_charged_to_the_expiry[memory-None]"),
    "a threshold warns once per period": (
        "budgets/accounts.py", "if threshold.basis_points in known:", "if False:", f"{BOOK}::test_each_threshold_warns_once_per_period_and_delivery_is_retried[memory]"),
    "an old checkout does not bring an old cap back": (
        "budgets/configuration.py", "if seen is not None:", "if False:", f"{BOOK}::test_an_old_checkout_does_not_bring_an_old_cap_back[memory]"),
    "siblings keep what they do not lend": (
        "budgets/quota.py", "if delta > 0 and pool + delta > limit:", "if False:", f"{UNIT}::test_borrowing_stops_at_the_limit_and_at_what_siblings_keep"),
    "a group that has just started is left alone": (
        "budgets/preemption.py", "if now_us - victim.started_us < max(settings.minimum_run_us, 1):", "if False:", f"{RULE}::test_a_tenant_within_nominal_takes_back_what_it_lent_and_no_more"),
    "only a higher class makes a group leave": (
        "budgets/preemption.py", "return entry.priority > victim.priority", "return True", f"{RULE}::test_every_step_keeps_the_invariants_and_every_group_ends"),
    "backfill does not delay the head": (
        "budgets/reservation.py", "if ends_us <= reservation.starts_us:", "if True:", f"{RULE}::test_backfill_never_delays_the_head"),
    "units of groups that leave are kept for whom they leave": (
        "budgets/board.py", "min(self.ends_us, self.leaves_by_us) if self.status == \"leaving\" else self.ends_us", "self.ends_us", "tests/unit/training/test_training_sweep_queue.py::test_a_sweep_makes_room_for_a_higher_class_and_goes_on_after_it"),
    "a waiting group whose driver is gone leaves the queue": (
        "budgets/admission.py", "groups.c.asked_us < since_us", "groups.c.asked_us < 0", "tests/contracts/budgets/test_budgets_admission.py::test_a_group_whose_driver_stopped_asking_leaves_the_queue_and_holds_up_nobody"),
    "what can never fit is refused": (
        "budgets/reasons.py", "if not is_fitting:", "if False:", f"{UNIT}::test_what_can_never_fit_is_refused_naming_the_limit"),
    "a start is paid": (
        "budgets/board.py", "if left is not None and left < cost:", "if False:", f"{UNIT}::test_a_group_waits_for_money_and_for_policy_with_the_reason"),
    "time in the ledger never goes back": (
        "ledger/connection.py", "now_us=max(self._clock.now_us(), head.at_us)", "now_us=self._clock.now_us()", f"{LEDGER}::test_times_never_go_back"),
    "a read cannot write": (
        "ledger/connection.py", "'ON' if is_reader else 'OFF'", "'OFF'", f"{LEDGER}::test_reading_cannot_write"),
}  # fmt: skip


@pytest.mark.parametrize("sentence", GUARDS)
def test_the_guard_stands_in_the_source_once(sentence):
    file, guard, _, _ = GUARDS[sentence]
    assert (ROOT / "mlops" / file).read_text().count(guard) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("sentence", GUARDS)
def test_without_the_guard_a_test_fails(sentence, tmp_path):
    file, guard, without, test = GUARDS[sentence]
    shutil.copytree(ROOT / "mlops", tmp_path / "mlops", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "mlops" / file
    path.write_text(path.read_text().replace(guard, without))
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(ROOT), str(ROOT / test)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MLOPS_TEST_SCALE": "3"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"nothing noticed that this is gone: {sentence}\n{done.stdout[-2000:]}"
