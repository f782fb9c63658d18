"""What watches a run: saving, averaging, measuring and showing. Each file holds one idea."""

from xlm.callbacks.best import BestCheckpoint
from xlm.callbacks.ema import EMA
from xlm.callbacks.metrics_file import MetricsFile
from xlm.callbacks.profile import Profile
from xlm.callbacks.progress import Progress
from xlm.callbacks.replay import Replay
from xlm.callbacks.samples import SampleLogger
from xlm.callbacks.saver import Saver
from xlm.callbacks.throughput import Throughput
from xlm.callbacks.wandb_logger import QuietWandbLogger

__all__ = [
    "EMA",
    "BestCheckpoint",
    "MetricsFile",
    "Profile",
    "Progress",
    "QuietWandbLogger",
    "Replay",
    "SampleLogger",
    "Saver",
    "Throughput",
]
