"""Use installed wheels as their first user does: `python -I shipped.py WHEELS [FAMILY]`, in an empty folder.

Needs the standard library alone. The Python that runs it is the environment that is tried, and must hold these wheels.
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


def try_family(family: str) -> None:
    """A short training and an evaluation of it, which reports the same likelihood."""
    rows = [line for line in xlm("info").splitlines() if f"xlm-{family}" in line]
    assert rows, f"xlm info names no xlm-{family}"
    xlm("train", f"model_type={family}", "datamodule=sudoku_4x4", *TINY, *FEW, *CPU, "run_dir=run")
    trained = reported(Path("run"))
    xlm("eval", "checkpoint=run", "run_dir=again", *FEW[2:], *CPU)
    evaluated = reported(Path("again"))
    assert math.isclose(trained, evaluated, rel_tol=1e-5), f"{trained} after training, {evaluated} in an evaluation"
    print(f"{family}: {evaluated:.4f} nats per token after two steps, in the training and in the evaluation")


def try_core() -> None:
    """Without a family there is no model, and a line that says how to get one."""
    assert "sudoku_4x4" in xlm("info")
    said = xlm("train", "model_type=mdlm", "datamodule=sudoku_4x4", code=2)
    assert "pip install xlm-mdlm" in said, said
    xlm("scaffold", "my_model")
    assert Path("xlm-my-model/.github/workflows/ci.yml").is_file(), "xlm scaffold leaves files out"


if __name__ == "__main__":
    for file in sorted(Path(sys.argv[1]).glob("*.whl")):
        check_origin(file)
        print(f"{file.name}: what is installed in {sys.prefix}")
    if sys.argv[2:]:
        try_family(sys.argv[2])
    else:
        try_core()
