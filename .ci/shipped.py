"""Use installed wheels as their first user does: `python -I shipped.py WHEELS FAMILY CHECK...`, in a folder for it.

Needs the standard library alone. The Python that runs it is the environment that is tried, and must hold these wheels.
The checks are functions of this file.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from zipfile import ZipFile

TINY = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "trainer.max_steps=2"]
FEW = ["datamodule.global_batch_size=4", "trainer.limit_val_batches=1", "trainer.limit_test_batches=2"]
CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false"]


def check_origin(wheel: Path) -> None:
    """Every file of the wheel is the installed one, by hash; the module lies in this environment."""
    name, version = wheel.name.split("-")[:2]
    installed = metadata.distribution(name)
    with ZipFile(wheel) as archive:
        shipped = archive.read(f"{name}-{version}.dist-info/RECORD").decode().splitlines()
    recorded = (installed.read_text("RECORD") or "").splitlines()
    other = [line for line in shipped if ".dist-info/RECORD" not in line and line not in recorded]
    assert installed.version == version, f"{name} {installed.version} is installed, not {version}"
    assert not other, f"{name} is installed from elsewhere: {other[:3]}"
    module = next(line.partition("/")[0] for line in shipped)
    spec = util.find_spec(module)
    assert spec is not None, f"{module} cannot be imported"
    assert spec.origin is not None, f"{module} is no package"
    assert Path(spec.origin).is_relative_to(sys.prefix), f"{module} comes from {spec.origin}"


def xlm(*words: str, code: int = 0) -> str:
    """Run the installed command in this folder; what it printed."""
    own = {"XLM_CACHE_DIR": str(Path.cwd() / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XLM_", "PYTHON"))} | own
    command = [str(Path(sys.prefix) / "bin" / "xlm"), *words]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == code, f"xlm {' '.join(words)}: exit code {done.returncode}, not {code}\n{done.stdout}"
    return done.stdout


def reported(folder: Path) -> float:
    """The likelihood of the test set, in nats per token."""
    results = json.loads(next(folder.glob("**/results.json")).read_text())
    nats = float(results["test.sudoku"]["nats_per_token"])
    assert math.isfinite(nats), f"{nats} nats per token"
    assert nats > 0, f"{nats} nats per token"
    return nats


def train(family: str) -> None:
    """The family is found and trains."""
    rows = [line for line in xlm("info").splitlines() if f"xlm-{family}" in line]
    assert rows, f"xlm info names no xlm-{family}"
    xlm("train", f"model_type={family}", "datamodule=sudoku_4x4", *TINY, *FEW, *CPU, "run_dir=run")
    print(f"{family}: {reported(Path('run')):.4f} nats per token after two steps")


def evaluate(family: str) -> None:
    """An evaluation of that training reports the same likelihood."""
    xlm("eval", "checkpoint=run", "run_dir=again", *FEW[2:], *CPU)
    trained, evaluated = reported(Path("run")), reported(Path("again"))
    assert math.isclose(trained, evaluated, rel_tol=1e-5), f"{trained} after training, {evaluated} in an evaluation"
    print(f"{family}: the same in an evaluation")


def verify(family: str) -> None:
    """What it prints is true."""
    print(f"{family}: {xlm('verify', f'model_type={family}', '--fast', 'output=verified').splitlines()[-1]}")


def refuse(family: str) -> None:
    """Beside a core that the family was not written for: one line, and the family is not imported. Spoils it."""
    spec = util.find_spec(f"xlm_{family}")
    assert spec is not None, f"xlm_{family} is not installed"
    assert spec.origin is not None, f"xlm_{family} is no package"
    module = Path(spec.origin)
    module.unlink()  # it may be linked to a cache
    module.write_text("raise SystemExit('imported')")
    said = xlm("train", f"model_type={family}", "datamodule=sudoku_4x4", *TINY, *CPU, "run_dir=refused", code=2)
    assert f"xlm-{family} " in said, said
    assert "needs xlm-core" in said, said
    assert said.count("\n") == 1, said
    print(said, end="")


def core(_: str) -> None:
    """Without a family there is no model, and a line that says how to get one."""
    assert "sudoku_4x4" in xlm("info")
    said = xlm("train", "model_type=mdlm", "datamodule=sudoku_4x4", code=2)
    assert "pip install xlm-mdlm" in said, said
    xlm("scaffold", "my_model")
    assert Path("xlm-my-model/.github/workflows/ci.yml").is_file(), "xlm scaffold leaves files out"


CHECKS = {check.__name__: check for check in (train, evaluate, verify, refuse, core)}

if __name__ == "__main__":
    for file in sorted(Path(sys.argv[1]).glob("*.whl")):
        check_origin(file)
        print(f"{file.name}: what is installed in {sys.prefix}", flush=True)
    for name in sys.argv[3:]:
        CHECKS[name](sys.argv[2])
