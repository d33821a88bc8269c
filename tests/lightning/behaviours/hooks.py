"""When hooks of module and callbacks run in `fit`, and what they are told."""

import importlib

import torch
from small import QUIET, loader, regression, weights


def _fit(pl, folder, model, train=None, val=None, **flags):
    trainer = pl.Trainer(default_root_dir=folder, **({"max_epochs": 1} | QUIET | flags))
    trainer.fit(model, train or loader(), val)
    return trainer


def _recording(base, names, seen, owner):
    """A subclass that notes the hooks of these names, and goes on with the base's."""

    def method(name):
        def noted(self, *arguments, **named):
            seen.append(f"{owner}.{name}")
            return getattr(base, name)(self, *arguments, **named)

        return noted

    return type("Recording", (base,), {name: method(name) for name in names})


_STEP = [
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
]
_OWN = [
    "training_step",
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "configure_gradient_clipping",
    "lr_scheduler_step",
]


def hooks_of_a_step_run_in_order(pl, folder):
    """Callback before module; zero_grad before backward, clipping before the step."""
    seen = []
    model = _recording(regression(pl), [*_STEP, *_OWN], seen, "module")()
    callback = _recording(pl.Callback, _STEP, seen, "callback")()
    _fit(pl, folder, model, loader(4), callbacks=[callback])
    return seen


def hooks_of_accumulated_batches_run_in_order(pl, folder):
    """Each batch has its start and end; gradients are cleared with the first, used by the last."""
    seen = []
    model = _recording(regression(pl), [*_STEP, *_OWN], seen, "module")()
    _fit(pl, folder, model, loader(8), accumulate_grad_batches=2)
    return seen, weights(model)


def a_bare_callback_sees_the_same_order(pl, folder):
    """The order does not depend on what the module overrides."""
    seen = []
    names = [name for name in _STEP if name != "on_before_zero_grad"]
    callback = _recording(pl.Callback, names, seen, "callback")()
    model = regression(pl)()
    _fit(pl, folder, model, loader(8), accumulate_grad_batches=2, callbacks=[callback])
    return seen, weights(model)


def optimizer_step_gets_epoch_batch_optimizer_and_closure(pl, folder):
    """`optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)`, once per batch."""
    seen = []

    class Own(regression(pl)):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            before = weights(self)
            loss = optimizer_closure()
            seen.append((epoch, batch_idx, float(loss), weights(self) == before))
            optimizer.step()
            seen.append((weights(self) == before, self.trainer.global_step))

    model = Own()
    trainer = _fit(pl, folder, model, max_epochs=2)
    return seen, weights(model), trainer.global_step


def optimizer_step_may_warm_the_rate_up(pl, folder):
    """A rate that `optimizer_step` sets after the step holds for the next one."""

    class Warm(regression(pl)):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 5)

    model = Warm()
    _fit(pl, folder, model, max_epochs=2)
    return weights(model)


def optimizer_step_may_leave_steps_out(pl, folder):
    """Where only the closure is called, weights stay; the next closure clears its gradients."""

    class Every(regression(pl)):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx % 2 == 0:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    model = Every()
    trainer = _fit(pl, folder, model, max_epochs=2)
    return weights(model), trainer.global_step


def optimizer_step_of_super_steps(pl, folder):
    """`super().optimizer_step` does what is done without the hook."""

    class Super(regression(pl)):
        def optimizer_step(self, *arguments):
            super().optimizer_step(*arguments)

    model = Super()
    _fit(pl, folder, model)
    return weights(model)


def optimizer_step_has_to_run_its_closure(pl, folder):
    """An `optimizer_step` that does not run its closure is an error."""

    class Without(regression(pl)):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            pass

    try:
        _fit(pl, folder, Without())
    except Exception as error:
        return "closure" in str(error)
    return "none"


def optimizer_zero_grad_may_keep_gradients(pl, folder):
    """Gradients that `optimizer_zero_grad` does not clear add up."""
    seen = []

    class Keeps(regression(pl)):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            seen.append((epoch, batch_idx))
            if batch_idx % 2 == 0:
                optimizer.zero_grad()

    model = Keeps()
    _fit(pl, folder, model, max_epochs=2)
    return seen, weights(model)


def backward_is_called_with_the_loss(pl, folder):
    """`backward(loss)` does the backward pass, of each batch, with its share of the loss."""
    seen = []

    class Own(regression(pl)):
        def backward(self, loss):
            seen.append(float(loss))
            (2 * loss).backward()

    model = Own()
    _fit(pl, folder, model, accumulate_grad_batches=2)
    return seen, weights(model)


