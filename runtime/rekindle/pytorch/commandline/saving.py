"""`SaveConfigCallback`: what a run was started with, in a file beside its results."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from rekindle.callback import Callback
from rekindle.pytorch.commandline.parser import LightningArgumentParser
from rekindle.pytorch.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class SaveConfigCallback(Callback):
    """Writes the configuration to `log_dir`, once, before training.

    A run that goes on finds its own file there, and writes what it goes on with. Another run's file
    is not overwritten, unless `overwrite` says so: RuntimeError.
    """

    optional = True

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        """`multifile` keeps a configuration that came from several files in several files."""
        self.parser = parser
        self.config = config
        self.config_filename = config_filename
        self.overwrite = overwrite
        self.multifile = multifile
        self.save_to_log_dir = save_to_log_dir
        self.already_saved = False
        if not save_to_log_dir and not is_overridden("save_config", self, SaveConfigCallback):
            raise ValueError(
                "SaveConfigCallback(save_to_log_dir=False) saves nothing: derive from it and "
                "define save_config, or write LightningCLI(save_config_callback=None)"
            )

    def setup(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Save, where nothing is trained: a `fit` is first to know what it goes on from."""
        if stage != "fit":
            self._save(trainer, pl_module, stage)

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Save."""
        self._save(trainer, pl_module, "fit")

    def save_config(self, trainer: "Trainer", pl_module: "Module", stage: str) -> None:
        """Define it to save the configuration elsewhere as well; called on rank 0 only."""

    def _save(self, trainer: "Trainer", module: "Module", stage: str) -> None:
        if self.already_saved:
            return
        error: Exception | None = None
        if trainer.is_global_zero:
            try:
                if self.save_to_log_dir:
                    self._write(trainer)
                self.save_config(trainer, module, stage)
            except Exception as failure:
                error = failure
        if trainer.world is not None:
            trainer.world.agree(error)
        elif error is not None:
            raise error
        self.already_saved = True

    def _write(self, trainer: "Trainer") -> None:
        if trainer.log_dir is None:
            trainer.print(
                f"{self.config_filename} is not saved: {trainer.default_root_dir} is no directory, "
                f"and no logger has one"
            )
            return
        path = Path(trainer.log_dir, self.config_filename)
        if path.is_file() and not self.overwrite and trainer.global_step == 0:
            wanted = self.parser.dump(self.config, skip_none=False)
            if _content(path.read_text()) != _content(wanted):
                raise RuntimeError(
                    f"{type(self).__name__}: {path} is another run's. Delete it, or write "
                    f"LightningCLI(save_config_kwargs={{'overwrite': True}}) or "
                    f"LightningCLI(save_config_callback=None)"
                )
        os.makedirs(path.parent, exist_ok=True)
        self.parser.save(
            self.config, path, skip_none=False, overwrite=True, multifile=self.multifile
        )


def _content(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)
