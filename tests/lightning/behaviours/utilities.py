"""Functions of `lightning.pytorch.utilities`."""

import importlib
import os
import random
from collections import namedtuple

import numpy as np
import torch
from torch import nn


def _utilities(pl, module=""):
    return importlib.import_module(f"{pl.__name__}.utilities.{module}".rstrip("."))


def grad_norm_names_each_parameter(pl, folder):
    """`grad_norm` gives the norm of each gradient and of all of them as one vector."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(0.5)
    layer(torch.tensor([[1.0, 2.0]])).square().sum().backward()
    grad_norm = _utilities(pl).grad_norm
    two, most = grad_norm(layer, norm_type=2), grad_norm(layer, "inf", group_separator="-")
    return two, most, grad_norm(nn.Linear(2, 2), 1)


def grad_norm_refuses_what_is_no_norm(pl, folder):
    """`grad_norm` raises ValueError for a norm that is not above 0."""
    try:
        _utilities(pl).grad_norm(nn.Linear(1, 1), 0)
    except ValueError:
        return "ValueError"
    return "nothing"


def rank_zero_only_runs_on_rank_0(pl, folder):
    """A function under `rank_zero_only` runs where its ``rank`` is 0, else gives None."""
    rank_zero_only = _utilities(pl).rank_zero_only
    before = rank_zero_only.rank

    @rank_zero_only
    def name(suffix, *, prefix=""):
        """Say it."""
        return prefix + suffix

    try:
        rank_zero_only.rank = 0
        first = name("b", prefix="a")
        rank_zero_only.rank = 1
        second = name("b"), rank_zero_only(lambda: 1, default=7)()
    finally:
        rank_zero_only.rank = before
    return first, second, name.__name__, name.__doc__


def rank_zero_warn_warns_on_rank_0(pl, folder):
    """`rank_zero_warn` and `rank_zero_deprecation` warn, of their categories, on rank 0."""
    import warnings

    utilities = _utilities(pl)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        utilities.rank_zero_warn("beware", category=RuntimeWarning)
        utilities.rank_zero_deprecation("going")
        before, utilities.rank_zero_only.rank = utilities.rank_zero_only.rank, 1
        utilities.rank_zero_warn("nobody")
        utilities.rank_zero_only.rank = before
    return [
        (str(w.message), issubclass(w.category, (RuntimeWarning, DeprecationWarning)))
        for w in said
    ]  # fmt: skip


def warning_cache_says_it_once(pl, folder):
    """`WarningCache` lets each message through once."""
    import warnings

    cache = _utilities(pl, "rank_zero").WarningCache()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for message in ("a", "b", "a"):
            cache.warn(message)
    return [str(warning.message) for warning in said], "a" in cache


def rank_prefixed_message_names_the_rank(pl, folder):
    """`rank_prefixed_message` puts the rank before the message."""
    prefixed = _utilities(pl, "rank_zero").rank_prefixed_message
    return prefixed("hello", 3), prefixed("hello", None)


def move_data_to_device_keeps_the_collection(pl, folder):
    """`move_data_to_device` moves all tensors of a nested collection, and leaves the rest."""
    pair = namedtuple("pair", "a b")
    batch = {"x": [torch.ones(2), "text"], "y": pair(torch.zeros(1), 3), "z": (torch.ones(1),)}
    moved = _utilities(pl).move_data_to_device(batch, torch.device("cpu"))
    return (
        moved["x"][0].tolist(), moved["x"][1], type(moved["y"]).__name__, moved["y"].b,
        type(moved["z"]).__name__,
    )  # fmt: skip


def attribute_dict_has_keys_as_attributes(pl, folder):
    """`AttributeDict` is a dict whose keys are attributes; a missing one is an AttributeError."""
    found = _utilities(pl).AttributeDict(a=1, bb="x")
    found.c = 2
    found.update(d=4)
    del found.a
    try:
        missing = found.nothing
    except AttributeError:
        missing = "AttributeError"
    return dict(found), found.bb, missing, repr(found), isinstance(found, dict)


def is_picklable_tells(pl, folder):
    """`is_picklable` tells whether pickle takes an object."""
    found = _utilities(pl, "parsing").is_picklable
    return found([1, "a"]), found(lambda: 1)


def clean_namespace_removes_what_pickle_cannot_take(pl, folder):
    """`clean_namespace` removes entries that cannot be pickled, in place."""
    hparams = {"a": 1, "f": lambda: 1}
    _utilities(pl, "parsing").clean_namespace(hparams)
    return sorted(hparams)


def parse_class_init_keys_names_the_arguments(pl, folder):
    """`parse_class_init_keys` names self, *args and **kwargs of a constructor."""

    class Model:
        def __init__(this, lr, *rest, named=1, **more):
            pass

    class Plain:
        def __init__(self, lr):
            pass

    found = _utilities(pl, "parsing").parse_class_init_keys
    return found(Model), found(Plain)


def lightning_getattr_looks_into_hparams(pl, folder):
    """`lightning_hasattr`, `_getattr` and `_setattr` look at the model and its hparams."""
    parsing = _utilities(pl, "parsing")

    class Model(pl.LightningModule):
        def __init__(self, lr=0.5):
            super().__init__()
            self.save_hyperparameters()
            self.width = 3

    model = Model()
    parsing.lightning_setattr(model, "lr", 0.25)
    try:
        parsing.lightning_getattr(model, "nothing")
    except AttributeError:
        missing = "AttributeError"
    return (
        parsing.lightning_hasattr(model, "lr"), parsing.lightning_hasattr(model, "nothing"),
        parsing.lightning_getattr(model, "width"), model.hparams.lr, missing,
    )  # fmt: skip


def isolate_rng_gives_the_generators_back(pl, folder):
    """What is drawn within `isolate_rng` moves no generator outside."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    with _utilities(pl, "seed").isolate_rng():
        inside = torch.rand(2).tolist(), np.random.rand(), random.random()
    return inside == (torch.rand(2).tolist(), np.random.rand(), random.random())


