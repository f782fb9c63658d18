"""One configuration from options and overrides, through Hydra's loader and one search path plugin of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from xlm.config import search
from xlm.config.keys import apply, apply_where_taken, check_keys
from xlm.config.overrides import is_group, is_value, parse, refuse_sweeps
from xlm.errors import UserError
from xlm.instantiate import trust

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of a run, as ``xlm train`` composes it from the same words; interpolations stay unresolved.

    Examples:
        >>> compose(["noise_schedule=cosine", "seed=3"]).seed
        3
    """
    parsed = parse(overrides)
    refuse_sweeps(parsed)
    config = compose_options([override for override in parsed if not is_value(override)])
    values = take_trusted([override for override in parsed if is_value(override)], config)
    apply_where_taken(config)
    check_keys(config, values)
    for override in values:
        apply(config, override)
    return config


def compose_options(overrides: Sequence[Override]) -> DictConfig:
    """The configuration before any value is overridden."""
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for override in filter(is_group, overrides):
        _check_option(override)
    lines = [str(override.input_line) for override in overrides]
    try:
        hydra = loader()
        _check_unambiguous(hydra, lines)
        config: DictConfig = hydra.load_configuration(search.PRIMARY, lines, RunMode.RUN)
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise _in_our_words(error) from error
    with open_dict(config):
        chosen = config.pop("hydra").runtime.choices
        config.choices = {name: chosen[name] for name in search.groups() if chosen.get(name)}
    return config


def take_trusted(overrides: Sequence[Override], config: DictConfig) -> list[Override]:
    """Trust the packages named on the command line; a configuration file may not name any."""
    if config.get("trusted_packages"):
        raise UserError(
            "only the command line may trust a package",
            where="trusted_packages",
            value=list(config.trusted_packages),
            fix="take the key out of the file and give trusted_packages=[...] on the command line",
        )
    for override in overrides:
        if override.key_or_group == "trusted_packages":
            names = override.value()
            trust(names if isinstance(names, list) else [str(names)])
    return [override for override in overrides if override.key_or_group != "trusted_packages"]


@cache
def _register_search_path() -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class XlmSearchPath(SearchPathPlugin):
        """Puts our folders on Hydra's search path; registered by hand, so that other Hydra programs never see it."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for source in search.sources():
                search_path.append(source.provider, f"file://{source.folder}")

    Plugins.instance().register(XlmSearchPath)


def loader() -> Any:
    """Hydra's loader over our search path."""
    from hydra import version
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.utils import setup_globals

    search.announce_broken()
    version.setbase("1.3")
    setup_globals()
    _register_search_path()
    return ConfigLoaderImpl(create_config_search_path(None))


def _check_unambiguous(hydra: Any, lines: Sequence[str]) -> None:
    """Refuse options that several packages offer, however they were chosen: Hydra would take the first."""
    from hydra.types import RunMode

    if twice := search.ambiguous():
        for used in hydra.compute_defaults_list(search.PRIMARY, list(lines), RunMode.RUN).defaults:
            if used.config_path in twice:
                raise twice[used.config_path]


def _check_option(override: Override) -> None:
    """An option that nobody offers, before Hydra meets it."""
    group, value = override.key_or_group, override.value()
    if group.startswith("hydra/") or override.is_delete() or value is None:
        return
    known, groups = search.options(), list(filter(None, search.groups()))
    if group not in groups:
        close = search.nearest(group, groups)
        raise UserError(
            "no such group of options",
            where=override.get_key_element().lstrip("+"),
            value=value,
            fix=f"did you mean {close}?" if close else f"the groups are {', '.join(sorted(groups))}",
        )
    for name in value if isinstance(value, list) else [value]:
        if str(name) not in known.get(group, {}):
            raise search.unknown_option(group, str(name), where=override.get_key_element().lstrip("+~"))


def _in_our_words(error: BaseException) -> UserError:
    """A composition error of Hydra, OmegaConf or PyYAML as one line with a key or a file and a line."""
    from hydra.errors import MissingConfigException
    from yaml import MarkedYAMLError

    for cause in _chain(error):
        if isinstance(cause, MarkedYAMLError):
            mark = cause.problem_mark or cause.context_mark
            return search.unreadable(mark.name if mark else None, str(cause.problem), mark.line + 1 if mark else None)
        if isinstance(cause, UnicodeDecodeError):
            return search.unreadable(search.not_utf8(), str(cause))
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, name = cause.missing_cfg_file.rpartition("/")
            return search.unknown_option(group, name)
    lines = [re.sub(r"\s+", " ", str(cause)) for cause in _chain(error) if str(cause)]
    return UserError(": ".join(dict.fromkeys(lines)), fix="see `xlm train --help` for the groups and their options")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
