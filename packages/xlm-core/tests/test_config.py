"""What is composed from which words, and which mistakes are refused before any work."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import yaml
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from xlm import registry
from xlm.commands.assemble import rehearse
from xlm.config import compose, search, validate
from xlm.config.composition import loader
from xlm.config.overrides import expand, parse, quote, unquote
from xlm.config.redaction import REDACTED, is_secret, redact, redact_override, scrub
from xlm.config.types import convert
from xlm.config.validation import check_missing
from xlm.errors import UserError
from xlm.instantiate import construct

TOY = ("model_type=toy", "datamodule=toy_pairs")


def checked(*words):
    """Composed, validated and rehearsed, as every command does before any work."""
    config = validate(compose([*TOY, *words]))
    rehearse(config)
    return config


def options_here(folder, group, name, text):
    """An option of the working directory."""
    file = folder / registry.CONFIGS / group / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


# Composition


def test_a_family_brings_its_model_schedule_predictor_loss_and_collators(toy):
    config = compose(TOY)
    assert config.family == "toy"
    assert config.model._target_ == "xlm_toy.parts.ToyModel"
    assert config.noise_schedule._target_ == "xlm.noise.LogLinearSchedule"
    assert config.predictor._target_ == "xlm_toy.parts.ToyPredictor"
    assert config.loss._target_ == "xlm_toy.parts.ToyLoss"
    assert set(config.collators) == {"lm", "seq2seq", "seq2seq_prediction", "unconditional"}


def test_a_task_brings_its_tokenizer_and_the_user_has_the_last_word(toy):
    assert compose(TOY).tokenizer._target_ == "xlm.data.tokenizers.CharTokenizer"
    assert compose([*TOY, "tokenizer=byte"]).tokenizer._target_ == "xlm.data.tokenizers.ByteTokenizer"


def test_an_experiment_sets_several_groups_and_values_and_the_user_has_the_last_word(toy):
    config = compose(["experiment=toy_short", "seed=6"])
    assert (config.family, config.predictor.temperature, config.trainer.max_steps, config.seed) == ("toy", 0.0, 3, 6)
    assert config.choices.predictor == "toy_greedy"


def test_several_options_of_a_group_stand_side_by_side(toy):
    assert set(compose([*TOY, "logger=[csv,tensorboard]"]).logger) == {"csv", "tensorboard"}
    assert not compose([*TOY, "logger=none"]).logger


def test_an_argument_that_the_option_does_not_list_needs_no_plus(toy):
    assert "d_ff" not in compose(TOY).model
    assert checked("model.d_ff=64").model.d_ff == 64


def test_a_part_can_be_added_and_removed(toy):
    best = "{_target_: xlm.callbacks.BestCheckpoint, monitor: val/pairs/loss}"
    config = checked(f"+callbacks.best={best}", "~callbacks.samples")
    assert set(config.callbacks) == {"saver", "throughput", "progress", "best"}


def test_a_dataset_manager_can_be_added_by_name(toy):
    config = checked("+dataset_manager@datamodule.dataset_managers.test.extra=toy_answers")
    assert config.datamodule.dataset_managers.test.extra.kind == "prediction"


def test_interpolations_stay_unresolved(toy, monkeypatch):
    monkeypatch.setenv("SOME_SIZE", "32")
    config = checked("model.d_model='${oc.decode:${oc.env:SOME_SIZE}}'")
    assert OmegaConf.to_container(config, resolve=False)["model"]["d_model"] == "${oc.decode:${oc.env:SOME_SIZE}}"


def test_our_options_are_not_seen_by_other_hydra_programs(toy):
    loader()
    plugins = [plugin for plugin in Plugins.instance().discover() if plugin.__name__ == "XlmSearchPath"]
    assert [plugin.__module__ for plugin in plugins] == ["xlm.config.composition"]
    assert not list(Path(search.__file__).parents[1].glob("hydra_plugins"))


# The search path


def test_the_working_directory_comes_first_then_the_core_then_families_by_name(toy):
    options_here(toy, "trainer", "mine", "_target_: xlm.commands.trainer.TrainerSettings\nmax_steps: 7")
    providers = [source.provider for source in search.sources()]
    assert providers[:2] == [search.HERE, "xlm-core"]
    assert compose([*TOY, "trainer=mine"]).trainer.max_steps == 7


def test_replacing_a_packaged_option_is_said_and_recorded(toy, capsys):
    search._announce.cache_clear()
    options_here(toy, "noise_schedule", "cosine", "_target_: xlm.noise.LinearSchedule")
    assert compose([*TOY, "noise_schedule=cosine"]).noise_schedule._target_ == "xlm.noise.LinearSchedule"
    assert "noise_schedule/cosine of the working directory replaces that of xlm-core" in capsys.readouterr().err
    assert search.replaced() == ["noise_schedule/cosine"]


def test_two_packages_with_one_option_are_refused_naming_both(toy, tmp_path, monkeypatch):
    other = tmp_path / "xlm_twin"
    (other / registry.CONFIGS / "model").mkdir(parents=True)
    (other / "__init__.py").touch()
    (other / registry.CONFIGS / "model" / "toy_tiny.yaml").write_text("d_model: 1")
    families = Path(__file__).parent / "families"
    monkeypatch.setenv(registry.MODELS_PATH, f"{families}:{other}")
    with pytest.raises(UserError, match=r"xlm_toy and .*xlm_twin both offer the option 'model/toy_tiny'"):
        compose(TOY)


def test_a_duplicate_key_is_refused_with_its_line(toy):
    file = options_here(
        toy, "experiment", "twice", "# @package _global_\nseed: 1\nmodel:\n  d_model: 8\n  d_model: 16\n"
    )
    with pytest.raises(UserError, match=rf"duplicate key d_model in {file}:5"):
        compose([*TOY, "experiment=twice"])


def test_a_python_tag_is_refused_and_does_not_run(toy):
    marker = toy / "marker"
    options_here(toy, "experiment", "evil", f"# @package _global_\nseed: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(UserError, match=r"python/object/apply.*evil\.yaml:2"):
        compose([*TOY, "experiment=evil"])
    assert not marker.exists()


def test_yaml_words_mean_what_yaml_says(toy):
    text = "# @package _global_\ntrainer:\n  deterministic: yes\n  max_steps: 1_000\noptimizer:\n  lr: 1e-3\n"
    options_here(toy, "experiment", "words", text)
    config = checked("experiment=words")
    assert (config.trainer.deterministic, config.trainer.max_steps, config.optimizer.lr) == (True, 1000, 0.001)


# Mistakes

MISTAKES = {
    "trainer.max_step=3": r"unknown key in trainer\.max_step \(3\); fix: did you mean trainer\.max_steps\?",
    "+trainer.max_step=3": r"unknown key.*did you mean trainer\.max_steps\?",
    "max_steps=3": r"unknown key in max_steps.*did you mean trainer\.max_steps\?",
    "lr=1e-3": r"unknown key in lr.*did you mean optimizer\.lr\?",
    "+typo=1": r"unknown key in typo \(1\); fix: choose one of",
    "modle=toy_tiny": r"unknown key in modle.*did you mean model\?",
    "callbacks.save.every=3": r"unknown key in callbacks\.save.*did you mean callbacks\.saver",
    "callbacks.saver.evry=3": r"did you mean callbacks\.saver\.every\?",
    "~callbacks.nope": r"unknown key in callbacks\.nope",
    "model=nosuch": r"no such option in model \(nosuch\); fix: choose one of .*toy_tiny",
    "model=toy_tyni": r"did you mean toy_tiny\?",
    "model_type=ilmm": r"no such option in model_type.*pip install xlm-ilmm",
    "model=unheard_small": r"pip install xlm-unheard",
    "experiment=unheard_x": r"no such option in experiment.*pip install xlm-unheard",
    "experiment=[toy_short,unheard_x]": r"no such option in experiment \(unheard_x\)",
    "foo/bar=x": r"no such group of options in foo/bar",
    "dataset_manager@datamodule.dataset_managers.test.new=toy_pairs": r"\+dataset_manager",
    "trainer.max_steps=abc": r"expected int \| None, got 'abc' in trainer\.max_steps",
    "trainer.max_steps=true": r"expected int \| None, got True in trainer\.max_steps",
    "trainer.max_steps=1.5": r"expected int \| None, got 1\.5 in trainer\.max_steps",
    "model.d_model=": r"empty value in model\.d_model",
    "model.d_model=[16]": r"expected int, got \[16\] in model\.d_model",
    "optimizer.lr=1e400": r"not a finite number in optimizer\.lr",
    "model.dropout=nan": r"not a finite number in model\.dropout",
    "optimizer.betas=[0.9]": r"expected tuple\[float, float\], got \[0\.9\] in optimizer\.betas",
    "seed=abc": r"expected int, got 'abc' in seed",
    "seed=-1": r"must not be negative in seed",
    "compile=maybe": r"expected bool, got 'maybe' in compile",
    "weights=best": r"expected .*'ema'.*got 'best' in weights",
    "weights=ema": r"no weights are averaged in weights",
    "seed=1,2": r"several values in seed \(1,2\).*--multirun",
    "seed={": r"cannot read this override",
    "model.d_model=${eval:1+1}": r"[Uu]nsupported interpolation type eval in model\.d_model",
    "model.d_model=${oc.env:NOT_SET_ANYWHERE}": r"NOT_SET_ANYWHERE.*in model\.d_model",
    "model.d_model=${nowhere}": r"nowhere.*in model\.d_model",
    "loss._target_=os.system": r"may not run this in loss\._target_ \(os\.system\)",
    "loss._target_=torch.load": r"may not run this in loss\._target_",
    "+model.trust_remote_code=true": r"trust_remote_code",
    "choices.model=toy_tiny": r"cannot be set in choices",
    "tokenizer=pretrained": r"missing: tokenizer\.name",
    "trainer.max_steps=0": r"greater than 0 in trainer\.max_steps \(0\)",
    "trainer.max_steps=-5": r"greater than 0 in trainer\.max_steps",
    "trainer.max_steps=null": r"missing: trainer\.max_steps",
    "trainer.val_check_interval=0": r"greater than 0 in trainer\.val_check_interval",
    "trainer.devices=0": r"no device in trainer\.devices",
    "trainer.limit_val_batches=1.5": r"trainer\.limit_val_batches",
    "trainer.precision=16-mixed": r"trainer\.precision \(16-mixed\)",
    "trainer.accelerator=tpu": r"trainer\.accelerator",
    "datamodule.global_batch_size=0": r"at least 1 in datamodule\.global_batch_size",
    "datamodule.num_workers=-1": r"at least 0 in datamodule\.num_workers",
    "model.dropout=1.5": r"must lie in \[0, 1\) in model\.dropout \(1\.5\)",
    "model.d_model=15": r"multiple of model\.n_heads in model\.d_model",
    "predictor.top_p=0": r"predictor\.top_p \(0",
    "collators.seq2seq.t_min=2": r"collators\.t_min \(2",
    "noise_schedule.eps=2": r"noise_schedule\.eps",
    "optimizer.lr=-1": r"optimizer\.lr \(-1",
    "lr_scheduler.warmup_steps=-1": r"lr_scheduler\.warmup_steps \(-1",
    "harness.clip_norm=-1": r"harness\.clip_norm \(-1",
    "harness.ema_decay=2": r"harness\.ema_decay \(2",
    "callbacks.saver.keep=0": r"callbacks\.saver\.keep \(0",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_refused_naming_the_key_and_what_to_do(toy, word):
    with pytest.raises(UserError, match=MISTAKES[word]):
        checked(word)


def test_a_global_batch_that_devices_cannot_share_is_refused_with_the_arithmetic(toy):
    with pytest.raises(UserError, match=r"4 devices x 3 examples = 12.*global_batch_size \(10\)"):
        checked("datamodule.global_batch_size=10", "trainer.devices=4", "datamodule.device_batch_size=3")


def test_a_missing_family_lists_those_that_are_installed(toy, monkeypatch):
    with pytest.raises(UserError, match=r"installed families: .*toy.*, see `xlm info`"):
        validate(compose(["datamodule=toy_pairs"]))
    with pytest.raises(UserError) as refused:
        validate(compose(["model_type=toy"]))
    assert "installed families" not in str(refused.value)
    config = compose(["datamodule=toy_pairs"])
    monkeypatch.setattr("xlm.config.search.options", dict)
    with pytest.raises(UserError, match="add model_type=<FAMILY>; no family is installed: pip install xlm-"):
        check_missing(config)


def test_all_that_is_missing_is_said_at_once(toy):
    with pytest.raises(UserError, match=r"missing: datamodule, model_type; .*datamodule=<.*model_type=<.*toy"):
        validate(compose([]))
    with pytest.raises(UserError, match=r"missing: datamodule\.path, tokenizer\.name;"):
        validate(compose(["model_type=toy", "datamodule=text", "tokenizer=pretrained"]))


def test_a_files_misspelt_key_is_as_wrong_as_a_typed_one(toy):
    options_here(toy, "experiment", "misspelt", "# @package _global_\ntrainer:\n  max_step: 3\n")
    with pytest.raises(UserError, match=r"trainer\.max_step.*did you mean trainer\.max_steps\?"):
        checked("experiment=misspelt")
    options_here(toy, "experiment", "misspelt", "# @package _global_\nsede: 3\n")
    with pytest.raises(UserError, match=r"sede.*did you mean seed\?"):
        checked("experiment=misspelt")


def test_a_file_may_not_trust_a_package(toy, monkeypatch):
    monkeypatch.setattr("xlm.instantiate._named_by_user", set())
    options_here(toy, "experiment", "sly", "# @package _global_\ntrusted_packages: [fractions]\n")
    with pytest.raises(UserError, match="only the command line may trust"):
        checked("experiment=sly")
    word = "+callbacks.x={_target_: fractions.Fraction}"
    with pytest.raises(UserError, match="may not run this"):
        checked(word)
    assert checked(word, "trusted_packages=[fractions]").callbacks.x._target_ == "fractions.Fraction"


def test_a_secret_from_the_environment_is_not_spelt_out_in_an_error(toy, monkeypatch):
    monkeypatch.setenv("MY_VALUE", "hunter2hunter2")
    with pytest.raises(UserError) as caught:
        checked("model.d_model=${oc.env:MY_VALUE}")
    assert "hunter2" not in str(caught.value)


# Types


class Typed:
    def __init__(
        self,
        whole: int = 0,
        real: float = 0.0,
        pair: tuple[int, int] = (0, 0),
        name: str = "",
        path: Path | None = None,
    ) -> None: ...


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("whole", 3, 3),
        ("whole", "3", 3),
        ("whole", 1e4, 10000),
        ("whole", "1e4", 10000),
        ("real", 3, 3),
        ("real", "1e-3", 0.001),
        ("pair", [1, 2], [1, 2]),
        ("name", "1e-3", "1e-3"),
        ("path", "/x", "/x"),
    ],
)
def test_a_number_may_be_spelt_in_any_way(name, value, becomes):
    converted = convert(value, Typed, name, where=name, shown=value)
    assert converted == becomes
    assert type(converted) is type(becomes)


@pytest.mark.parametrize(
    ("name", "value"), [("whole", True), ("whole", 1.5), ("real", False), ("real", "x"), ("pair", [1]), ("name", 3)]
)
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(UserError, match=f"expected .*, got {value!r}".replace("[", r"\[").replace("]", r"\]")):
        convert(value, Typed, name, where=name, shown=value)


# Text taken literally

TEXTS = [
    "Hello, world",
    "It's (a) test",
    "a=b",
    "[MASK] is",
    "",
    "null",
    "1e3",
    "${oc.env:HOME}",
    r"C:\temp\new",
    r"a\${x}\\",
    "'quoted'",
    '"quoted"',
    "two\nlines",
    "  spaces  ",
    "{a: 1}",
    "é \U0001f600",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_taken_literally(text):
    (override,) = parse([f"prompt={text}"])
    assert OmegaConf.create({"prompt": override.value()}).prompt == text
    assert unquote(quote(f"prompt={text}")) == f"prompt={text}"


@pytest.mark.parametrize(
    "key",
    [
        "prompt",
        "prompts",
        "template",
        "checkpoint",
        "run_dir",
        "runs",
        "output",
        "resume",
        "init_from",
        "datamodule.path",
    ],
)
def test_paths_and_prompts_are_never_swept(key):
    assert expand([f"{key}=a,b", "seed=1"]) == [[f"{key}=a,b", "seed=1"]]


def test_a_path_of_text_data_is_taken_literally(toy):
    config = compose(["model_type=toy", "datamodule=text", "datamodule.path=my, odd (file).txt"])
    assert config.datamodule.path == "my, odd (file).txt"
    assert config.datamodule.dataset_managers.test.text.source.path == "my, odd (file).txt"


def test_a_sweep_is_every_combination():
    runs = expand(["seed=1,2", "model.d_model=range(1,3)", "prompt=a, b"])
    assert runs == [[f"seed={s}", f"model.d_model={d}", "prompt=a, b"] for s, d in itertools.product((1, 2), (1, 2))]


# Secrets


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        *((key, True) for key in ("hf_token", "api_key", "client_secret", "PASSWORD")),
        *((key, False) for key in ("tokenizer", "mask_token", "path", "tokeniser_path")),
    ],
)
def test_which_keys_hold_secrets(key, secret):
    assert is_secret(key) is secret


def test_secrets_are_redacted_and_other_values_are_not(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh12345")
    node = {
        "logger": {"api_key": "xyz", "max_new_tokens": 5, "token": "${oc.env:HF_TOKEN}", "tokens": ["t1"]},
        "note": "see abcdefgh12345",
        "choices": {"metrics": "token_accuracy"},
    }
    assert redact(node) == {
        "logger": {"api_key": REDACTED, "max_new_tokens": 5, "token": "${oc.env:HF_TOKEN}", "tokens": [REDACTED]},
        "note": f"see {REDACTED}",
        "choices": {"metrics": "token_accuracy"},
    }
    assert redact_override("+logger.x.api_key=xyz") == f"+logger.x.api_key={REDACTED}"
    assert redact_override("model.d_model=3") == "model.d_model=3"
    assert scrub("abcdefgh12345!") == f"{REDACTED}!"


# Everything that is shipped


def every(group):
    return sorted(search.options().get(group, {}))


def needs(task):
    """Values that a task leaves to the user."""
    file = search.options()["datamodule"][task]
    return ["datamodule.path=/some/file"] if search.read_yaml(file).get("path") == "???" else []


def test_every_family_can_be_trained_on_every_task(toy):
    for family, task in itertools.product(every("model_type"), every("datamodule")):
        rehearse(validate(compose([f"model_type={family}", f"datamodule={task}", *needs(task)])))


@pytest.mark.parametrize(
    "group", ["tokenizer", "noise_schedule", "optimizer", "lr_scheduler", "trainer", "strategy", "logger", "debug"]
)
def test_every_option_of_the_core_composes_and_checks(toy, group):
    for name in every(group):
        checked(f"{group}={name}", *(["tokenizer.name=/x"] if name == "pretrained" else []))


def test_every_callback_composes_and_checks(toy):
    checked("callbacks=[default,best]", "callbacks.best.monitor=val/pairs/loss")


def test_every_model_and_predictor_of_a_family_composes_and_checks(toy):
    for family, group in itertools.product(every("model_type"), ("model", "predictor")):
        for name in every(group):
            if name.partition("_")[0] == family:
                rehearse(validate(compose([f"model_type={family}", "datamodule=toy_pairs", f"{group}={name}"])))


def test_every_dataset_manager_can_be_added(toy):
    for name in every("dataset_manager"):
        source = [f"datamodule.dataset_managers.test.new.source.path={toy}"] if name == "text_loss" else []
        added = f"+dataset_manager@datamodule.dataset_managers.test.new={name}"
        config = compose([*TOY, added, "datamodule.path=/some/file", *source])
        validate(config)


def test_every_option_belongs_to_a_family_or_names_no_family(toy):
    families = {family.configs: family.name for family in registry.families()}
    for group, names in search.options().items():
        for name, file in names.items():
            for configs, family in families.items():
                if file.is_relative_to(configs):
                    assert name.partition("_")[0] == family, f"{group}/{name} of {family}"


def test_the_configuration_is_plain_values(toy):
    """So that it can be written, read back and compared."""
    plain = OmegaConf.to_container(checked(), resolve=True)
    assert json.loads(json.dumps(plain)) == plain == yaml.safe_load(yaml.safe_dump(plain))


def test_debug_overfit_trains_on_one_batch_without_dropout(toy):
    config = checked("debug=overfit")
    assert (config.datamodule.overfit_batches, config.model.dropout) == (1, 0.0)
    assert checked("debug=overfit", "model=toy_dropout").model.dropout == 0.0
    assert checked("debug=overfit", "model=toy_dropout", "model.dropout=0.1").model.dropout == 0.1
    assert checked("model=toy_dropout").model.dropout == 0.3


def test_debug_overfit_suits_a_network_without_dropout(toy):
    config = checked("debug=overfit", "model=toy_bare")
    assert set(config.model) == {"_target_", "vocab_size"}
    assert "where_taken" not in config
    rehearse(config)


def test_debug_small_data_and_no_workers_shrink_the_run(toy):
    assert checked("debug=small_data").trainer.max_steps == 50
    assert checked("datamodule.num_workers=2", "debug=no_workers").datamodule.num_workers == 2
    assert compose([*TOY, "debug=no_workers"]).datamodule.num_workers == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cosine", "CosineSchedule"),
        ("linear", "LinearSchedule"),
        ("constant", "ConstantSchedule"),
        ("wsd", "WSDSchedule"),
    ],
)
def test_lr_schedulers_are_what_their_names_say(toy, name, kind):
    assert type(construct(compose([*TOY, f"lr_scheduler={name}"]).lr_scheduler)).__name__ == kind
