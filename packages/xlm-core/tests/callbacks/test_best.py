import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_run import Hook, train
from xlm.callbacks import BestCheckpoint
from xlm.checkpoint import newest_valid, read_checkpoint
from xlm.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


def run(folder, values, monitor="x", mode="min", **options):
    """Steps at which ``best.ckpt`` was written, when one number is validated after each step."""

    def give(trainer):
        trainer.callback_metrics["x"] = values[trainer.global_step - 1]

    best = BestCheckpoint(folder / "checkpoints", monitor, mode)
    hooks = [Hook("on_validation_end", give), best]
    options = {"steps": len(values), "validate": 1, "every": 1, "ema": None, **options}
    train(folder, callbacks=hooks, **options)
    return best


@pytest.mark.parametrize(("mode", "step", "value"), [("min", 5, 1.0), ("max", 2, 4.0)])
def test_the_best_of_all_validations_is_kept(tmp_path, mode, step, value):
    best = run(tmp_path, [3.0, 4.0, 2.0, 2.0, 1.0, math.nan], mode=mode)
    assert (best.step, best.best) == (step, value)
    assert read_checkpoint(tmp_path / "checkpoints/best.ckpt")["global_step"] == step


def test_the_first_of_equals_stays(tmp_path):
    assert run(tmp_path, [2.0, 2.0]).step == 1


def test_the_best_so_far_outlives_a_restart(tmp_path):
    run(tmp_path, [2.0, 3.0])
    assert run(tmp_path, [2.0, 3.0, 2.5]).step == 1


def test_it_is_kept_beside_the_newest_which_knows_of_it(tmp_path):
    train(tmp_path, steps=9, validate=3, every=1, best=True)
    best = read_checkpoint(tmp_path / "checkpoints/best.ckpt")
    newest = read_checkpoint(newest_valid(tmp_path / "checkpoints"))
    known = newest["callbacks"]["BestCheckpoint"]
    assert known["step"] == best["global_step"] in (3, 6, 9)
    assert newest["global_step"] == 9
    assert known["best"] == pytest.approx(min(losses(tmp_path)), rel=1e-6)


def losses(folder):
    head, *lines = ((folder / "metrics.csv").read_text()).splitlines()
    place = head.split(",").index("val/texts/loss")
    return [float(cells[place]) for cells in (line.split(",") for line in lines) if cells[place]]


def test_a_number_that_nobody_logs_is_named_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match=r"callbacks\.best\.monitor \(val/y\); fix: choose of: .*val/texts/loss, .*, x"):
        run(tmp_path, [1.0], monitor="val/y")


def test_the_nearest_number_is_offered(tmp_path):
    with pytest.raises(UserError, match=r"val/texts/los\); fix: did you mean val/texts/loss\? choose of: "):
        run(tmp_path, [1.0], monitor="val/texts/los")


@pytest.mark.parametrize(
    ("monitor", "names", "error"),
    [
        ("val/texts/loss", ["texts"], None),
        ("val/texts/any/thing", ["texts"], None),
        ("val/text/loss", ["texts", "more"], "names no .* fix: choose of: val/texts/..., val/more/..."),
        ("texts/loss", ["texts"], "names no"),
        ("val/texts", ["texts"], "names no"),
        ("test/texts/loss", ["texts"], "names no"),
        ("val/texts/loss", [], "nothing is validated"),
    ],
)
def test_a_number_of_a_data_set_that_is_not_validated_is_known_before_training(tmp_path, monitor, names, error):
    best = BestCheckpoint(tmp_path, monitor)
    if error is None:
        best.check(names)
    else:
        with pytest.raises(UserError, match=f"{error}.*") as refused:
            best.check(names)
        assert f"in callbacks.best.monitor ({monitor})" in str(refused.value)


def test_other_modes_are_refused(tmp_path):
    with pytest.raises(UserError, match="min or max"):
        BestCheckpoint(tmp_path, "x", "best")
