"""PyTorch Lightning on Rekindle: an existing script keeps its `Trainer` and gets what it lacks.

>>> import lightning as L                                            # doctest: +SKIP
>>> from rekindle.bridge import RekindleCallback, RekindlePlugin     # doctest: +SKIP
>>> trainer = L.Trainer(                                             # doctest: +SKIP
...     max_epochs=10,
...     callbacks=[RekindleCallback("s3://bucket/run")],
...     plugins=[RekindlePlugin()],
... )

`RekindleCallback` saves the whole state between two steps, in the background and without pickle;
agrees with all ranks on the step at which a preemption notice is obeyed, and ends with exit code
75; begins from the newest good commit; tells the pod's agent and Prometheus how far it is.
`RekindlePlugin` lets `ckpt_path=` of any entry point name a run: ``trainer.test(ckpt_path=
"s3://bucket/run")``. In a TrainingJob not even the import is needed: where the job names a
checkpoint URI, Lightning finds `callbacks` through an entry point and adds the callback by itself.

A script may call `fit` many times: a sweep, the folds of a cross-validation, several stages with
one trainer or with others. Each call has checkpoints of its own
(`rekindle.persistence.run_identity`: the first in the root, the n-th in ``<root>/fits/<n>``). A
restarted script makes the same calls again: those that had ended are repeated by loading what they
had come to (weights, optimizers, callbacks' state, metrics, generators), the one that was
interrupted goes on, and the rest of the script sees what it would have seen. What a script keeps
elsewhere, in attributes that are in no ``state_dict``, a repeated fit does not bring back. Calls of
the tuner's are none of these (`tuned`).

Exit code 75 has to reach whoever starts the script again. A script that is one process gives it, as
does one whose ranks Lightning starts (``strategy="ddp"``): there the others end with 0, since it
would kill rank 0 for their 75. `rekindle.launch` tells it in a job; torchrun tells 1 for whatever
its workers do, but 75 where this package is installed (`rekindle.launch.agent.manual_torchrun`).
``spawn`` and notebooks, which have none to tell, are refused; a wrapper of one's own has to pass it
on.

A resumed run is bit-equal to one that was never disturbed, with these exceptions, all of them
Lightning's or the script's own: see `rekindle.bridge.data` (order and augmentation) and
`rekindle.bridge.state` (metrics). DDP and single-device strategies are served, on as many processes
as before: Lightning fixes the batch per process, so another number of them is another training.

What Lightning does not offer as a hook is reached in `data` (its loaders), `resuming` and `state`
(what it restores and saves), each place with its reason; written for Lightning 2.6.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from rekindle.api import ENV_CHECKPOINT_URI

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from rekindle.bridge.callback import RekindleCallback as RekindleCallback
    from rekindle.bridge.plugin import RekindlePlugin as RekindlePlugin

_HOME = {"RekindleCallback": "callback", "RekindlePlugin": "plugin"}
__all__ = ["RekindleCallback", "RekindlePlugin", "callbacks"]


def callbacks() -> "list[Callback]":
    """What Lightning adds to every `Trainer`, by its entry point ``callbacks_factory``.

    Outside of a job that is nothing, at no cost: nothing else of the bridge is imported.
    """
    if not os.environ.get(ENV_CHECKPOINT_URI):
        return []
    from rekindle.bridge.callback import RekindleCallback
    from rekindle.ranks.control_page import announce

    announce()
    return [RekindleCallback(_automatic=True)]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lightning":
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs Lightning, which is not installed: "
            f"pip install 'lightning>=2.6'",
            name=error.name,
        ) from error
