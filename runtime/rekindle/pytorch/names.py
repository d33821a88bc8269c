"""Where Lightning's names live, for each of its modules.

A row of `NAMES` has homes and, separated by spaces, the names that live there; ``A=b`` is the
home's ``b``, ``*`` all of its public names, and the home ``""`` says that a name is refused when it
is used, with the words in `refusals.INSTEAD`. Modules with a file of their own need no row. A test
holds that no public name of the installed Lightning is missing, and that no row is stale.
"""

from collections.abc import Mapping

_CALLBACKS = "rekindle.callbacks"
_LOGGERS = "rekindle.loggers"
_STRATEGIES = "rekindle.strategies"
_PROFILERS = "rekindle.profilers"
_OWN = "rekindle.pytorch"
_UTILITIES = f"{_OWN}.utilities"
_PRECISION = "rekindle.model.precision"

_GIVEN_UP = (
    "BitsandbytesPrecisionPlugin DeepSpeedPrecisionPlugin DoublePrecisionPlugin "
    "FSDPMixedPrecisionPlugin FSDPPrecisionPlugin HPUPrecisionPlugin HalfPrecisionPlugin "
    "PrecisionPlugin TPUBf16PrecisionPlugin TPUPrecisionPlugin TransformerEnginePrecisionPlugin "
    "XLABf16PrecisionPlugin XLAPrecisionPlugin"
)
"""Plugins by their older names, which Lightning still shows."""

