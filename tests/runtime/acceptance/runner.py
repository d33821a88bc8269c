"""Runs the acceptance script as a program of its own, and writes down what the tests look at.

`GIVEN` (a dict) comes from whoever runs this file: the folder, whether to resume, and the step in
which to die.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import torch

given = globals()["GIVEN"]
folder = Path(given["folder"])
folder.mkdir(exist_ok=True)
os.chdir(folder)
os.environ.update(REKINDLE_ACCELERATOR="cpu", REKINDLE_DEVICES="1")
# As in a program that was started by its name.
multiprocessing.set_start_method("fork", force=True)
torch.set_num_threads(1)
torch.manual_seed(0)

source = Path(__file__).with_name("script.py").read_text()
if given.get("resume"):
    source = source.replace(
        "trainer.fit(model, data)", "trainer.fit(model, data, ckpt_path='./checkpoints/last.ckpt')"
    )
# `test` and `predict` begin without metrics.
source = source.replace(
    "    trainer.test(", "    fitted = sorted(trainer.callback_metrics)\n    trainer.test("
)
names = {"__name__": "__main__"}
seen = []


def training_step(self, batch, batch_idx):
    """The script's own, and a note of what it has got; dies where it was told to."""
    seen.append((self.trainer.current_epoch, self.trainer.global_step, len(batch[1])))
    if self.trainer.global_step == given.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, batch, batch_idx)


before, main = source.split('if __name__ == "__main__":')
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    exec(compile(before, "script.py", "exec"), names)
    real = names["Net"].training_step
    names["Net"].training_step = training_step
    exec(compile("if True:" + main, "script.py", "exec"), names)

digest = hashlib.sha256()
for name, tensor in sorted(names["model"].state_dict().items()):
    digest.update(name.encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
best = names["trainer"].callbacks[0].best_model_path
rebuilt = names["Net"].load_from_checkpoint(best)
result = {
    "warnings": [str(one.message) for one in caught],
    "sizes": sorted(names["dynamic"].seen),
    "seen": seen,
    "step": names["trainer"].global_step,
    "weights": digest.hexdigest(),
    "best": best,
    "rebuilt": dict(rebuilt.hparams),
    "predictions": [list(part.shape) for part in names["predictions"]],
    "metrics": names["fitted"],
}
(folder / "result.json").write_text(json.dumps(result))
