"""The command line: what it loads, which command it runs, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader, Dataset
from xlm import cli
from xlm.commands import COMMANDS
from xlm.errors import UserError


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )


@pytest.mark.parametrize(
    "code",
    [
        "import xlm; xlm.__version__",
        "from xlm.cli import main; main(['--help'])",
        "from xlm.cli import main; main([])",
        "from xlm.cli import main; main(['train', '--help'])",
        "from xlm.cli import main; main(['generate', '--help'])",
        "from xlm.cli import main; main(['info'])",
        "from xlm.cli import main; main(['compare', '--help'])",
        "from xlm.cli import main; main(['compare', 'runs=[nowhere]'])",
        "from xlm.cli import main; main(['replay', 'file=o.jsonl'])",
        "from xlm.cli import main; main(['trian'])",
    ],
)
def test_looking_loads_neither_torch_nor_lightning_nor_hydra(code):
    heavy = "{'torch', 'lightning', 'hydra', 'transformers'} & set(sys.modules)"
    done = python(f"import sys; {code}; print('loaded', {heavy})")
    assert done.stdout.endswith("loaded set()\n"), done.stdout + done.stderr


def test_help_comes_at_once():
    started = time.perf_counter()
    done = python("from xlm.cli import main; raise SystemExit(main(['--help']))")
    bare = time.perf_counter()
    python("pass")
    assert (bare - started) - (time.perf_counter() - bare) < 0.5
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_help_of_a_command_lists_its_keys_with_their_meaning(toy, capsys):
    assert cli.main(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    assert "num_samples=1" in text
    assert "texts a prompt" in text
    assert cli.main(["train", "-h"]) == 0
    text = capsys.readouterr().out
    assert "trainer.max_steps" in text
    assert "noise_schedule   cosine, geometric" in text


@pytest.mark.parametrize("command", ["train", "check", "prepare_data"])
def test_help_of_a_command_that_composes_says_what_it_needs_and_which_families_there_are(toy, capsys, command):
    assert cli.main([command, "--help"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"usage: xlm {command} model_type=FAMILY datamodule=TASK [key=value ...]"
    (families,) = [line for line in lines if line.startswith("  model_type") and "the family: " in line]
    assert "toy" in families.partition(": ")[2].split(" | ")
    (tasks,) = [line for line in lines if line.startswith("  datamodule") and "the task: " in line]
    assert "sudoku_4x4" in tasks
    assert "  xlm check resume=RUN" in lines or command != "check"


def test_help_of_a_command_lists_no_key_that_changes_nothing(capsys):
    for command, absent in {"check": "run_dir", "prepare_data": "global_batch_size"}.items():
        cli.main([command, "--help"])
        assert absent not in capsys.readouterr().out


def test_xlm_offers_load_and_its_version_lazily():
    done = python("import xlm; print(xlm.__version__, callable(xlm.load)); xlm.nothing")
    assert done.stdout.split()[1] == "True"
    assert "AttributeError: module 'xlm' has no attribute 'nothing'" in done.stderr


@pytest.mark.parametrize("words", [["train", "a=1"], ["job_type=train", "a=1"], ["a=1", "job_type=train"]])
def test_job_type_is_another_way_to_name_the_command(words):
    assert cli.find_command(words) == ("train", ["a=1"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["trian"], r"no such command \(trian\); fix: did you mean train\?"),
        (["seed=1"], r"no command \(seed=1\); fix: begin with one of train"),
        (["train", "job_type=eval"], r"two commands"),
        (["train", "seed"], r"neither key=value nor a flag \(seed\)"),
        (["train", "--cfg"], r"no such flag \(--cfg\)"),
        (["info", "a=1"], r"takes no keys"),
        (["generate", "-m", "seed=1,2"], r"runs once"),
        (["generate"], r"missing: checkpoint"),
        (["train", "resume=nowhere"], r"does not exist in resume \(nowhere\)"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(toy, capsys, words, error):
    with pytest.raises(UserError, match=error):
        cli.dispatch(words)
    assert cli.main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("XLM_MODELS_PATH")]
    assert line.startswith("error: ")
    assert "; fix: " in line


def fails(error):
    def run(words):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("bad", fix="mend"), 2),
        (RuntimeError("broke"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (SystemExit(None), 0),
        (SystemExit("a library's last words"), 1),
    ],
)
def test_every_way_to_end_has_its_exit_code(monkeypatch, error, code):
    monkeypatch.setattr("xlm.commands.info.run", fails(error))
    assert cli.main(["info"]) == code


def test_a_reader_who_has_read_enough_is_no_error():
    command = [sys.executable, "-c", "from xlm.cli import main; raise SystemExit(main(['--help']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_an_interrupt_that_lightning_turns_into_exit_1_is_130(monkeypatch):
    def run(words):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr("xlm.commands.info.run", run)
    assert cli.main(["info"]) == 130


def test_a_failure_says_where_and_the_traceback_waits_for_xlm_debug(monkeypatch, capsys):
    monkeypatch.setattr("xlm.commands.info.run", fails(RuntimeError("broke\nin two")))
    cli.main(["info"])
    err = capsys.readouterr().err
    assert err.startswith("error: RuntimeError: broke in two in test_cli.py:")
    assert "Traceback" not in err
    monkeypatch.setenv("XLM_DEBUG", "1")
    cli.main(["info"])
    assert "Traceback" in capsys.readouterr().err


class Refuses(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, place):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("too long", where="here", fix="cut"), 2, "error: too long in here; fix: cut"),
        (RuntimeError("broke\nin two"), 1, "error: broke in two; fix: datamodule.num_workers=0 XLM_DEBUG=1 "),
    ],
)
def test_an_error_in_a_worker_is_a_line_too(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr("xlm.commands.info.run", lambda _: list(DataLoader(Refuses(error), num_workers=1)))
    assert cli.main(["info"]) == code
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert "Traceback" not in err


def test_secrets_of_the_environment_are_not_printed(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    monkeypatch.setenv("XLM_DEBUG", "1")
    monkeypatch.setattr("xlm.commands.info.run", fails(RuntimeError("401 for hf_abcdefghij")))
    cli.main(["info"])
    assert "hf_abcdefghij" not in capsys.readouterr().err


def test_running_out_of_memory_names_the_key_to_lower(monkeypatch, capsys):
    class OutOfMemoryError(RuntimeError):
        pass

    monkeypatch.setattr("xlm.commands.info.run", fails(OutOfMemoryError("CUDA out of memory")))
    assert cli.main(["info"]) == 1
    assert "lower datamodule.device_batch_size" in capsys.readouterr().err


def test_sigterm_before_training_ends_with_143():
    code = (
        "import os, signal, sys; from xlm import cli; import xlm.commands.info as info\n"
        "info.run = lambda words: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(cli.main(['info']))"
    )
    assert python(code).returncode == 128 + signal.SIGTERM
