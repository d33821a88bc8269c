"""What to write in place of the names of Lightning's that have no counterpart.

By name, or by module and name where two modules mean different things by it.
"""

from collections.abc import Mapping

_LOOP = (
    "the trainer's loop cannot be exchanged, since a resume has to find it as it was. Use hooks of "
    "the module or a callback, or automatic_optimization=False with self.optimizers()"
)
_INSIDE = "it is a part of the trainer's inside; ask the Trainer's public properties"
_TPU = "there is nothing for TPUs; use accelerator='cpu', 'gpu' or 'mps'"
_HPU = "there is nothing for Habana's devices; use accelerator='cpu', 'gpu' or 'mps'"
_ENVIRONMENT = (
    "the cluster is whatever has started the processes. Start them with `torchrun`, "
    "`python -m rekindle.launch` or a TrainingJob, and remove it from plugins="
)
_STORE = (
    "checkpoints are written by the trainer's own store, beside the training. Say where with "
    "Trainer(default_root_dir=...), a directory or an s3:// URL, and remove it from plugins="
)
_FILES = (
    "checkpoints are read by Trainer.fit(ckpt_path=...) and LightningModule.load_from_checkpoint, "
    "files of Lightning's as they are"
)
_LAUNCHER = "processes are started by `torchrun`, `python -m rekindle.launch` or a TrainingJob"
_BAR = (
    "define configure_columns(self, trainer) in a class derived from RichProgressBar, with columns "
    "of rich.progress"
)
_PRUNING = "use torch.nn.utils.prune in on_train_epoch_end of a callback"
_DEEPSPEED = "deepspeed itself is not used: DeepSpeedStrategy runs on FSDP2"


def _precision(flag: str) -> str:
    return f"write Trainer(precision={flag!r})"


