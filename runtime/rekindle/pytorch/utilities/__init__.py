"""What scripts import from `lightning.pytorch.utilities`: small functions that need no trainer."""

from typing import TYPE_CHECKING

from rekindle.pytorch.namespace import attributes

if TYPE_CHECKING:
    from rekindle.enumeration import LightningEnum as LightningEnum
    from rekindle.pytorch.utilities.batches import move_data_to_device as move_data_to_device
    from rekindle.pytorch.utilities.batches import (
        suggested_max_num_workers as suggested_max_num_workers,
    )
    from rekindle.pytorch.utilities.enums import GradClipAlgorithmType as GradClipAlgorithmType
    from rekindle.pytorch.utilities.grads import grad_norm as grad_norm
    from rekindle.pytorch.utilities.parsing import AttributeDict as AttributeDict
    from rekindle.pytorch.utilities.parsing import is_picklable as is_picklable
    from rekindle.pytorch.utilities.rank_zero import rank_zero_deprecation as rank_zero_deprecation
    from rekindle.pytorch.utilities.rank_zero import rank_zero_info as rank_zero_info
    from rekindle.pytorch.utilities.rank_zero import rank_zero_only as rank_zero_only
    from rekindle.pytorch.utilities.rank_zero import rank_zero_warn as rank_zero_warn

__all__, __getattr__, __dir__ = attributes(__name__)
