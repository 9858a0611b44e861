"""Environments, roles, consumers: every problem of a file is named at once."""

import pytest
from deploy_fakes import CONTRACT, utc_day

from mlops.clock import DAY_US, SystemClock
from mlops.deploy.approval import Approval, read_approval, sign_approval
from mlops.deploy.consumer import ConsumerSpec, find_contract_problems
from mlops.deploy.environment import EnvironmentSpec, load_environment
from mlops.deploy.roles import RolesSpec
from mlops.errors import ProjectError
from mlops.places import Places, find_root
from mlops.provenance.keys import make_key
from mlops.specs import parse_spec

GOOD = """
version: 1
name: production
approvals: {needed: 2}
traffic: {ports: {income: 8711}, steps: [10, 100]}
"""
ENVIRONMENTS = {
    "a word instead of a number": (("needed: 2", "needed: two"), "approvals.needed"),
    "a negative number of people": (("needed: 2", "needed: -1"), "approvals.needed"),
    "an unknown field": (("name: production", "name: production\nnmae: x"), "nmae"),
    "steps that do not end with all": (("[10, 100]", "[10, 50]"), "steps"),
    "steps that fall": (("[10, 100]", "[50, 10, 100]"), "steps"),
    "a port below 1024": (("8711", "80"), "traffic.ports.income"),
    "two products on one port": (("{income: 8711}", "{income: 8711, digits: 8711}"), "two products"),
    "no product at all": (("{income: 8711}", "{}"), "traffic.ports"),
    "a gate that may be skipped": (("version: 1", "version: 1\ngate: skip"), "gate"),
    "a chain that may be broken": (("version: 1", "version: 1\nchain: ignored"), "chain"),
    "itself as the one before": (("version: 1", "version: 1\nafter: production"), "after"),
    "a size without a unit": (("version: 1", "version: 1\nresources: {memory: 512}"), "resources.memory"),
    "a runtime that does not exist": (("version: 1", "version: 1\nruntimes: [docker]"), "runtimes"),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_a_wrong_environment_is_refused_with_its_field(case):
    (old, new), field = ENVIRONMENTS[case]
    assert old in GOOD
    with pytest.raises(ProjectError) as caught:
        parse_spec(GOOD.replace(old, new, 1), EnvironmentSpec, source="production.yaml")
    assert field in " ".join(caught.value.items)


def test_all_problems_of_an_environment_come_at_once():
    text = GOOD.replace("needed: 2", "needed: x").replace("8711", "80").replace("version: 1", "version: 2")
    with pytest.raises(ProjectError) as caught:
        parse_spec(text, EnvironmentSpec, source="production.yaml")
    assert len(caught.value.items) == 3


def test_the_files_of_this_project_are_valid():
    places = Places(find_root(__import__("pathlib").Path(__file__)))
    assert load_environment(places, "production").approvals.needed == 2
    assert load_environment(places, "staging").approvals.needed == 0


def test_an_unknown_environment_names_the_known_ones(tmp_path):
    with pytest.raises(ProjectError, match="unknown environment 'qa'"):
        load_environment(Places(tmp_path), "qa")


def key(tmp_path, name):
    return make_key(tmp_path, name, clock=SystemClock())


def test_a_key_has_one_owner(tmp_path):
    public = key(tmp_path, "x").public
    with pytest.raises(ValueError, match="a key has one owner"):
        RolesSpec.model_validate({"version": 1, "people": {"ada": {"keys": [public]}, "bob": {"keys": [public]}}})
    with pytest.raises(ValueError, match="a key has one owner"):
        RolesSpec.model_validate(
            {"version": 1, "people": {"ada": {"keys": [public]}}, "machines": {"ci": {"keys": [public]}}}
        )


def test_an_author_is_recognised_by_address_whatever_the_case():
    roles = RolesSpec.model_validate({"version": 1, "people": {"ada": {"emails": ["Ada@Example.org"]}}})
    assert roles.person_of_author("ada@example.ORG") == "ada"
    assert roles.person_of_author("eve@example.org") == "eve@example.org"


APPROVAL = Approval("approval-1", "promotion", "income", "production", 3, "sha256:" + "a" * 64, "g", 5, "fine")


def read(tmp_path, entry, *, role="approver", roles=("approver",), signer="ada", change=lambda text: text):
    signing = key(tmp_path, signer)
    people = {"ada": {"keys": [entry(key(tmp_path, "ada").public)], "roles": list(roles)}}
    spec = RolesSpec.model_validate({"version": 1, "people": people})
    text = change(sign_approval(APPROVAL, key=signing))
    return read_approval(text, roles=spec, role=role, now_us=SystemClock().now_us())


def test_a_good_approval_names_its_person(tmp_path):
    signed = read(tmp_path, lambda public: public)
    assert (signed.person, signed.problem, signed.approval) == ("ada", None, APPROVAL)


FLAWS = {
    "an unknown key": ({"signer": "eve"}, "approval-key-unknown"),
    "an expired key": ({"entry": lambda public: {"public": public, "until": utc_day(-1)}}, "approval-key-expired"),
    "a key that ends today": (
        {"entry": lambda public: {"public": public, "until": utc_day(0)}},
        "approval-key-expired",
    ),
    "a person without the role": ({"roles": ("reader",)}, "approval-role-missing"),
    "another payload under the signature": (
        {"change": lambda text: text.replace('"payload":"', '"payload":"e30', 1)},
        "approval-damaged",
    ),
    "no envelope at all": ({"change": lambda text: "{}"}, "approval-damaged"),
}


@pytest.mark.parametrize("case", FLAWS)
def test_a_flawed_approval_is_named_and_counts_for_nobody(case, tmp_path):
    arguments, code = FLAWS[case]
    signed = read(tmp_path, **{"entry": lambda public: public, **arguments})
    assert signed.problem is not None
    assert signed.problem[0] == code


def test_any_flipped_byte_of_an_approval_is_refused(tmp_path):
    signing = key(tmp_path, "ada")
    spec = RolesSpec.model_validate(
        {"version": 1, "people": {"ada": {"keys": [signing.public], "roles": ["approver"]}}}
    )
    blob = sign_approval(APPROVAL, key=signing).encode()
    for position in range(len(blob)):
        changed = bytearray(blob)
        changed[position] ^= 1
        text = changed.decode("latin-1")
        assert read_approval(text, roles=spec, role="approver", now_us=DAY_US).problem is not None, position


CONSUMER = {
    "version": 1, "service": "desk", "release": "1", "product": "income", "environments": ["production"],
    "inputs": [{"name": "age", "dtype": "float32", "minimum": 18, "maximum": 90},
               {"name": "sex", "dtype": "string", "values": ["Male"]}],
    "outputs": [{"name": "probabilities"}], "classes": ["<=50K", ">50K"],
}  # fmt: skip
CONTRACTS = {
    "kept": ({}, []),
    "an input more is needed": ({"inputs": CONSUMER["inputs"][:1]}, ["does not send sex"]),
    "an input is not taken": (
        {"inputs": [*CONSUMER["inputs"], {"name": "race", "dtype": "string"}]},
        ["sends race, which the model does not take"],
    ),
    "a category is unknown": (
        {"inputs": [CONSUMER["inputs"][0], {"name": "sex", "dtype": "string", "values": ["Male", "X"]}]},
        ["sends sex = X"],
    ),
    "a number beyond the range": (
        {"inputs": [{"name": "age", "dtype": "float32", "minimum": 10, "maximum": 95}, CONSUMER["inputs"][1]]},
        ["age down to 10", "age up to 95"],
    ),
    "another type": (
        {"inputs": [{"name": "age", "dtype": "int64"}, CONSUMER["inputs"][1]]}, ["sends age as int64"]
    ),
    "names where numbers are taken": (
        {"inputs": [{"name": "age", "dtype": "string"}, CONSUMER["inputs"][1]]}, ["sends age as names"]
    ),
    "an output that is gone": ({"outputs": [{"name": "score"}]}, ["reads score"]),
    "an output of another type": ({"outputs": [{"name": "probabilities", "dtype": "int64"}]}, ["as int64"]),
    "classes in another order": ({"classes": [">50K", "<=50K"]}, ["reads classes"]),
    "classes it does not care about": ({"classes": []}, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRACTS)
def test_a_consumers_contract(case):
    changes, expected = CONTRACTS[case]
    found = find_contract_problems(ConsumerSpec.model_validate({**CONSUMER, **changes}), CONTRACT)
    assert len(found) == len(expected), found
    for part in expected:
        assert any(part in problem for problem in found), (part, found)