def on_before_backward_gets_the_loss(pl, folder):
    """`on_before_backward(loss)` sees the loss that is differentiated."""
    seen = []

    class Own(regression(pl)):
        def on_before_backward(self, loss):
            seen.append((float(loss), loss.requires_grad))

        def on_after_backward(self):
            seen.append(self.layer.weight.grad.tolist())

    _fit(pl, folder, Own(), accumulate_grad_batches=2)
    return seen


def on_before_zero_grad_sees_the_gradients_of_the_step_before(pl, folder):
    """Gradients are there until they are cleared, after the next `training_step`."""
    seen = []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            gradient = pl_module.layer.weight.grad
            seen.append(None if gradient is None else gradient.tolist())

    _fit(pl, folder, regression(pl)(), max_epochs=2, callbacks=[Watch()])
    return seen


def on_train_batch_end_sees_the_gradients_of_its_step(pl, folder):
    """Gradients are those that the optimizer used, also clipped."""
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.layer.weight.grad.tolist())

    flags = {"gradient_clip_val": 0.5, "callbacks": [Watch()]}
    _fit(pl, folder, regression(pl)(), **flags)
    return seen


def configure_gradient_clipping_gets_the_flags(pl, folder):
    """`configure_gradient_clipping` takes the place of the trainer's clipping."""
    seen = []

    class Own(regression(pl)):
        def configure_gradient_clipping(
            self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
        ):
            seen.append((type(optimizer).__name__, gradient_clip_val))
            self.clip_gradients(
                optimizer,
                gradient_clip_val=gradient_clip_val,
                gradient_clip_algorithm="value",
            )

    model = Own()
    _fit(pl, folder, model, gradient_clip_val=0.3)
    return seen, weights(model)


def configure_gradient_clipping_runs_without_a_flag(pl, folder):
    """It is called when the trainer clips nothing, with None."""
    seen = []

    class Own(regression(pl)):
        def configure_gradient_clipping(
            self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
        ):
            seen.append((gradient_clip_val, gradient_clip_algorithm))
            self.clip_gradients(optimizer, gradient_clip_val=0.2, gradient_clip_algorithm="norm")

    model = Own()
    _fit(pl, folder, model)
    return seen, weights(model)


def clip_gradients_beside_the_flag_is_refused(pl, folder):
    """Two values for clipping are an error."""

    class Own(regression(pl)):
        def configure_gradient_clipping(self, optimizer, **named):
            self.clip_gradients(optimizer, gradient_clip_val=0.2)

    try:
        _fit(pl, folder, Own(), gradient_clip_val=0.3)
    except Exception as error:
        return "use only one" in str(error).lower() or "use one" in str(error).lower()
    return "none"


def lr_scheduler_step_gets_scheduler_and_metric(pl, folder):
    """`lr_scheduler_step(scheduler, metric)` is called when a scheduler is due."""
    seen = []

    class Own(regression(pl)):
        def lr_scheduler_step(self, scheduler, metric):
            seen.append((type(scheduler).__name__, metric))
            scheduler.step()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            step = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
            epoch = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": step, "interval": "step", "frequency": 2}, epoch]

    model = Own()
    _fit(pl, folder, model, max_epochs=2)
    return seen, weights(model)


def minus_one_from_on_train_batch_start_ends_the_epoch(pl, folder):
    """-1 skips the batch and the rest of the epoch, without validation; epochs go on."""
    seen = []

    class Stops(regression(pl)):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append(("start", self.current_epoch, batch_idx))
            return -1 if batch_idx == 2 else None

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append(("end", batch_idx))

        def on_validation_start(self):
            seen.append("validation")

        def on_train_epoch_end(self):
            seen.append(("epoch", self.current_epoch, self.trainer.global_step))

    model = Stops()
    trainer = _fit(pl, folder, model, val=loader(4), max_epochs=2)
    return seen, weights(model), trainer.global_step, trainer.current_epoch


