"""Gradients that no optimizer steps on at once: who clears them, and when."""

import torch
from small import QUIET, loader, regression


def _shown(module):
    return [None if p.grad is None else p.grad.tolist() for p in module.parameters()]


def _two(pl, seen, optimized, **hooks):
    """Two layers, of which those `optimized` belong to the optimizer."""

    class Two(regression(pl)):
        def __init__(self):
            super().__init__()
            self.other = torch.nn.Linear(1, 1)
            torch.nn.init.constant_(self.other.weight, 0.5)
            torch.nn.init.constant_(self.other.bias, 0.5)

        def forward(self, x):
            return self.other(self.layer(x))

        def configure_optimizers(self):
            if not optimized:
                return None
            return torch.optim.SGD(getattr(self, optimized).parameters(), lr=0.1)

        def on_after_backward(self):
            seen.append(["backward", *_shown(self)])

        def on_train_batch_end(self, *rest):
            seen.append(["weights", *(p.tolist() for p in self.parameters())])

        def on_validation_start(self):
            seen.append(["validation", *_shown(self.other if optimized else self)])

    for name, hook in hooks.items():
        setattr(Two, name, hook)
    return Two()


def gradients_without_an_optimizer_add_up(pl, folder):
    """Without an optimizer gradients add up until a validation."""
    seen = []
    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(_two(pl, seen, None), loader(), loader(4))
    return seen


def gradients_without_an_optimizer_and_validation(pl, folder):
    """Without an optimizer and validation gradients add up over epochs."""
    seen = []
    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(_two(pl, seen, None), loader())
    return seen


def gradients_of_parameters_outside_of_the_optimizer(pl, folder):
    """Gradients of parameters that no optimizer has add up until a validation."""
    seen = []
    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(_two(pl, seen, "layer"), loader(), loader(4))
    return seen


def gradients_outside_of_the_optimizer_with_accumulation(pl, folder):
    """They do so with accumulated batches, too."""
    seen = []
    trainer = pl.Trainer(max_epochs=2, accumulate_grad_batches=2, default_root_dir=folder, **QUIET)
    trainer.fit(_two(pl, seen, "layer"), loader())
    return seen


def clipping_knows_the_optimizers_parameters(pl, folder):
    """Clipping is of the parameters that the optimizer has."""
    seen = []
    trainer = pl.Trainer(max_epochs=2, gradient_clip_val=0.01, default_root_dir=folder, **QUIET)
    trainer.fit(_two(pl, seen, "layer"), loader())
    return [one for one in seen if one[0] == "weights"]


def clipping_by_value_knows_the_optimizers_parameters(pl, folder):
    """Clipping by value is of the parameters that the optimizer has."""
    seen = []
    trainer = pl.Trainer(
        max_epochs=1,
        gradient_clip_val=0.01,
        gradient_clip_algorithm="value",
        default_root_dir=folder,
        **QUIET,
    )
    trainer.fit(_two(pl, seen, "layer"), loader())
    return seen


def _manual(pl, seen, every=3, first=False):
    class Manual(regression(pl)):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.manual_backward(self.loss(batch) / every)
            seen.append(["backward", *_shown(self)])
            if (batch_idx + 1) % every == 0:
                optimizer.step()
                if not first:
                    optimizer.zero_grad()

        def on_validation_start(self):
            seen.append(["validation", *_shown(self)])

        def on_train_batch_end(self, *rest):
            seen.append(["weights", *(p.tolist() for p in self.parameters())])

    return Manual()


def a_validation_drops_gradients_that_wait(pl, folder):
    """A validation clears gradients that manual optimization has not stepped on."""
    seen = []
    trainer = pl.Trainer(max_epochs=2, val_check_interval=2, default_root_dir=folder, **QUIET)
    trainer.fit(_manual(pl, seen), loader(), loader(4))
    return seen


def manual_gradients_wait_over_epochs(pl, folder):
    """Gradients of manual optimization wait for their step over the end of an epoch."""
    seen = []
    trainer = pl.Trainer(max_epochs=3, default_root_dir=folder, **QUIET)
    trainer.fit(_manual(pl, seen), loader())
    return seen


def manual_gradients_that_nobody_clears(pl, folder):
    """Gradients that a script never clears add up."""
    seen = []
    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, **QUIET)
    trainer.fit(_manual(pl, seen, every=1, first=True), loader())
    return seen
