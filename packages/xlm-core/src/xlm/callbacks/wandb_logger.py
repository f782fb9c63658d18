"""Weights & Biases, without its own words on the terminal."""

from __future__ import annotations

import logging
import os
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from xlm.errors import UserError

logger = logging.getLogger(__name__)


class QuietWandbLogger(WandbLogger):
    """Lightning's logger; one line says where the run is.

    Args:
        save_dir: The run directory; files lie in ``wandb/`` there.
        project: Of the run.
        entity: Account or team; None is the user's own.
        name: Of the run; None lets the service choose.
        offline: Keep the files; ``wandb sync`` sends them.
    """

    def __init__(
        self,
        *,
        save_dir: str | os.PathLike[str],
        project: str = "xlm",
        entity: str | None = None,
        name: str | None = None,
        offline: bool = True,
    ) -> None:
        try:
            from wandb import Settings
        except ImportError as error:
            fix = "pip install 'xlm-core[wandb]', or use logger=csv"
            raise UserError("wandb is not installed", where="logger.wandb", fix=fix) from error
        settings = Settings(silent=True)
        where = os.fspath(save_dir)
        super().__init__(name=name, save_dir=where, project=project, entity=entity, offline=offline, settings=settings)
        for key in ("anonymous", "resume") if offline else ("anonymous",):  # of no effect, but warned about
            self._wandb_init.pop(key, None)

    @property
    def experiment(self) -> Any:
        """The run, begun where it has not been."""
        begins = self._experiment is None
        run = super().experiment
        if begins and self._experiment is not None:  # as it is on the first rank only
            logger.info("Weights & Biases: %s", f"wandb sync {run.settings.sync_dir}" if self._offline else run.url)
        return run
