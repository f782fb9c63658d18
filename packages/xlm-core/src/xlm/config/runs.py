"""A run's own configuration: written beside it, read back, compared, and changed where that is allowed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm.config.composition import compose_options, take_trusted
from xlm.config.keys import apply, check_keys, leaves
from xlm.config.overrides import is_group, is_value, parse, refuse_sweeps
from xlm.config.redaction import REDACTED, redact, redact_override
from xlm.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

CONFIG, OVERRIDES = "config.yaml", "overrides.yaml"

OF_THE_CALL = ("job_type", "run_dir", "resume", "checkpoint", "weights")
"""Top-level keys that say what to do now, not what the run is."""

OF_THE_NETWORK = ("family", "model", "tokenizer")
"""Nodes that shape the network: they are those of the run for ever."""

FIXED_GROUPS = ("model_type", "model", "tokenizer", "experiment", "debug")
"""Groups that cannot be chosen anew on a finished run."""


def find_run(path: str | Path, where: str) -> Path:
    """The run directory that a path names: itself, or the one whose checkpoint it is."""
    given = Path(path).expanduser()
    for folder in (given, given.parent, given.parent.parent):
        if (folder / CONFIG).is_file():
            return folder
    if given.exists():
        fix = f"give a run directory, which holds {CONFIG} and checkpoints/, or a checkpoint inside one"
        raise UserError("no run", where=where, value=path, fix=fix)
    raise UserError("does not exist", where=where, value=path, fix="check the path; runs lie in runs/ by default")


def load_config(run: Path) -> DictConfig:
    """The configuration that a run was made with."""
    from omegaconf import DictConfig, OmegaConf
    from yaml import YAMLError

    try:
        config = OmegaConf.load(run / CONFIG)
    except YAMLError as error:
        raise UserError("damaged", where=str(run / CONFIG), fix="restore the file") from error
    assert isinstance(config, DictConfig)
    return config


def load_overrides(run: Path) -> list[str]:
    """The words that a run was asked for with, those of its resumptions included."""
    from omegaconf import OmegaConf

    file = run / OVERRIDES
    return [str(word) for word in OmegaConf.load(file)] if file.is_file() else []


OF_THE_TRAINING = ("optimizer", "lr_scheduler", "callbacks", "logger")
"""Groups, and nodes, that change nothing after the training."""


def from_run(
    run: Path,
    overrides: Sequence[str],
    extra: Mapping[str, Any] | None = None,
    *,
    unused: Collection[str] = (),
) -> DictConfig:
    """A run's configuration with added options and changed values.

    Options are composed from today's packages; all else is as it was. What shapes the network cannot be changed.

    Args:
        run: Run directory.
        overrides: As typed: ``predictor=mdlm_ancestral``, ``predictor.top_p=0.9``,
            ``+dataset_manager@datamodule.dataset_managers.test.extra=NAME``.
        extra: Further top-level keys of a command, with their defaults.
        unused: Groups that a command does not look at; whoever chooses one expects something else.
    """
    from omegaconf import OmegaConf, open_dict

    saved = load_config(run)
    config = saved.copy()
    parsed = parse(overrides)
    refuse_sweeps(parsed)
    chosen = [override for override in parsed if is_group(override) and not _as_it_was(override, saved)]
    _refuse_unused([override for override in parsed if is_value(override) or override in chosen], unused)
    fresh = compose_options(chosen)
    with open_dict(config):
        config.update({key: fresh[key] for key in OF_THE_CALL})
        config.update(extra or {})
    for override in chosen:
        _add_option(config, override, fresh)
    values = take_trusted([override for override in parsed if is_value(override)], config)
    check_keys(config, values)
    for override in values:
        apply(config, override)
    refuse_network_changes(run, saved, config)
    _ask_for_secrets(config)
    OmegaConf.set_struct(config, True)
    return config


def _refuse_unused(overrides: Sequence[Override], unused: Collection[str]) -> None:
    for override in overrides:
        key = override.key_or_group
        if key in unused or key.partition(".")[0] in {*unused} & {*OF_THE_TRAINING}:
            fix = "leave it out; `xlm eval` takes other data" if key.startswith("data") else "leave it out"
            raise UserError("changes nothing here", where=key, value=override.value(), fix=fix)


def _as_it_was(override: Override, saved: DictConfig) -> bool:
    choices = saved.get("choices") or {}
    return override.package is None and choices.get(override.key_or_group) == override.value()


def _add_option(config: DictConfig, override: Override, fresh: DictConfig) -> None:
    """Replace the node of one option; a list of options (``logger=[csv,wandb]``) shares a node."""
    from omegaconf import OmegaConf

    group = override.key_or_group
    if group in FIXED_GROUPS:
        raise UserError(
            "cannot be changed on a finished run",
            where=group,
            value=override.value(),
            fix="leave it out, or train a new run",
        )
    place = override.package or group.replace("/", ".")
    if override.is_delete():
        apply(config, override)
    else:
        node = OmegaConf.select(fresh, place)
        OmegaConf.update(config, place, node, merge=False, force_add=True)
        name = override.get_key_element().lstrip("+")
        config.choices = {**config.choices, name: str(override.value())}


def refuse_network_changes(run: Path, saved: DictConfig, config: DictConfig) -> None:
    """What shapes the network cannot change under its weights."""
    changed = [change for change in differences(saved, config) if change[0].partition(".")[0] in OF_THE_NETWORK]
    if changed:
        key, old, new = changed[0]
        raise UserError(
            f"shapes the network and cannot change, it is {old} in {run / CONFIG}",
            where=key,
            value=new,
            fix=f"leave {key} out, or train a new run",
        )


def _ask_for_secrets(config: DictConfig) -> None:
    hidden = [key for key, value in flat(config) if value == REDACTED]
    if hidden:
        raise UserError("was not kept, because it is a secret", where=hidden[0], fix=f"give {hidden[0]}=... again")


def flat(config: DictConfig) -> Iterable[tuple[str, Any]]:
    """Dotted keys and unresolved values of the leaves."""
    from omegaconf import OmegaConf

    return list(leaves(OmegaConf.to_container(config, resolve=False), ""))


def differences(old: DictConfig, new: DictConfig) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of all that makes two runs different."""
    before, after = dict(flat(old)), dict(flat(new))
    keys = [key for key in {**before, **after} if key.partition(".")[0] not in (*OF_THE_CALL, "choices")]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def refuse_difference(run: Path, config: DictConfig) -> None:
    """A run directory belongs to one configuration."""
    from omegaconf import OmegaConf

    redacted = OmegaConf.create(redact(OmegaConf.to_container(config, resolve=False)))
    changed = differences(load_config(run), redacted)
    if changed:
        listed = "; ".join(f"{key}: {old} there, {new} here" for key, old, new in changed[:5])
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"holds a run with another configuration ({listed}{more})",
            where="run_dir",
            value=run,
            fix=f"choose another run_dir, or resume={run} to go on with its configuration",
        )


def write_config(folder: Path, config: DictConfig, overrides: Sequence[str]) -> None:
    """``config.yaml`` (unresolved, redacted) and ``overrides.yaml`` of a run."""
    from omegaconf import OmegaConf

    plain = redact(OmegaConf.to_container(config, resolve=False))
    for name, content in ((CONFIG, plain), (OVERRIDES, [redact_override(line) for line in overrides])):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")
        temporary.replace(folder / name)
