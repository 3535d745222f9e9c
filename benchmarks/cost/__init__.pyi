from .asked import check_asked as check_asked
from .folded import fold_by_hand as fold_by_hand
from .train_step import STEP_NETWORKS as STEP_NETWORKS
from .train_step import STEPS as STEPS
from .train_step import random_batches as random_batches
from .train_step import random_training as random_training