def seed_everything_seeds_all_generators(pl, folder):
    """`seed_everything` seeds torch, NumPy and Python, and leaves the seed in the environment."""
    seed = pl.seed_everything(11, workers=True)
    drawn = torch.rand(1).item(), np.random.rand(), random.random()
    return seed, drawn, os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]


def seed_everything_takes_the_seed_of_the_environment(pl, folder):
    """`seed_everything` without a seed takes PL_GLOBAL_SEED, else 0."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    first = pl.seed_everything()
    os.environ["PL_GLOBAL_SEED"] = "7"
    return first, pl.seed_everything(), pl.seed_everything(verbose=False)


def out_of_memory_is_told_from_other_errors(pl, folder):
    """`is_oom_error` knows the errors of memory that has run out."""
    memory = _utilities(pl, "memory")
    texts = [
        "CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. x",
        "DefaultCPUAllocator: can't allocate memory", "something else",
    ]  # fmt: skip
    errors = [RuntimeError(text) for text in texts] + [ValueError(texts[0])]
    return [
        (memory.is_oom_error(e), memory.is_cuda_out_of_memory(e), memory.is_cudnn_snafu(e),
         memory.is_out_of_cpu_memory(e))
        for e in errors
    ]  # fmt: skip


def recursive_detach_detaches_within(pl, folder):
    """`recursive_detach` detaches tensors in nested dicts."""
    x = torch.ones(2, requires_grad=True)
    found = _utilities(pl, "memory").recursive_detach({"a": x * 2, "b": {"c": x * 3}, "d": 1})
    return found["a"].requires_grad, found["b"]["c"].requires_grad, found["d"]


def garbage_collection_cuda_runs_without_a_gpu(pl, folder):
    """`garbage_collection_cuda` may be called on any machine."""
    _utilities(pl, "memory").garbage_collection_cuda()
    return True


def shared_parameters_are_found_and_set(pl, folder):
    """`find_shared_parameters` lists names of one parameter; `set_shared_parameters` ties them."""
    utilities = _utilities(pl)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

    model = Tied()
    found = utilities.find_shared_parameters(model)
    model.b.weight = nn.Parameter(torch.zeros(2, 2))
    untied = utilities.find_shared_parameters(model)
    utilities.set_shared_parameters(model, found)
    return found, untied, model.a.weight is model.b.weight


def is_overridden_tells(pl, folder):
    """`is_overridden` tells whether a class has put a method in place of its base's."""

    class Model(pl.LightningModule):
        def training_step(self, batch, batch_idx):
            return None

    class Watch(pl.Callback):
        def on_train_start(self, trainer, module):
            pass

    found = _utilities(pl, "model_helpers").is_overridden
    raised = []
    for arguments in (("training_step", 1), ("nothing", Model())):
        try:
            found(*arguments)
        except ValueError:
            raised.append("ValueError")
    return (
        found("training_step", Model()), found("validation_step", Model()),
        found("on_train_start", Watch()), found("on_train_end", Watch()),
        found("training_step"), raised,
    )  # fmt: skip


