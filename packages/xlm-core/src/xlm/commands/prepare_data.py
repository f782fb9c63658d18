"""``xlm prepare_data``: the tokenizer and the rows of tokens of a task, made now instead of at the first training."""

from __future__ import annotations

from collections.abc import Sequence

from xlm.commands.train import KEYS as TRAINING_KEYS

TOP_LEVEL = ("seed", "trusted_packages")
KEYS = {
    **{key: TRAINING_KEYS[key] for key in ("datamodule.path", "datamodule.max_length")},
    "datamodule.max_target_length": "tokens of the longest answer, EOS included, where there is a prompt",
    "datamodule.cache_dir": "where to write; default $XLM_CACHE_DIR, or ~/.cache/xlm",
    "tokenizer": "byte, char, word, bpe, or pretrained with tokenizer.name=FOLDER",
    "tokenizer.vocab_size": "of the word and bpe tokenizers",
}
ABOUT = """
Takes what `xlm train` takes, and makes what that would make first: run it where there is a network or time, with the
words of the training. The family matters, as it says in which role and layout it reads the rows. Another training with
the same tokenizer, lengths and roles finds the caches.

  xlm prepare_data model_type=FAMILY datamodule=TASK
  xlm prepare_data model_type=FAMILY datamodule=text datamodule.path=FOLDER tokenizer=bpe
"""


def run(words: Sequence[str]) -> int:
    """Make them and say what they hold."""
    from xlm.commands.assemble import assemble
    from xlm.commands.tables import show_paths, show_table
    from xlm.commands.train import prepare
    from xlm.data.cache import cache_folder
    from xlm.data.datamodule import SPLITS

    config = prepare(words)
    parts = assemble(config)
    managers = [manager for split in SPLITS for manager in parts.datamodule.managers(split)]
    counts = list(dict.fromkeys(name for manager in managers for name in manager.report))
    rows = [[m.full_name, m.role, m.event_space, *(m.report.get(name) for name in counts)] for m in managers]
    show_table(f"tokenizer: {len(parts.tokenizer)} ids", ["data set", "role", "event space", *counts], rows)
    show_paths([cache_folder(config.datamodule.cache_dir)])
    return 0