def minus_one_from_a_callback_means_nothing(pl, folder):
    """Only the module's answer counts."""

    class Stops(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            return -1

    model = regression(pl)()
    trainer = _fit(pl, folder, model, callbacks=[Stops()])
    return weights(model), trainer.global_step


def outputs_of_a_loss_are_a_dictionary(pl, folder):
    """`on_train_batch_end` gets the detached loss under its name."""
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((sorted(outputs), float(outputs["loss"]), outputs["loss"].requires_grad))
            seen.append((batch_idx, trainer.global_step, batch[0].tolist()))

    _fit(pl, folder, regression(pl)(), callbacks=[Watch()])
    return seen


def outputs_under_accumulation_have_their_share(pl, folder):
    """With `accumulate_grad_batches` the loss of outputs is divided by it."""
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((batch_idx, trainer.global_step, float(outputs["loss"])))

    _fit(pl, folder, regression(pl)(), accumulate_grad_batches=2, callbacks=[Watch()])
    return seen


def outputs_hold_all_of_a_dictionary(pl, folder):
    """`training_step` may return any dictionary with a loss; hooks get all of it."""
    seen = []

    class Rich(regression(pl)):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return {"loss": loss, "seen": [batch_idx], "wide": torch.ones(2, 2), "text": "x"}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append({k: v for k, v in outputs.items() if k != "loss"})
            seen.append(outputs["loss"].requires_grad)

    trainer = _fit(pl, folder, Rich())
    return seen, sorted(trainer.callback_metrics)


def a_dictionary_needs_a_loss(pl, folder):
    """A dictionary without ``loss`` is an error."""

    class Poor(regression(pl)):
        def training_step(self, batch, batch_idx):
            return {"other": self.loss(batch)}

    try:
        _fit(pl, folder, Poor())
    except Exception as error:
        return "loss" in str(error)
    return "none"


def none_from_training_step_leaves_the_batch_out(pl, folder):
    """None skips a batch: no backward pass, nothing changes, hooks get an empty dictionary."""
    seen = []

    class Skips(regression(pl)):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in (0, 2) else super().training_step(batch, batch_idx)

        def on_before_backward(self, loss):
            seen.append("backward")

        def on_before_optimizer_step(self, optimizer):
            seen.append("step")

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append((batch_idx, sorted(outputs), self.trainer.global_step))

    model = Skips()
    trainer = _fit(pl, folder, model, max_epochs=2)
    return seen, weights(model), trainer.global_step


def none_within_accumulated_batches_adds_nothing(pl, folder):
    """The other batches of the step keep their weights."""

    class Skips(regression(pl)):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    model = Skips()
    _fit(pl, folder, model, accumulate_grad_batches=2)
    return weights(model)


def lbfgs_works_in_automatic_optimization(pl, folder):
    """An optimizer that evaluates its closure several times gets one."""
    seen = []

    class Quasi(regression(pl)):
        def training_step(self, batch, batch_idx):
            seen.append(batch_idx)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4)

    model = Quasi()
    trainer = _fit(pl, folder, model, loader(8, 4), max_epochs=2)
    return seen, weights(model), trainer.global_step


def an_optimizer_may_want_its_closure(pl, folder):
    """A custom optimizer whose `step` needs a closure is given it, and may run it twice."""

    class Sharp(torch.optim.SGD):
        def step(self, closure):
            with torch.enable_grad():
                closure()
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(parameter.grad, alpha=0.01)
            with torch.enable_grad():
                loss = closure()
            super().step()
            return loss

    class Model(regression(pl)):
        def configure_optimizers(self):
            return Sharp(self.parameters(), lr=0.1)

    model = Model()
    _fit(pl, folder, model)
    return weights(model)


def lbfgs_with_accumulation(pl, folder):
    """Of several batches a closure could evaluate only the last one again."""

    class Quasi(regression(pl)):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4)

    model = Quasi()
    _fit(pl, folder, model, accumulate_grad_batches=2)
    return weights(model)


def the_manual_form_calls_its_hooks(pl, folder):
    """backward and its hooks, and those of the optimizer's step, but not of zero_grad."""
    seen = []

    class Own(_recording(regression(pl), [*_STEP, *_OWN], seen, "module")):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            return {"anything": batch_idx}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append(outputs)

    model = Own()
    _fit(pl, folder, model, loader(4))
    return seen, weights(model)


def on_train_epoch_end_of_callbacks_that_judge_comes_last(pl, folder):
    """What the module logs in `on_train_epoch_end` is there for EarlyStopping."""
    callbacks = importlib.import_module(pl.__name__ + ".callbacks")

    class Logs(regression(pl)):
        def on_train_epoch_end(self):
            self.log("late", float(self.current_epoch))

    stopping = callbacks.EarlyStopping("late", mode="min", patience=2)
    model = Logs()
    trainer = _fit(pl, folder, model, max_epochs=6, callbacks=[stopping])
    return trainer.current_epoch, stopping.wait_count


def training_step_may_take_the_batch_alone(pl, folder):
    """`training_step(batch)` is called without a number."""

    class Short(regression(pl)):
        def training_step(self, batch):
            return self.loss(batch)

    model = Short()
    _fit(pl, folder, model)
    return weights(model)


def epoch_end_hooks_of_old_versions_are_refused(pl, folder):
    """`training_epoch_end` was removed; defining it is an error that names its successor."""

    class Old(regression(pl)):
        def training_epoch_end(self, outputs):
            pass

    try:
        _fit(pl, folder, Old())
    except Exception as error:
        return "on_train_epoch_end" in str(error)
    return "none"


REFUSED = {"lbfgs_with_accumulation": "LBFGS evaluates the loss .* accumulate_grad_batches=1"}