def is_param_in_hook_signature_tells(pl, folder):
    """`is_param_in_hook_signature` asks whether a hook takes an argument, by name or ``*args``."""

    class Hooks:
        def named(self, batch):
            pass

        def starred(self, *args):
            pass

    found = _utilities(pl, "signature_utils").is_param_in_hook_signature
    hooks = Hooks()
    return (
        found(hooks.named, "batch"), found(hooks.named, "other"), found(hooks.starred, "batch"),
        found(hooks.starred, "batch", explicit=True), found(hooks.named, "x", min_args=1),
    )  # fmt: skip


def extract_batch_size_takes_the_first_tensor(pl, folder):
    """`extract_batch_size` is the length of the first tensor in a batch."""
    found = _utilities(pl, "data").extract_batch_size
    batches = [torch.ones(3, 2), {"a": [torch.ones(4)], "b": torch.ones(4, 1)}, torch.tensor(1.0),
               [torch.ones(2), torch.ones(5)]]  # fmt: skip
    try:
        none = found("text")
    except Exception as error:
        none = type(error).__name__
    return [found(batch) for batch in batches], none


def enums_equal_their_texts(pl, folder):
    """Enumerations equal their values in any case, and are made from texts."""
    kind = _utilities(pl).GradClipAlgorithmType
    states = importlib.import_module(pl.__name__ + ".trainer.states")
    return (
        kind("norm") == "NORM", kind.from_str("value").value, kind.supported_type("norm"),
        kind.supported_types(), states.RunningStage.SANITY_CHECKING.evaluating,
        states.RunningStage.TRAINING.dataloader_prefix, states.TrainerFn.FITTING.value,
        states.RunningStage.VALIDATING.dataloader_prefix, states.TrainerStatus("finished").stopped,
        states.TrainerState().finished,
    )  # fmt: skip


def suggested_workers_leave_one_for_the_process(pl, folder):
    """`suggested_max_num_workers` divides the processors; less than one process is refused."""
    found = _utilities(pl).suggested_max_num_workers
    try:
        none = found(0)
    except ValueError:
        none = "ValueError"
    return found(1) >= 1, found(10**6), none


def measure_flops_counts_a_matrix_product(pl, folder):
    """`measure_flops` counts the operations of a forward and of a backward pass."""
    found = _utilities(pl).measure_flops
    with torch.device("meta"):
        layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    return found(layer, lambda: layer(x)), found(layer, lambda: layer(x), lambda y: y.sum())


def _summary(pl, example, **options):
    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 40), nn.BatchNorm1d(40))
            self.head = nn.Linear(40, 2)
            self.own = nn.Parameter(torch.zeros(3))
            self.head.bias.requires_grad = False
            if example:
                self.example_input_array = torch.zeros(5, 8)

        def forward(self, x):
            return self.head(self.net(x))

    model = Model()
    model.net.eval()
    return _utilities(pl, "model_summary").ModelSummary(model, **options)


def model_summary_is_a_table(pl, folder):
    """`ModelSummary` as text is a table of layers, and sums below it."""
    return str(_summary(pl, example=False))


