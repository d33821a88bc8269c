"""Models that say how they are asked over HTTP, and the callback that asks them."""

import copy
import importlib
import socket
import threading

import torch
from small import QUIET, loader, regression, weights


def _serve(pl):
    return importlib.import_module(f"{pl.__name__}.serve")


def _free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _servable(pl, answer=None):
    class Servable(regression(pl), _serve(pl).ServableModule):
        def configure_payload(self):
            return {"body": {"x": [1.0, 2.0, 3.0, 4.0]}}

        def configure_serialization(self):
            def deserialize(value):
                return torch.tensor(value)[None]

            def serialize(value):
                return [round(v, 3) for v in value.flatten().tolist()]

            return {"x": deserialize}, {"y": serialize, "training": bool}

        def serve_step(self, x):
            self.layer.bias.data += 1.0
            torch.rand(3)
            return {"y": self(x), "training": torch.tensor(self.training)}

        def configure_response(self):
            if answer is not None:
                return answer
            layer = self.layer
            x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
            value = (x @ layer.weight.T + layer.bias + 1.0).item()
            return {"y": [round(value, 3)], "training": False}

    return Servable


class _Thread:
    """A copy in a thread, where Lightning forks: a fork of a process with threads may hang."""

    def __init__(self, target, args):
        model, *rest = args
        self._thread = threading.Thread(
            target=target, args=(copy.deepcopy(model), *rest), daemon=True
        )

    def start(self):
        self._thread.start()

    def kill(self):
        """It ends with the tests."""


def _fit(pl, model, **options):
    module = importlib.import_module(f"{pl.__name__}.serve.servable_module_validator")
    if hasattr(module, "Process"):
        module.Process = _Thread
    validator = _serve(pl).ServableModuleValidator(port=_free(), **options)
    trainer = pl.Trainer(callbacks=[validator], max_epochs=1, **QUIET)
    try:
        trainer.fit(model, loader(4))
    except Exception as error:
        return validator, type(error).__name__
    return validator, "trained"


def a_model_is_asked_when_training_starts(pl, folder):
    """`ServableModuleValidator` serves the model, sends its payload and compares the answer."""
    validator, ended = _fit(pl, _servable(pl)())
    return ended, validator.resp.json(), validator.resp.status_code, validator.state_dict()


def serving_leaves_the_model_as_it_is(pl, folder):
    """It is a copy that is served: what `serve_step` changes, and its mode, are the copy's."""
    seen = []

    class Watched(_servable(pl)):
        def training_step(self, batch, batch_idx):
            if not seen:
                seen.extend([self.training, weights(self)])
            return super().training_step(batch, batch_idx)

    model = Watched()
    _, ended = _fit(pl, model)
    return ended, seen, weights(model)


def another_answer_ends_training(pl, folder):
    """An answer that is not that of `configure_response` is an error, before any step."""
    model = _servable(pl, answer={"y": []})()
    validator, ended = _fit(pl, model, exit_on_failure=False)
    return ended != "trained", validator.successful, weights(model)


def an_error_of_serve_step_ends_training(pl, folder):
    """A model that cannot answer is an error."""

    class Broken(_servable(pl)):
        def serve_step(self, x):
            raise RuntimeError("broken")

    validator, ended = _fit(pl, Broken())
    return ended != "trained", validator.resp.status_code, validator.successful


def a_payload_has_a_body(pl, folder):
    """`configure_payload` without ``"body"`` is an error."""

    class Bodiless(_servable(pl)):
        def configure_payload(self):
            return {"x": 1}

    return _fit(pl, Bodiless())[1] != "trained"


def a_model_that_is_not_servable_is_an_error(pl, folder):
    """The callback takes a `ServableModule` only."""
    return _fit(pl, regression(pl)())[1]


def all_four_methods_are_needed(pl, folder):
    """A `ServableModule` defines payload, serialization, step and response, or cannot be made."""

    class Half(regression(pl), _serve(pl).ServableModule):
        def configure_payload(self):
            return {"body": {}}

    try:
        Half()
    except TypeError:
        return "TypeError"


def other_servers_are_not_there(pl, folder):
    """There is no other server than FastAPI's way, and no optimization."""
    found = []
    for options in ({"server": "torchserve"}, {"optimization": "trace"}):
        try:
            _serve(pl).ServableModuleValidator(**options)
        except NotImplementedError:
            found.append(next(iter(options)))
    return found
