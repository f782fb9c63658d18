import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from xlm.checkpoint import AtomicCheckpointIO
from xlm.errors import UserError
from xlm.weights import export_weights, load_into, load_weights, require_match

sys.path.insert(0, str(Path(__file__).parent))

from saved import content, model, save


def test_raw_and_averaged_weights_are_asked_for_by_name(tmp_path):
    raw, ema = model(), model()
    path = tmp_path / "000000004.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(raw, 4, ema=ema), path)
    for kind, net in (("raw", raw), ("ema", ema), (None, ema)):
        weights = load_weights(path, kind)
        assert (weights.kind, weights.step, weights.source) == (kind or "ema", 4, path)
        other = model()
        load_into(other, weights)
        for found, wanted in zip(other.parameters(), net.parameters(), strict=True):
            assert torch.equal(found, wanted)


def test_asking_for_an_average_that_is_not_there_is_the_users_error(tmp_path):
    path = save(tmp_path, 1)
    assert load_weights(path).kind == "raw"
    with pytest.raises(UserError, match=r"no averaged weights .*weights=ema.*fix: use weights=raw"):
        load_weights(path, "ema")


def test_exported_files_hold_the_same_weights(tmp_path):
    raw, ema = model(), model()
    path = tmp_path / "000000004.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(raw, 4, ema=ema), path)
    written = export_weights(path, tmp_path)
    assert [file.name for file in written] == ["model.safetensors", "model_ema.safetensors"]
    for file, net in zip(written, (raw, ema), strict=True):
        weights = load_weights(file)
        assert weights.step == 4
        for name, tensor in net.state_dict().items():
            assert torch.equal(weights.tensors[name], tensor)
    with pytest.raises(UserError, match="holds averaged weights"):
        load_weights(written[1], "raw")
    with pytest.raises(UserError, match="no averaged weights"):
        load_weights(written[0], "ema")


def test_tied_weights_are_exported_once_and_come_back_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 40), nn.Linear(40, 50, bias=False)
            self.head.weight = self.embed.weight

    net = Tied()
    path = tmp_path / "000000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(net, 1), path)
    (file,) = export_weights(path, tmp_path)
    assert file.stat().st_size < 1.5 * net.embed.weight.nbytes
    other = Tied()
    load_into(other, load_weights(file))
    assert torch.equal(other.head.weight, net.embed.weight)


def test_a_run_gives_its_newest_checkpoint_and_else_its_exported_file(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = save(tmp_path / "checkpoints", 7)
    assert load_weights(tmp_path).source == path
    export_weights(path, tmp_path)
    path.unlink()
    path.with_suffix(".json").unlink()
    assert load_weights(tmp_path).source == tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no checkpoint"):
        load_weights(tmp_path, "ema")
    with pytest.raises(UserError, match="no such file"):
        load_weights(tmp_path / "absent.safetensors")


def test_a_damaged_safetensors_file_is_named(tmp_path):
    save(tmp_path, 7)
    (file,) = export_weights(tmp_path / "000000007.ckpt", tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_weights(file)


def test_other_sizes_and_names_are_listed_with_the_nearest(tmp_path):
    path = save(tmp_path, 1)
    weights = load_weights(path)
    with pytest.raises(UserError, match=r"2 of 3 .*0\.weight is \[5, 3\] in the file, \[5, 4\] in the model"):
        load_into(model(width=4), weights)
    weights.tensors["1.weights"] = weights.tensors.pop("1.weight")
    with pytest.raises(UserError, match=r"1\.weight is missing \(the file has 1\.weights\); 1\.weights is unknown"):
        load_into(model(), weights)


def test_of_many_differences_ten_are_listed_and_the_others_counted():
    found = {f"layer{i}": torch.zeros(1) for i in range(15)}
    with pytest.raises(UserError, match=r"\(15 of 0 parameters differ\).*layer9 is unknown; and 5 more"):
        require_match(found, {}, "file")
