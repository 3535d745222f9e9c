from .batches import Batch as Batch
from .batches import JointBatches as JointBatches
from .batches import eval_batches as eval_batches
from .domains import Domain as Domain
from .domains import ImageSet as ImageSet
from .domains import open_domain as open_domain
from .domains import open_domains as open_domains
from .transforms import eval_transform as eval_transform