NAMES: Mapping[str, Mapping[str, str]] = {
    "": {
        "rekindle": "*",
        f"{_UTILITIES}.warnings": "disable_possible_user_warnings",
        f"{_OWN}.logo": "cli_lightning_logo",
    },
    # Devices.
    "accelerators": {
        "rekindle.strategies.accelerators": "Accelerator CPUAccelerator CUDAAccelerator "
        "MPSAccelerator find_usable_cuda_devices",
        "": "AcceleratorRegistry HPUAccelerator TPUAccelerator XLAAccelerator",
    },
    "accelerators.accelerator": {"rekindle.strategies.accelerators": "Accelerator"},
    "accelerators.cpu": {"rekindle.strategies.accelerators": "CPUAccelerator get_cpu_stats"},
    "accelerators.cuda": {
        "rekindle.strategies.accelerators": "CUDAAccelerator",
        "": "get_nvidia_gpu_stats",
    },
    "accelerators.mps": {
        "rekindle.strategies.accelerators": "MPSAccelerator get_device_stats=get_cpu_stats"
    },
    "accelerators.xla": {"": "XLAAccelerator"},
    # Callbacks.
    "callbacks": {
        _CALLBACKS: "*",
        "": "ModelPruning",
    },
    "callbacks.batch_size_finder": {_CALLBACKS: "BatchSizeFinder"},
    "callbacks.callback": {_CALLBACKS: "Callback"},
    "callbacks.checkpoint": {_CALLBACKS: "Checkpoint"},
    "callbacks.device_stats_monitor": {_CALLBACKS: "DeviceStatsMonitor"},
    "callbacks.early_stopping": {
        _CALLBACKS: "EarlyStopping",
        f"{_CALLBACKS}.early_stopping": "EarlyStoppingReason",
    },
    "callbacks.finetuning": {
        _CALLBACKS: "BackboneFinetuning BaseFinetuning",
        f"{_CALLBACKS}.weights.backbone": "multiplicative",
    },
    "callbacks.gradient_accumulation_scheduler": {_CALLBACKS: "GradientAccumulationScheduler"},
    "callbacks.lambda_function": {_CALLBACKS: "LambdaCallback"},
    "callbacks.lr_finder": {_CALLBACKS: "LearningRateFinder"},
    "callbacks.lr_monitor": {_CALLBACKS: "LearningRateMonitor"},
    "callbacks.model_checkpoint": {_CALLBACKS: "ModelCheckpoint"},
    "callbacks.model_summary": {_CALLBACKS: "ModelSummary"},
    "callbacks.on_exception_checkpoint": {_CALLBACKS: "OnExceptionCheckpoint"},
    "callbacks.prediction_writer": {
        _CALLBACKS: "BasePredictionWriter",
        f"{_CALLBACKS}.base_writer": "WriteInterval",
    },
    "callbacks.progress": {_CALLBACKS: "ProgressBar RichProgressBar TQDMProgressBar"},
    "callbacks.progress.progress_bar": {
        _CALLBACKS: "ProgressBar",
        f"{_CALLBACKS}.monitors.progress_bar": "get_standard_metrics",
    },
    "callbacks.progress.rich_progress": {
        _CALLBACKS: "RichProgressBar",
        "": "BatchesProcessedColumn CustomBarColumn CustomInfiniteTask CustomProgress "
        "CustomTimeColumn MetricsTextColumn ProcessingSpeedColumn",
        f"{_CALLBACKS}.monitors.progress_bar": "RichProgressBarTheme",
    },
    "callbacks.progress.tqdm_progress": {
        _CALLBACKS: "TQDMProgressBar",
        f"{_CALLBACKS}.monitors.tqdm_bars": "convert_inf",
        "": "Tqdm",
    },
    "callbacks.pruning": {"": "ModelPruning"},
    "callbacks.rich_model_summary": {_CALLBACKS: "RichModelSummary"},
    "callbacks.spike": {_CALLBACKS: "SpikeDetection"},
    "callbacks.stochastic_weight_avg": {_CALLBACKS: "StochasticWeightAveraging"},
    "callbacks.throughput_monitor": {_CALLBACKS: "ThroughputMonitor"},
    "callbacks.timer": {_CALLBACKS: "Timer", f"{_UTILITIES}.enums": "Interval"},
    "callbacks.weight_averaging": {_CALLBACKS: "EMAWeightAveraging WeightAveraging"},
    # The command line.
    "cli": {
        f"{_OWN}.commandline.tool": "LightningCLI",
        f"{_OWN}.commandline.saving": "SaveConfigCallback",
        f"{_OWN}.commandline.building": "instantiate_class instantiate_module",
        f"{_OWN}.commandline.parser": "ArgsType LRSchedulerCallable LRSchedulerType "
        "LRSchedulerTypeTuple LRSchedulerTypeUnion LightningArgumentParser OptimizerCallable "
        "ReduceLROnPlateau",
    },
    # The model and its data.
    "core": {"rekindle": "LightningDataModule LightningModule"},
    "core.datamodule": {"rekindle": "LightningDataModule"},
    "core.hooks": {
        "rekindle": "CheckpointHooks=LightningModule DataHooks=LightningModule "
        "ModelHooks=LightningModule",
    },
    "core.mixins": {"rekindle.model.hyperparameters": "HyperparametersMixin"},
    "core.mixins.hparams_mixin": {"rekindle.model.hyperparameters": "HyperparametersMixin"},
    "core.module": {"rekindle": "LightningModule"},
    "core.optimizer": {
        "rekindle.model.manual": "LightningOptimizer=ManualOptimizer",
        "": "do_nothing_closure",
    },
    "core.saving": {
        f"{_OWN}.hparams_files": "convert load_hparams_from_tags_csv load_hparams_from_yaml "
        "save_hparams_to_tags_csv save_hparams_to_yaml update_hparams",
    },
    # Demos.
    "demos": {
        f"{_OWN}.demos.boring_classes": "BoringDataModule BoringModel DemoModel",
        f"{_OWN}.demos.lstm": "LightningLSTM SequenceSampler SimpleLSTM",
        f"{_OWN}.demos.transformer": "LightningTransformer Transformer WikiText2",
    },
    # Loggers.
    "loggers": {_LOGGERS: "*", "": "LitLogger"},
    "loggers.comet": {_LOGGERS: "CometLogger"},
    "loggers.csv_logs": {_LOGGERS: "CSVLogger", "": "ExperimentWriter"},
    "loggers.litlogger": {"": "LitLogger"},
    "loggers.logger": {
        _LOGGERS: "Logger",
        f"{_LOGGERS}.dummy": "DummyLogger",
        f"{_OWN}.custom_loggers": "merge_dicts rank_zero_experiment",
    },
    "loggers.mlflow": {_LOGGERS: "MLFlowLogger"},
    "loggers.neptune": {_LOGGERS: "NeptuneLogger"},
    "loggers.tensorboard": {_LOGGERS: "TensorBoardLogger"},
    "loggers.utilities": {},
    "loggers.wandb": {_LOGGERS: "WandbLogger"},
    # Loops.
    "loops": {
        "": "_AutomaticOptimization _EvaluationLoop _FitLoop _Loop _ManualOptimization "
        "_PredictionLoop _TrainingEpochLoop",
    },
    "loops.evaluation_loop": {"": "RestartStage _EvaluationLoop"},
    "loops.fetchers": {"": "_DataFetcher _DataLoaderIterDataFetcher _PrefetchDataFetcher"},
    "loops.fit_loop": {"": "RestartStage _FitLoop"},
    "loops.loop": {"": "_Loop"},
    "loops.optimization": {"": "_AutomaticOptimization _ManualOptimization"},
    "loops.optimization.automatic": {"": "Closure ClosureResult _AutomaticOptimization"},
    "loops.optimization.closure": {"": "AbstractClosure OutputResult"},
    "loops.optimization.manual": {"": "ManualResult _ManualOptimization"},
    "loops.prediction_loop": {"": "_PredictionLoop"},
    "loops.progress": {},
    "loops.training_epoch_loop": {"": "RestartStage _TrainingEpochLoop"},
    "loops.utilities": {"": "check_finite_loss"},
    "overrides": {},
    "overrides.distributed": {
        "": "UnrepeatedDistributedSampler UnrepeatedDistributedSamplerWrapper prepare_for_backward",
    },
    # Plugins.
    "plugins": {
        _PRECISION: "MixedPrecision MixedPrecisionPlugin=MixedPrecision",
        "": "AsyncCheckpointIO BitsandbytesPrecision CheckpointIO ClusterEnvironment "
        "DeepSpeedPrecision DoublePrecision FSDPPrecision HPUCheckpointIO HalfPrecision "
        "LayerSync Precision TorchCheckpointIO TorchSyncBatchNorm TransformerEnginePrecision "
        "XLACheckpointIO XLAPrecision " + _GIVEN_UP,
    },
    "plugins.environments": {
        "": "ClusterEnvironment KubeflowEnvironment LSFEnvironment LightningEnvironment "
        "MPIEnvironment SLURMEnvironment TorchElasticEnvironment XLAEnvironment",
    },
    "plugins.io": {
        "": "AsyncCheckpointIO CheckpointIO HPUCheckpointIO TorchCheckpointIO XLACheckpointIO",
    },
    "plugins.io.async_plugin": {"": "AsyncCheckpointIO"},
    "plugins.io.checkpoint_plugin": {"": "CheckpointIO"},
    "plugins.io.torch_plugin": {"": "TorchCheckpointIO"},
    "plugins.io.wrapper": {},
    "plugins.io.xla_plugin": {"": "XLACheckpointIO"},
    "plugins.layer_sync": {"": "LayerSync TorchSyncBatchNorm"},
    "plugins.precision": {
        _PRECISION: "MixedPrecision MixedPrecisionPlugin=MixedPrecision",
        "": "BitsandbytesPrecision DeepSpeedPrecision DoublePrecision FSDPPrecision "
        "HalfPrecision Precision TransformerEnginePrecision XLAPrecision " + _GIVEN_UP,
    },
    "plugins.precision.amp": {_PRECISION: "MixedPrecision"},
    "plugins.precision.bitsandbytes": {"": "BitsandbytesPrecision"},
    "plugins.precision.deepspeed": {"": "DeepSpeedPrecision"},
    "plugins.precision.double": {"": "DoublePrecision LightningDoublePrecisionModule"},
    "plugins.precision.fsdp": {"": "FSDPPrecision"},
    "plugins.precision.half": {"": "HalfPrecision"},
    "plugins.precision.precision": {"": "Precision"},
    "plugins.precision.transformer_engine": {"": "TransformerEnginePrecision"},
    "plugins.precision.xla": {"": "XLAPrecision"},
    # Profilers.
    "profilers": {
        _PROFILERS: "* PassThroughProfiler=Profiler",
        "": "XLAProfiler",
    },
    "profilers.advanced": {_PROFILERS: "AdvancedProfiler"},
    "profilers.base": {_PROFILERS: "PassThroughProfiler=Profiler"},
    "profilers.profiler": {_PROFILERS: "Profiler"},
    "profilers.pytorch": {
        _PROFILERS: "PyTorchProfiler",
        "": "RegisterRecordFunction ScheduleWrapper",
    },
    "profilers.simple": {_PROFILERS: "SimpleProfiler"},
    "profilers.xla": {"": "XLAProfiler"},
    # Strategies.
    "strategies": {
        _STRATEGIES: "*",
        "": "HPUParallelStrategy ModelParallelStrategy ParallelStrategy SingleDeviceStrategy "
        "SingleDeviceXLAStrategy SingleHPUStrategy SingleTPUStrategy StrategyRegistry XLAStrategy",
    },
    "strategies.ddp": {_STRATEGIES: "DDPStrategy"},
    "strategies.deepspeed": {_STRATEGIES: "DeepSpeedStrategy", "": "remove_module_hooks"},
    "strategies.fsdp": {_STRATEGIES: "FSDPStrategy"},
    "strategies.launchers": {
        "": "_MultiProcessingLauncher _SubprocessScriptLauncher _XLALauncher",
    },
    "strategies.launchers.launcher": {"": "_Launcher"},
    "strategies.launchers.multiprocessing": {"": "_MultiProcessingLauncher"},
    "strategies.launchers.subprocess_script": {"": "_SubprocessScriptLauncher"},
    "strategies.launchers.xla": {"": "_XLALauncher"},
    "strategies.model_parallel": {"": "ModelParallelStrategy"},
    "strategies.parallel": {"": "ParallelStrategy"},
    "strategies.single_device": {"": "SingleDeviceStrategy"},
    "strategies.single_xla": {"": "SingleDeviceXLAStrategy"},
    "strategies.strategy": {_STRATEGIES: "Strategy"},
    "strategies.xla": {"": "XLAStrategy"},
    # Serving.
    "serve": {f"{_OWN}.servable": "ServableModule ServableModuleValidator"},
    "serve.servable_module": {f"{_OWN}.servable": "ServableModule"},
    "serve.servable_module_validator": {f"{_OWN}.servable": "ServableModuleValidator"},
    # The trainer.
    "trainer": {"rekindle": "Trainer seed_everything"},
    "trainer.call": {},
    "trainer.configuration_validator": {},
    "trainer.connectors": {},
    "trainer.connectors.accelerator_connector": {"": "_AcceleratorConnector"},
    "trainer.connectors.callback_connector": {"": "_CallbackConnector"},
    "trainer.connectors.checkpoint_connector": {"": "_CheckpointConnector"},
    "trainer.connectors.data_connector": {"": "_DataConnector"},
    "trainer.connectors.logger_connector": {"": "_LoggerConnector"},
    "trainer.connectors.logger_connector.fx_validator": {},
    "trainer.connectors.logger_connector.logger_connector": {"": "_LoggerConnector"},
    "trainer.connectors.logger_connector.result": {"": "_ResultCollection"},
    "trainer.connectors.signal_connector": {"": "_SignalConnector"},
    "trainer.setup": {},
    "trainer.states": {"rekindle.stages": "RunningStage TrainerFn TrainerState TrainerStatus"},
    "trainer.trainer": {"rekindle": "Trainer"},
    "tuner": {"rekindle.trainer.tuner": "Tuner"},
    "tuner.batch_size_scaling": {},
    "tuner.lr_finder": {"rekindle.trainer.tuner": "_LRFinder=LRFinder"},
    "tuner.tuning": {"rekindle.trainer.tuner": "Tuner"},
    # Utilities.
    "utilities": {
        f"{_UTILITIES}.batches": "move_data_to_device suggested_max_num_workers",
        f"{_UTILITIES}.enums": "GradClipAlgorithmType LightningEnum",
        f"{_UTILITIES}.grads": "grad_norm",
        f"{_UTILITIES}.parameter_tying": "find_shared_parameters set_shared_parameters",
        f"{_UTILITIES}.parsing": "AttributeDict is_picklable",
        f"{_UTILITIES}.rank_zero": "rank_zero_deprecation rank_zero_info rank_zero_only "
        "rank_zero_warn",
        "rekindle.model.summary": "measure_flops",
        f"{_UTILITIES}.warnings": "disable_possible_user_warnings",
        f"{_UTILITIES}.memory": "FLOAT16_EPSILON FLOAT32_EPSILON FLOAT64_EPSILON",
        "rekindle.data.combined": "CombinedLoader",
        "": "is_shared_filesystem",
    },
    "utilities._pytree": {},
    "utilities.argparse": {},
    "utilities.combined_loader": {"rekindle.data.combined": "CombinedLoader"},
    "utilities.compile": {f"{_UTILITIES}.model_helpers": "from_compiled to_uncompiled"},
    "utilities.consolidate_checkpoint": {},
    "utilities.data": {f"{_UTILITIES}.batches": "extract_batch_size", "": "has_len_all_ranks"},
    "utilities.deepspeed": {"": "convert_zero_checkpoint_to_fp32_state_dict ds_checkpoint_dir"},
    "utilities.imports": {},
    "utilities.migration": {"": "migrate_checkpoint pl_legacy_patch"},
    "utilities.migration.migration": {},
    "utilities.migration.utils": {"": "migrate_checkpoint pl_legacy_patch"},
    "utilities.model_registry": {
        "": "download_model_from_registry find_model_local_ckpt_path",
    },
    "utilities.model_summary": {
        "rekindle.model.summary": "LayerSummary ModelSummary get_formatted_model_size "
        "get_human_readable_count parse_batch_shape summarize",
        "": "DeepSpeedSummary",
    },
    "utilities.model_summary.model_summary": {
        "rekindle.model.summary": "LayerSummary ModelSummary get_formatted_model_size "
        "get_human_readable_count parse_batch_shape summarize",
    },
    "utilities.model_summary.model_summary_deepspeed": {
        "": "DeepSpeedLayerSummary DeepSpeedSummary deepspeed_param_size",
    },
    "utilities.parsing": {"": "collect_init_args get_init_args save_hyperparameters"},
    "utilities.signature_utils": {f"{_UTILITIES}.model_helpers": "is_param_in_hook_signature"},
    "utilities.testing": {"": "_runif_reasons"},
    "utilities.testing._runif": {},
    "utilities.upgrade_checkpoint": {"": "main"},
    # What Lightning itself has given up.
    "_graveyard": {},
    "_graveyard._torchmetrics": {"": "compare_version"},
    "_graveyard.hpu": {
        "": "HPUAccelerator HPUCheckpointIO HPUParallelStrategy HPUPrecisionPlugin "
        "SingleHPUStrategy",
    },
    "_graveyard.precision": {"": "FSDPMixedPrecisionPlugin"},
    "_graveyard.tpu": {
        "": "SingleTPUStrategy TPUAccelerator TPUBf16PrecisionPlugin TPUPrecisionPlugin "
        "XLABf16PrecisionPlugin",
    },
}
