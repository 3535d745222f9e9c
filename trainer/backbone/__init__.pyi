from .constants import fold_constants as fold_constants
from .load import drop_classifier as drop_classifier
from .load import load_backbone as load_backbone
from .names import name_norms as name_norms
from .names import op_name as op_name
from .paper_resnets import PAPER_NETS as PAPER_NETS
from .paper_resnets import paper_net as paper_net
from .tracing import trace as trace
