"""`ServableModule`: a model that says how it is asked over HTTP, and the callback that tries it.

The callback asks once, when training starts: a model that cannot be served is found out before it
is trained. It draws from no generator of the run, so a run with it is the run without it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

from rekindle.callback import Callback
from rekindle.pytorch.serving import Response, server, serving
from rekindle.pytorch.utilities.exceptions import MisconfigurationException
from rekindle.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from rekindle.pytorch.utilities.seed import isolate_rng

if TYPE_CHECKING:
    from rekindle.trainer.trainer import Trainer


class ServableModule(ABC, torch.nn.Module):
    """What a module derives from, beside its own base, to be servable."""

    @abstractmethod
    def configure_payload(self) -> dict[str, Any]:
        """A request to try it with; its field ``"body"`` has `serve_step`'s arguments by name."""

    @abstractmethod
    def configure_serialization(
        self,
    ) -> tuple[dict[str, Callable[..., Any]], dict[str, Callable[..., Any]]]:
        """By name, what makes tensors of a request's values, and values of `serve_step`'s."""

    @abstractmethod
    def serve_step(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> dict[str, torch.Tensor]:
        """From a request to an answer."""

    @abstractmethod
    def configure_response(self) -> dict[str, Any]:
        """The answer that is right for `configure_payload`."""


class ServableModuleValidator(Callback):
    """When training starts, serves a copy of the model and asks it what it should know."""

    def __init__(
        self,
        optimization: Literal["trace", "script", "onnx", "tensorrt"] | None = None,
        server: Literal["fastapi", "ml_server", "torchserve", "sagemaker"] = "fastapi",
        host: str = "127.0.0.1",
        port: int = 8080,
        timeout: int = 20,
        exit_on_failure: bool = True,
    ) -> None:
        """Serve on `host` and `port` (0: any that is free), in this process, on rank 0.

        There is no `optimization` and one `server`: what a FastAPI application answers, answered
        by Python's own HTTP server. The server has `timeout` seconds to be there. An answer other
        than `configure_response` ends the run; an error in `serve_step` does, unless
        `exit_on_failure` is False: then it is a warning, and `successful` is None.
        """
        if optimization is not None:
            raise NotImplementedError(
                f"ServableModuleValidator(optimization={optimization!r}): allowed is None; to try "
                f"a converted model, load it in configure_serialization's place"
            )
        if server != "fastapi":
            raise NotImplementedError(
                f"ServableModuleValidator(server={server!r}): allowed is 'fastapi'"
            )
        self.optimization = optimization
        self.server = server
        self.host = host
        self.port = port
        self.timeout = timeout
        self.exit_on_failure = exit_on_failure
        self.resp: Response | None = None
        """The newest answer."""

    @rank_zero_only
    def on_train_start(self, trainer: "Trainer", pl_module: Any) -> None:
        """Serve the model, and ask."""
        if not isinstance(pl_module, ServableModule):
            raise TypeError(
                f"ServableModuleValidator: {type(pl_module).__name__} is no ServableModule; derive "
                f"it from LightningModule and rekindle.pytorch.serve.ServableModule"
            )
        payload = pl_module.configure_payload()
        if "body" not in payload:
            raise MisconfigurationException(
                f"{type(pl_module).__name__}.configure_payload has to return a dictionary with "
                f"'body', the arguments of serve_step by name; it returned {payload!r}"
            )
        with isolate_rng():
            self.resp = self._answer(pl_module, payload)
        if self.resp.ok:
            expected = pl_module.configure_response()
            if self.resp.json() != expected:
                raise MisconfigurationException(
                    f"the model answers {self.resp.json()!r}, and configure_response expects "
                    f"{expected!r}"
                )
            trainer.print(f"the model is servable: it answers {self.resp.json()!r}")
            return
        words = f"the model is not servable, status {self.resp.status_code}:\n{self.resp.error}"
        if self.exit_on_failure:
            raise MisconfigurationException(words)
        rank_zero_warn(words)

    def _answer(self, module: Any, payload: dict[str, Any]) -> Response:
        try:
            running = server(serving(module), self.host, self.port)
            with running as client:
                if not client.get("/ping", timeout=self.timeout).ok:
                    raise MisconfigurationException("the server does not answer /ping")
                return client.post("/serve", payload)
        except OSError as error:
            raise MisconfigurationException(
                f"ServableModuleValidator(host={self.host!r}, port={self.port}): {error}. Give "
                f"another port; 0 is any that is free."
            ) from error

    @property
    def successful(self) -> bool | None:
        """Whether the model was served; None before, and after an error."""
        return self.resp.status_code == 200 if self.resp else None

    def state_dict(self) -> dict[str, Any]:
        """What came out, for those who read the checkpoint."""
        return {
            "successful": self.successful,
            "optimization": self.optimization,
            "server": self.server,
        }
