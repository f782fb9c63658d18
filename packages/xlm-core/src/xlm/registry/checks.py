"""What is wrong with an offer, as far as it can be told without importing anything."""

from __future__ import annotations

import keyword
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from xlm.errors import UserError
from xlm.registry.offers import CONFIGS, LIBRARIES, PACKAGES, Broken, Offer

CORE = "xlm-core"
OF_THE_CORE = re.compile(r"xlm[-_.]core(?![\w.-])", re.IGNORECASE)
OWN_OPTIONS = Path(__file__).parents[1] / CONFIGS


def checked(offer: Offer) -> Offer | Broken:
    """The offer with its folder, or what is wrong with it; a package that is being written becomes importable."""
    try:
        _check_own(offer)
        offer = replace(offer, folder=_folder(offer))
        _check_name(offer)
        _check_core(offer)
        if offer.group in PACKAGES:
            _check_options(offer)
    except UserError as reason:
        return Broken(offer, reason)
    if offer.version is None and str(offer.root) not in sys.path:
        sys.path.append(str(offer.root))  # after everything that is installed
    return offer


def without_twins(offers: Iterable[Offer]) -> Iterator[Offer | Broken]:
    """One name, one offer: those that share a name are all refused. What is installed and written is one package."""
    offers = list(offers)
    known = {(offer.group, offer.name, offer.target, offer.folder) for offer in offers if offer.version}
    by_name: dict[tuple[str, str], list[Offer]] = {}
    for offer in offers:
        if offer.version or (offer.group, offer.name, offer.target, offer.folder) not in known:
            by_name.setdefault((offer.group, offer.name), []).append(offer)
    for (group, name), twins in sorted(by_name.items()):
        if len(twins) == 1:
            yield twins[0]
            continue
        reason = twice([offer.distribution for offer in twins], f"'{name}'", group)
        yield from (Broken(offer, reason) for offer in twins)


def whole(found: Iterable[Offer | Broken]) -> Iterator[Offer | Broken]:
    """A package of which one family or task is broken is left out whole: its options lie in one folder."""
    found = list(found)
    reasons = {
        broken.offer.folder: broken.reason
        for broken in found
        if isinstance(broken, Broken) and broken.offer.group in PACKAGES
    }
    for offer in found:
        if isinstance(offer, Offer) and offer.group in PACKAGES and offer.folder in reasons:
            yield Broken(offer, reasons[offer.folder])
        else:
            yield offer


def twice(distributions: Iterable[str], what: str, where: str) -> UserError:
    """The error for one thing that several packages offer, or one package several times."""
    first, *others = dict.fromkeys(distributions)
    if not others:
        fix = "let it offer one of them, or uninstall it (or take it out of XLM_MODELS_PATH)"
        return UserError(f"{first} offers {what} more than once", where=where, fix=fix)
    both = f"{first} and {others[0]} both offer" if len(others) == 1 else f"{', '.join([first, *others])} offer"
    fix = "rename it in one of them, or uninstall one (or take it out of XLM_MODELS_PATH)"
    return UserError(f"{both} {what}", where=where, fix=fix)


def _check_own(offer: Offer) -> None:
    """Refuse to take the core's or a library's module for a package's."""
    if offer.top in LIBRARIES and offer.group in PACKAGES:
        what = f"{offer.distribution} offers '{offer.name}' with the module '{offer.module}', which is not its own"
        raise UserError(what, where=offer.group, fix=offer.remedy)


def _check_name(offer: Offer) -> None:
    if not offer.name.isidentifier() or keyword.iskeyword(offer.name):
        what = f"{offer.distribution} offers '{offer.name}', which is no name: letters, digits and underscores make one"
        raise UserError(what, where=offer.group, fix=offer.remedy)


def _check_core(offer: Offer) -> None:
    """Refuse a package that was written for another version of the core."""
    from packaging.requirements import InvalidRequirement, Requirement

    core = metadata.version(CORE)
    for line in filter(OF_THE_CORE.match, offer.requires):
        try:
            needed = Requirement(line)
        except InvalidRequirement as error:
            what = f"{offer.label} does not say which {CORE} it needs"
            raise UserError(what, where=f"package {offer.distribution}", value=line, fix=offer.remedy) from error
        applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if applies and not needed.specifier.contains(core, prereleases=True):
            raise UserError(
                f"{offer.label} needs {CORE}{needed.specifier}",
                where=f"package {offer.distribution}",
                value=f"{CORE} {core}",
                fix=f"pip install --upgrade {offer.distribution} {CORE}" if offer.version else offer.remedy,
            )


def _folder(offer: Offer) -> Path:
    """Folder of what is offered; of its package where that is a module."""
    top, *inner = offer.module.split(".")
    missing = UserError(
        f"{offer.distribution} offers '{offer.name}', but its module '{offer.module}' is not there",
        where=offer.group,
        fix=offer.remedy,
    )
    is_package = offer.group in PACKAGES
    try:
        spec = find_spec(top)  # of the top-level package: finding a submodule would import its parent
    except (ImportError, ValueError) as error:
        raise missing from error
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if offer.version is None:
        _check_not_hidden(offer, spec, places)
        places = [offer.root / top]
    if spec and spec.origin and not places and not inner and not is_package:
        return Path(spec.origin).parent  # a module of its own
    for whole in (place.joinpath(*inner) for place in places):
        if os.path.isdir(whole):
            return whole
        if not is_package and os.path.isfile(f"{whole}.py"):
            return whole.parent
    raise missing


def _check_not_hidden(offer: Offer, spec: ModuleSpec | None, places: list[Path]) -> None:
    """Refuse a module that is being written, of which another would be imported."""
    if spec and offer.root / offer.top not in places:
        what = f"{offer.distribution} would be hidden by another module '{offer.top}'"
        there = places[0] if places else spec.origin
        raise UserError(what, where=offer.group, value=there, fix="rename it, or uninstall the other")


def _check_options(offer: Offer) -> None:
    try:
        os.listdir(offer.configs)
    except OSError as error:
        what = f"{offer.distribution} offers '{offer.name}', but its options cannot be read: {error.strerror}"
        raise UserError(what, where=str(offer.configs), fix=offer.remedy) from error
    for file in sorted(offer.configs.rglob("*.yaml")):
        option = file.relative_to(offer.configs)
        if option in _own_options():
            raise twice((CORE, offer.distribution), f"the option '{option.with_suffix('').as_posix()}'", str(file))


@cache
def _own_options() -> frozenset[Path]:
    """Options of the core."""
    return frozenset(file.relative_to(OWN_OPTIONS) for file in OWN_OPTIONS.rglob("*.yaml"))
