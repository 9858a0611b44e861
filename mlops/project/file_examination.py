"""Examines a project file by file: each through the loader of its own room, all problems at once.

Leaves to others: what is right in a file (the rooms), the machine around the project (machine_examination.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mlops.budgets.spec import load_budgets
from mlops.budgets.tree import BudgetTree
from mlops.datasets.locations import load_locations
from mlops.datasets.pins import load_pins
from mlops.datasets.recipe import Recipe, list_recipes, load_recipe
from mlops.deploy.consumer import ConsumerSpec
from mlops.deploy.desired_state import parse_desired
from mlops.deploy.environment import list_environments, load_environment
from mlops.deploy.erasure_rules import load_rules, rules_file
from mlops.deploy.roles import load_roles
from mlops.errors import MlopsError, ProjectError
from mlops.evaluation.incident_spec import IncidentCase
from mlops.evaluation.policy import load_policy
from mlops.places import Places, require_no_namesake
from mlops.project.diagnosis import Diagnosis
from mlops.provenance.git_repository import open_repository
from mlops.serving.deploy_spec import load_deploy_spec
from mlops.specs import load_spec
from mlops.training.spec import SweepSpec, load_sweep_spec, verify_parameters
from mlops.training.trainer import read_trainer

_ASSET_FOLDERS = ("training", "datasets", "evaluation", "budgets", "deploy")
_SERVED_AS = {
    "onnx": "an exported model needs no torch: leave `runtime: torch` out, or write `export: torch` there",
    "torch": "write `runtime: torch` under `image:` (the image grows by 130 MB), or leave `export: torch` out",
}
_LOCK_LINE = re.compile(r"[A-Za-z0-9._-]+==[^\s;#]+")


def examine_files(places: Places) -> tuple[Diagnosis, ...]:
    """Every file that the machine reads, and those that nothing reads."""
    seen: set[str] = set()
    found = []
    for diagnosis in _examine_all(places):
        seen.add(diagnosis.subject)
        found.append(diagnosis)
    return (*found, *_find_strangers(places, seen))


def require_product_files(places: Places, product: str) -> None:
    """What a release of a product reads is sound; found before the first step, since a sweep costs money.

    Raises:
        ProjectError: It is not; `items` has every problem of every file.
    """
    require_no_namesake(places.root)
    broken = [each for each in (*_examine_product(places, product), *_examine_cases(places)) if each.status == "broken"]
    items = tuple(item for each in broken for item in each.items)
    if items:
        text = f"the files of {product} have {_count(items)}; nothing was started"
        raise ProjectError(text, items=items, hint="fix them and run `mlops doctor`")


def _examine_all(places: Places) -> Iterator[Diagnosis]:
    yield from _examine_repository(places)
    yield from _examine_namesake(places)
    yield _examine("datasets.dvc", lambda: load_pins(places.datasets_dvc), places)
    yield _examine(".dvc/config", lambda: load_locations(places), places)
    for name in list_recipes(places):
        yield _examine_recipe(places, name)
    yield from _examine_budgets(places)
    for product in places.products():
        yield from _examine_product(places, product)
    yield from _examine_cases(places)
    if not places.products():
        hint = "add training/<product>.yaml and .py; `mlops init` shows how they look"
        yield Diagnosis("training", "broken", "holds no product", hint=hint)
    yield from _examine_deploy(places)
    yield _examine_lock(places)


def _examine_product(places: Places, product: str) -> Iterator[Diagnosis]:
    sweep = f"training/{product}.yaml"
    yield _examine(sweep, lambda: require_sweep_file(places, product), places)
    yield _examine(f"training/{product}.py", lambda: _check_trainer(places, product), places)
    yield _examine(f"evaluation/{product}.yaml", lambda: _check_policy(places, product), places)
    yield _examine(f"deploy/{product}.yaml", lambda: _check_image(places, product), places)


def _examine_cases(places: Places) -> Iterator[Diagnosis]:
    for path in sorted((places.root / "evaluation" / "incidents").glob("*.yaml")):
        subject = path.relative_to(places.root).as_posix()
        yield _examine(subject, lambda path=path: load_spec(path, IncidentCase), places)  # type: ignore[misc]


def require_sweep_file(places: Places, product: str) -> None:
    """The sweep spec of a product is sound, and names a dataset and a budget that exist.

    Raises:
        ProjectError: It is not; `items` has every problem.
    """
    spec = load_sweep_spec(places.sweep_file(product))
    problems = []
    if spec.dataset not in list_recipes(places):
        known = ", ".join(list_recipes(places)) or "none"
        problems.append(f"dataset: unknown dataset {spec.dataset!r}; datasets/*.yaml has {known}")
    problems += _check_budget(places, spec.budget)
    _raise_all(problems, places.sweep_file(product))


def _check_trainer(places: Places, product: str) -> None:
    read_trainer(places.trainer_file(product))
    try:
        spec: SweepSpec | None = load_sweep_spec(places.sweep_file(product))
    except MlopsError:
        spec = None  # said with the sweep
    if spec is not None:
        verify_parameters(spec, trainer_file=places.trainer_file(product))


def _check_image(places: Places, product: str) -> None:
    runtime = load_deploy_spec(places, product).image.runtime
    try:
        export = load_sweep_spec(places.sweep_file(product)).export
    except MlopsError:
        return  # said with the sweep
    if runtime != export:
        what = f"is {runtime}, but training/{product}.yaml says `export: {export}`; {_SERVED_AS[export]}"
        _raise_all([f"image.runtime: {what}"], places.deploy_file(product))


def _check_policy(places: Places, product: str) -> None:
    path = places.policy_file(product)
    policy = load_policy(path)
    problems = []
    if policy.product != product:
        problems.append(f"product: is {policy.product!r}, the file is named for {product!r}")
    if not policy.checks:
        problems.append("checks: there is none; a policy without checks passes nothing")
    recipe = _find_recipe(places, product)
    if recipe is not None:
        schema = recipe.to_schema("dataset")
        classes = next((column.categories or () for column in schema.columns if "label" in column.roles), ())
        if policy.favourable_class not in classes:
            problems.append(f"favourable_class: {policy.favourable_class!r} is none of {', '.join(classes)}")
        columns = {column.name for column in schema.columns}
        changed = {change.column for change in policy.changes}
        problems += [f"changes: unknown column {name!r}" for name in sorted(changed - columns)]
        tied = {name for constraint in policy.constraints for name in constraint.columns}
        problems += [f"constraints: unknown column {name!r}" for name in sorted(tied - columns)]
        for index, rule in enumerate(policy.checks):
            named = {*getattr(rule, "by", ()), *getattr(rule, "within", ())}
            named |= {change.column for change in getattr(rule, "changes", ())}
            named |= {*getattr(rule, "proxies", ()), *getattr(rule, "swaps", ()), *getattr(rule, "given", ())}
            problems += [f"checks.{index}: {rule.name}: unknown column {name!r}" for name in sorted(named - columns)]
    _raise_all(problems, path)


def _find_recipe(places: Places, product: str) -> Recipe | None:
    try:
        return load_recipe(places, load_sweep_spec(places.sweep_file(product)).dataset)
    except MlopsError:
        return None  # said with the sweep or the recipe


def _examine_recipe(places: Places, name: str) -> Diagnosis:
    subject = f"datasets/{name}.yaml"
    found = _examine(subject, lambda: load_recipe(places, name), places)
    if found.status != "fine":
        return found
    try:
        is_pinned = name in load_pins(places.datasets_dvc)
    except MlopsError:
        return found  # said with datasets.dvc
    if is_pinned:
        return found
    return Diagnosis(subject, "broken", "datasets.dvc pins no version of it", hint=f"run `mlops dataset import {name}`")


def _examine_budgets(places: Places) -> Iterator[Diagnosis]:
    trees: list[BudgetTree] = []
    whole = _examine("budgets", lambda: trees.append(load_budgets(places.budgets_folder)), places)
    if whole.status == "broken":
        yield whole
    for path in sorted(places.budgets_folder.glob("*.yaml")):
        subject = f"budgets/{path.name}"
        own = tuple(item for item in whole.items if item.startswith(f"{subject}:"))
        yield Diagnosis(subject, "broken" if own else "fine", "see budgets" if own else "")


def _examine_deploy(places: Places) -> Iterator[Diagnosis]:
    for name in list_environments(places):
        yield _examine(f"deploy/environments/{name}.yaml", lambda name=name: load_environment(places, name), places)  # type: ignore[misc]
    if (places.root / "deploy" / "roles.yaml").exists():
        yield _examine("deploy/roles.yaml", lambda: load_roles(places), places)
    if rules_file(places).exists():
        yield _examine("deploy/erasure.yaml", lambda: _check_erasure_rules(places), places)
    for path in sorted((places.root / "deploy" / "consumers").glob("*.yaml")):
        yield _examine(f"deploy/consumers/{path.name}", lambda path=path: _check_consumer(places, path), places)  # type: ignore[misc]
    for path in sorted((places.root / "deploy" / "desired").glob("*.yaml")):
        yield _examine(
            f"deploy/desired/{path.name}",
            lambda path=path: parse_desired(path.read_text(encoding="utf-8"), source=str(path)),  # type: ignore[misc]
            places,
        )


def _check_budget(places: Places, name: str) -> list[str]:
    budgets = sorted(path.stem for path in places.budgets_folder.glob("*.yaml") if path.name != "rates.yaml")
    if name in budgets:
        return []
    return [f"budget: unknown budget {name!r}; budgets/*.yaml has {', '.join(budgets) or 'none'}"]


def _check_erasure_rules(places: Places) -> None:
    rules = load_rules(places)
    if rules.budget is not None:  # else it would be found when a deadline is near
        _raise_all(_check_budget(places, rules.budget), rules_file(places))


def _check_consumer(places: Places, path: Path) -> None:
    spec = load_spec(path, ConsumerSpec)
    problems = []
    if spec.service != path.stem:
        problems.append(f"service: is {spec.service!r}, the file is named for {path.stem!r}")
    if spec.product not in places.products():
        problems.append(f"product: unknown product {spec.product!r}; known: {', '.join(places.products()) or 'none'}")
    unknown = [name for name in spec.environments if name not in list_environments(places)]
    problems += [f"environments: unknown environment {name!r}" for name in unknown]
    _raise_all(problems, path)


def _examine_lock(places: Places) -> Diagnosis:
    name = places.lock_file.name
    if not places.lock_file.is_file():
        return Diagnosis(name, "broken", "does not exist", hint="run `make lock`, or `pip freeze > requirements.lock`")
    lines = enumerate(places.lock_file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
    items = tuple(
        f"{name}:{number}: {line.strip()[:60]}: is not a version of the form name==1.2.3"
        for number, line in lines
        if line.strip() and not line.lstrip().startswith("#") and not _LOCK_LINE.match(line.strip())
    )
    if items:
        return Diagnosis(name, "broken", _count(items), items=items, hint="run `make lock`")
    return Diagnosis(name, "fine", "")


def _examine_repository(places: Places) -> Iterator[Diagnosis]:
    try:
        repository = open_repository(places.root)
        repository.head_commit()
    except MlopsError as error:
        yield Diagnosis("git", "broken", _relative(error.message, places), hint=error.hint)
        return
    dirty = repository.dirty_paths()
    state = [path for path in dirty if path.startswith(".mlops/")]
    if state:
        yield Diagnosis(".gitignore", "broken", "does not ignore .mlops/", hint="add the line `.mlops/`")
    elif dirty:
        text = f"{len(dirty)} {'files differ' if len(dirty) > 1 else 'file differs'} from the last commit"
        hint = "commit them before a release, or pass --allow-dirty"
        yield Diagnosis("git", "note", text, items=dirty[:10], hint=hint)
    else:
        yield Diagnosis("git", "fine", "clean")


def _examine_namesake(places: Places) -> Iterator[Diagnosis]:
    try:
        require_no_namesake(places.root)
    except ProjectError as error:
        yield Diagnosis("package", "broken", error.message, hint=error.hint)


def _examine(subject: str, load: Callable[[], object], places: Places) -> Diagnosis:
    try:
        load()
    except MlopsError as error:
        items = tuple(_relative(item, places) for item in error.items) or (_relative(error.message, places),)
        return Diagnosis(subject, "broken", _count(items), items=items, hint=error.hint)
    except (OSError, UnicodeDecodeError) as error:
        return Diagnosis(subject, "broken", f"cannot be read: {error}", hint="fix its rights or restore it from git")
    return Diagnosis(subject, "fine", "")


def _find_strangers(places: Places, seen: set[str]) -> Iterator[Diagnosis]:
    """YAML in an asset folder that no loader reads: a misspelt name would otherwise be ignored without a word."""
    for folder in _ASSET_FOLDERS:
        for path in sorted((places.root / folder).glob("*.y*ml")):
            subject = path.relative_to(places.root).as_posix()
            if subject not in seen and path.suffix in {".yaml", ".yml"}:
                known = ", ".join(places.products()) or "none"
                text = "is read by nothing" if path.suffix == ".yaml" else "is read by nothing: the ending is .yaml"
                yield Diagnosis(subject, "broken", text, hint=f"files are named for products: {known}")


def _raise_all(problems: list[str], path: Path) -> None:
    if problems:
        items = tuple(f"{path}: {problem}" for problem in problems)
        raise ProjectError(f"{path} has {_count(items)}", items=items, hint="fix them and run `mlops doctor`")


def _count(items: tuple[str, ...]) -> str:
    return f"{len(items)} problem{'s' if len(items) > 1 else ''}"


def _relative(text: str, places: Places) -> str:
    return text.replace(f"{places.root}/", "")