def model_summary_shows_shapes_of_an_example(pl, folder):
    """With `example_input_array` the table has shapes and operations, to any depth."""
    return str(_summary(pl, example=True, max_depth=-1)), str(_summary(pl, True, max_depth=0))


def model_summary_tells_its_numbers(pl, folder):
    """`ModelSummary` has names, types, counts and sizes as properties."""
    found = _summary(pl, example=True, max_depth=2)
    try:
        _summary(pl, example=False, max_depth=-2)
    except ValueError:
        refused = "ValueError"
    return (
        found.layer_names, found.layer_types, found.in_sizes, found.out_sizes, found.param_nums,
        found.total_parameters, found.trainable_parameters, found.model_size, found.total_flops,
        found.total_training_modes, refused,
    )  # fmt: skip


def counts_are_shown_with_units(pl, folder):
    """`get_human_readable_count` shortens to K, M, B and T."""
    found = _utilities(pl, "model_summary").get_human_readable_count
    return [found(n) for n in (0, 123, 999, 1234, 99_999, 100_000, int(2e6), int(3e9), int(5e15))]


def types_are_there_for_annotations(pl, folder):
    """`utilities.types` has what hooks and `configure_optimizers` are annotated with."""
    types = _utilities(pl, "types")
    config = types.LRSchedulerConfig(scheduler=None)
    found = types.OptimizerLRSchedulerConfig(optimizer=1, lr_scheduler=2)
    for name in ("STEP_OUTPUT", "EVAL_DATALOADERS", "TRAIN_DATALOADERS", "OptimizerLRScheduler"):
        assert getattr(types, name) is not None
    return config.interval, config.frequency, config.strict, dict(found)


def misconfiguration_is_an_error_to_raise(pl, folder):
    """`MisconfigurationException` is an exception of scripts."""
    error = _utilities(pl, "exceptions").MisconfigurationException
    try:
        raise error("no")
    except error as caught:
        return str(caught), isinstance(caught, RuntimeError)


def hyperparameters_go_to_yaml_and_csv(pl, folder):
    """`core.saving` writes hyperparameters to YAML and CSV files, and reads them."""
    from argparse import Namespace

    saving = importlib.import_module(pl.__name__ + ".core.saving")
    values = {"lr": 0.1, "name": "x", "layers": [1, 2]}
    saving.save_hparams_to_yaml(folder / "h.yaml", Namespace(**values))
    saving.save_hparams_to_tags_csv(folder / "h.csv", values)
    updated = {"a": {"b": 1, "c": 2}, "d": 1}
    saving.update_hparams(updated, {"a": {"b": 5}, "e": 6})
    try:
        saving.save_hparams_to_yaml(folder / "nowhere" / "h.yaml", values)
    except RuntimeError:
        nowhere = "RuntimeError"
    return (
        dict(saving.load_hparams_from_yaml(folder / "h.yaml")),
        saving.load_hparams_from_tags_csv(folder / "h.csv"),
        saving.load_hparams_from_yaml(folder / "none.yaml"), updated, nowhere,
    )  # fmt: skip


def merge_dicts_puts_values_together(pl, folder):
    """`merge_dicts` puts the values of a key together by a function, the mean by default."""
    merge = importlib.import_module(pl.__name__ + ".loggers.logger").merge_dicts
    return merge([{"a": 1.0, "b": 2, "d": {"x": 1}}, {"a": 3.0, "d": {"x": 5, "y": 2}}],
                 agg_key_funcs={"b": max, "d": {"x": sum}})  # fmt: skip


def dummy_logger_takes_any_call(pl, folder):
    """`DummyLogger` takes metrics, hyperparameters and any call of its experiment."""
    logger = importlib.import_module(pl.__name__ + ".loggers.logger").DummyLogger()
    logger.log_metrics({"a": 1}, step=1)
    logger.log_hyperparams({"a": 1})
    logger.experiment.add_image(1, 2)
    return logger.name, logger.version, isinstance(logger, type(logger[0]))
