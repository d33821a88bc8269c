"""`ModelSummary` and `RichModelSummary`: a table of the model's layers, once, when `fit` begins.

Beside one of these the trainer leaves out its own line about the model's size. Numbers are those of
the whole model, whatever it is sharded over.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rekindle.callback import Callback
from rekindle.model.summary import ModelSummary as Summary
from rekindle.model.summary import table, totals

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer


class ModelSummary(Callback):
    """Print the layers down to a depth (-1: all, 0: nothing), with parameters and operations.

    A class derived from it may define `summarize`, which gets `summarize_kwargs` too.
    """

    # It holds nothing, so there is nothing to find in a checkpoint.
    optional = True
    summarizes = True

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        self._max_depth, self._options = max_depth, summarize_kwargs

    def on_fit_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """Print the table, on rank 0; a run that goes on prints it again."""
        if not self._max_depth:
            return
        summary = Summary(pl_module, max_depth=self._max_depth)
        if trainer.is_global_zero:
            self.summarize(
                summary.columns(),
                summary.total_parameters,
                summary.trainable_parameters,
                summary.model_size,
                summary.total_training_modes,
                total_flops=summary.total_flops,
                **self._options,
            )

    @staticmethod
    def summarize(
        summary_data: Sequence[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: Mapping[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print titles and texts of the columns, and the sums."""
        text = table(
            summary_data,
            total_parameters,
            trainable_parameters,
            model_size,
            total_training_modes,
            total_flops,
        )
        print(text, flush=True)


class RichModelSummary(ModelSummary):
    """The same, drawn by rich; `summarize_kwargs` may hold ``header_style``.

    Raises ModuleNotFoundError when rich is not installed.
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        try:
            import rich.table  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "RichModelSummary needs the package rich, which is not installed: pip install rich",
                name=error.name,
            ) from error
        super().__init__(max_depth, **summarize_kwargs)

    @staticmethod
    def summarize(
        summary_data: Sequence[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: Mapping[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Draw the table, and the sums."""
        from rich import get_console
        from rich.table import Table

        drawn = Table(header_style=summarize_kwargs.get("header_style", "bold magenta"))
        for title, _ in summary_data:
            numbers = title not in (" ", "Name", "Type", "Mode")
            drawn.add_column(title, justify="right" if numbers else "left", no_wrap=title == "Name")
        for row in zip(*(column for _, column in summary_data), strict=True):
            drawn.add_row(*row)
        console = get_console()
        console.print(drawn)
        for figure, words in totals(
            total_parameters, trainable_parameters, model_size, total_training_modes, total_flops
        ):
            console.print(f"[bold]{words}[/]: {figure}")
