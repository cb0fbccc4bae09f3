# SPDX-License-Identifier: Apache-2.0
"""All names at once, for scripts that import everything from here."""

from hccl.manage.api import (
    create_group,
    destroy_group,
    get_local_rank_id,
    get_local_rank_size,
    get_rank_id,
    get_rank_size,
)
from hccl.split.api import set_split_strategy_by_idx, set_split_strategy_by_size

from npu_bridge.estimator import npu_ops
from npu_bridge.estimator.npu import npu_scope, util
from npu_bridge.estimator.npu.npu_config import (
    DumpConfig,
    DynamicInputConfig,
    NPURunConfig,
    ProfilingConfig,
)
from npu_bridge.estimator.npu.npu_estimator import (
    NPUEstimator,
    NPUEstimatorSpec,
)
from npu_bridge.estimator.npu.npu_hook import NPUCheckpointSaverHook
from npu_bridge.estimator.npu.npu_loss_scale_manager import (
    ExponentialUpdateLossScaleManager,
    FixedLossScaleManager,
)
from npu_bridge.estimator.npu.npu_loss_scale_optimizer import (
    NPULossScaleOptimizer,
)
from npu_bridge.estimator.npu.npu_optimizer import (
    NPUDistributedOptimizer,
    NPUOptimizer,
)