INSTEAD: Mapping[str, str] = {
    "AcceleratorRegistry": "accelerator= is 'auto', 'cpu', 'gpu' or 'mps'",
    "HPUAccelerator": _HPU,
    "TPUAccelerator": _TPU,
    "XLAAccelerator": _TPU,
    "get_nvidia_gpu_stats": "use the callback DeviceStatsMonitor, or torch.cuda.memory_stats",
    # Callbacks.
    "ModelPruning": _PRUNING,
    "BatchesProcessedColumn": _BAR,
    "CustomBarColumn": _BAR,
    "CustomInfiniteTask": _BAR,
    "CustomProgress": _BAR,
    "CustomTimeColumn": _BAR,
    "MetricsTextColumn": _BAR,
    "ProcessingSpeedColumn": _BAR,
    "Tqdm": "take tqdm.auto.tqdm, for example in init_train_tqdm of a class derived from "
    "TQDMProgressBar",
    # Core.
    "do_nothing_closure": "call optimizer.step() without a closure",
    # Loggers.
    "LitLogger": "use MLFlowLogger, WandbLogger, CometLogger, TensorBoardLogger or CSVLogger",
    "ExperimentWriter": "use CSVLogger, and its log_metrics",
    # Loops and what is inside the trainer.
    **dict.fromkeys(
        (
            "AbstractClosure",
            "Closure",
            "ClosureResult",
            "ManualResult",
            "OutputResult",
            "RestartStage",
            "check_finite_loss",
            "_AutomaticOptimization",
            "_EvaluationLoop",
            "_FitLoop",
            "_Loop",
            "_ManualOptimization",
            "_PredictionLoop",
            "_TrainingEpochLoop",
        ),
        _LOOP,
    ),
    **dict.fromkeys(
        (
            "_AcceleratorConnector",
            "_CallbackConnector",
            "_CheckpointConnector",
            "_DataConnector",
            "_DataFetcher",
            "_DataLoaderIterDataFetcher",
            "_LoggerConnector",
            "_PrefetchDataFetcher",
            "_ResultCollection",
            "_runif_reasons",
            "_SignalConnector",
        ),
        _INSIDE,
    ),
    "UnrepeatedDistributedSampler": "the trainer deals out the samples, none twice; give the "
    "DataLoader no sampler",
    "UnrepeatedDistributedSamplerWrapper": "the trainer deals out the samples, none twice; give "
    "the DataLoader your own sampler",
    "prepare_for_backward": "the trainer sums gradients by itself",
    # Plugins.
    **dict.fromkeys(
        ("AsyncCheckpointIO", "CheckpointIO", "TorchCheckpointIO", "XLACheckpointIO"), _STORE
    ),
    **dict.fromkeys(
        (
            "ClusterEnvironment",
            "KubeflowEnvironment",
            "LSFEnvironment",
            "LightningEnvironment",
            "MPIEnvironment",
            "SLURMEnvironment",
            "TorchElasticEnvironment",
            "XLAEnvironment",
        ),
        _ENVIRONMENT,
    ),
    "LayerSync": "write Trainer(sync_batchnorm=True)",
    "TorchSyncBatchNorm": "write Trainer(sync_batchnorm=True)",
    "BitsandbytesPrecision": "train with Trainer(precision='bf16-mixed') or 'fp8', and quantize "
    "the trained model",
    "DeepSpeedPrecision": _precision("bf16-mixed"),
    "DoublePrecision": _precision("64-true"),
    "LightningDoublePrecisionModule": _precision("64-true"),
    "FSDPPrecision": _precision("bf16-mixed"),
    "FSDPMixedPrecisionPlugin": _precision("bf16-mixed"),
    "HalfPrecision": _precision("bf16-true"),
    "Precision": "write Trainer(precision='32-true'), '64-true', 'bf16-true', 'bf16-mixed', "
    "'16-mixed' or 'fp8'",
    "TransformerEnginePrecision": _precision("fp8"),
    "XLAPrecision": _TPU,
    "BitsandbytesPrecisionPlugin": "train with Trainer(precision='bf16-mixed') or 'fp8', and "
    "quantize the trained model",
    "DeepSpeedPrecisionPlugin": _precision("bf16-mixed"),
    "DoublePrecisionPlugin": _precision("64-true"),
    "FSDPPrecisionPlugin": _precision("bf16-mixed"),
    "HalfPrecisionPlugin": _precision("bf16-true"),
    "PrecisionPlugin": "write Trainer(precision='32-true'), '64-true', 'bf16-true', "
    "'bf16-mixed', '16-mixed' or 'fp8'",
    "TransformerEnginePrecisionPlugin": _precision("fp8"),
    "XLAPrecisionPlugin": _TPU,
    # Profilers.
    "XLAProfiler": _TPU,
    "RegisterRecordFunction": "use Trainer(profiler='pytorch'), and torch.profiler.record_function",
    "ScheduleWrapper": "give PyTorchProfiler(wait=1, warmup=1, active=3)",
    # Strategies.
    "ModelParallelStrategy": "write Trainer(mesh={'dp': data_parallel_size, 'tp': "
    "tensor_parallel_size}), strategy=FSDP2(wrap={Block}) for what is gathered at a time, and "
    "build the layers whole, in configure_model or __init__. What parallelize_module was given, "
    "{'net.0': ColwiseParallel(), ...}, is returned by the module's tensor_parallel_plan(self); "
    "the trainer calls parallelize_module and fully_shard, so leave both out",
    "ParallelStrategy": "write Trainer(strategy='ddp') or FSDP2(); see rekindle.strategies",
    "SingleDeviceStrategy": "write Trainer(accelerator='cpu' or 'gpu', devices=1)",
    "SingleDeviceXLAStrategy": _TPU,
    "StrategyRegistry": "strategy= is 'auto', 'ddp', 'fsdp' or an object of rekindle.strategies; "
    "others are registered as entry points, see rekindle.plugins",
    "XLAStrategy": _TPU,
    "remove_module_hooks": _DEEPSPEED,
    **dict.fromkeys(
        (
            "_Launcher",
            "_MultiProcessingLauncher",
            "_SubprocessScriptLauncher",
            "_XLALauncher",
        ),
        _LAUNCHER,
    ),
    # Utilities.
    "collect_init_args": "call self.save_hyperparameters()",
    "get_init_args": "call self.save_hyperparameters()",
    "save_hyperparameters": "call self.save_hyperparameters()",
    "is_shared_filesystem": "checkpoints need a root that all processes see, which fit checks",
    "has_len_all_ranks": "the trainer asks the dataset for its length",
    "convert_zero_checkpoint_to_fp32_state_dict": _DEEPSPEED + "; " + _FILES,
    "ds_checkpoint_dir": _DEEPSPEED,
    "DeepSpeedLayerSummary": _DEEPSPEED,
    "DeepSpeedSummary": _DEEPSPEED,
    "deepspeed_param_size": _DEEPSPEED,
    "migrate_checkpoint": _FILES,
    "pl_legacy_patch": _FILES,
    "main": _FILES,
    "download_model_from_registry": "give ckpt_path= a file or a URI",
    "find_model_local_ckpt_path": "give ckpt_path= a file or a URI",
    # What Lightning itself has given up.
    "compare_version": "use packaging.version",
    "HPUCheckpointIO": _HPU,
    "HPUParallelStrategy": _HPU,
    "HPUPrecisionPlugin": _HPU,
    "SingleHPUStrategy": _HPU,
    "SingleTPUStrategy": _TPU,
    "TPUBf16PrecisionPlugin": _TPU,
    "TPUPrecisionPlugin": _TPU,
    "XLABf16PrecisionPlugin": _TPU,
}
